"""The preference dataset's side of a batch, across its tasks: which ids it exports, and why recorded pairs leave."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from distilld.core.line_facts import CATEGORIES, CATEGORY_CODES, DUPLICATE, EXPORTED
from distilld.core.model import Category, Cause, Dataset, Options
from distilld.engine.dataset_lines import DatasetLines
from distilld.store.decisions import Decisions, Withdrawal
from distilld.store.loose_lines import Departure
from distilld.store.tasks import WorkPair
from distilld.store.work import Work

_PREFERENCE: Final = Dataset.PREFERENCE


class PairLane:
    """Knows what the tasks of a batch share, and adds the withdrawals of pairs to its decisions."""

    def __init__(self, work: Work, options: Options, decisions: Decisions, *, options_changed: bool) -> None:
        self._work = work
        self._options = options
        self._options_changed = options_changed
        self._any_departed = work.has_departed_pairs()
        self.out = decisions
        self.lines = DatasetLines(work, _PREFERENCE, decisions)
        self.changes = self.lines.changes
        self.change = Cause.OPTIONS_CHANGED if options_changed else Cause.EVIDENCE_CHANGED
        """Why a line changes although its pair is still formed."""
        self.exported: set[int] = set()
        self.freed: dict[int, tuple[WorkPair, Cause]] = {}
        self.moved_on: set[int] = set()
        """Pairs whose line another task took over before their own task was formed again."""

    # ids of pairs that are gone

    def take_departures(self, departures: Iterable[Departure]) -> None:
        """Remove lines whose pairs are gone, unless another pair takes the same id."""
        for each in departures:
            if each.outcome == EXPORTED:
                self.freed[each.sample_key or 0] = _pair_of(each), Cause(each.cause)
            else:
                self.changes.quarantined.drop(each.line)

    def any_departed(self, keys: Iterable[int]) -> bool:
        """Return whether any of these ids still belongs to a pair that is gone."""
        return self._any_departed and bool(self._work.departed_pairs(keys))

    def take_freed(self, key: int) -> WorkPair | None:
        """Return the pair whose free line an id has, for the pair that has the id now."""
        if self._any_departed and key not in self.freed:
            departed = self._work.departed_pairs([key])
            self.take_departures(each for each in departed if self.out.note_departure(*each[:3]))
        pair, _ = self.freed.pop(key, (None, None))
        return pair

    # pairs that are formed

    def drop_totals(self, pair: WorkPair) -> None:
        """Subtract a recorded pair from the totals of its outcome."""
        self.out.totals[_PREFERENCE, "retained" if pair.retained else "live", pair.outcome] -= 1

    def is_earlier(self, one: str, other: str) -> bool:
        """Return whether a task comes before another one in the order that decides on ids."""
        return (self._work.first_walk(one), one) < (self._work.first_walk(other), other)

    def waiting_for(self, key: int) -> set[str]:
        """Return the tasks with a pair that is quarantined because an earlier pair has this id."""
        return {
            pair.task_id
            for pair in self._work.pairs_with_keys([key]).get(key, [])
            if pair.outcome == DUPLICATE and pair.retained is None
        }

    # pairs that leave

    def is_absent(self, pair: WorkPair) -> bool:
        """Return whether a side of the pair is absent: its scored line, or its evidence."""
        return any(
            self._work.side_is_absent(partition, run_id, pair.task_id, category)
            for partition, run_id, category in (
                (pair.chosen_partition or 0, pair.chosen_run_id, CATEGORY_CODES[Category.ACCEPTED]),
                (pair.rejected_partition or 0, pair.rejected_run_id, pair.rejected_category),
            )
        )

    def overruled(self, pair: WorkPair) -> bool:
        """Return whether a current verdict contradicts the pair about one of its sides."""
        if not self._options.revoke:
            return False
        # A pair from an older exporter does not show which of the two categories its rejected side had.
        known = CATEGORIES.get(pair.rejected_category)
        rejected = (known,) if known else (Category.REJECTED, Category.PARTIALLY_ACCEPTED)
        return any(
            said is not None and said not in categories
            for run_id, categories in ((pair.chosen_run_id, (Category.ACCEPTED,)), (pair.rejected_run_id, rejected))
            for said in self._work.verdicts(run_id, self._options)[1:]
        )

    def cause(self, pair: WorkPair, *, overruled: bool) -> Cause:
        """Return why a pair leaves that its task no longer forms."""
        if overruled:
            return Cause.REVOKED
        if not all(self._work.names_run(run_id) for run_id in (pair.chosen_run_id, pair.rejected_run_id)):
            return Cause.ROW_REMOVED
        if self._work.lacks_evidence(pair.chosen_run_id) or self._work.lacks_evidence(pair.rejected_run_id):
            return Cause.EVIDENCE_CHANGED
        return Cause.OPTIONS_CHANGED if self._options_changed else Cause.DISPLACED

    def finish(self) -> None:
        """Remove the lines that are still free from the dataset, and publish the withdrawals."""
        for pair, cause in self.freed.values():
            self.lines.take_out(pair.line, pair.sample_key)
            self.publish(pair, cause, replaced=False)

    def publish(self, pair: WorkPair, cause: Cause, *, replaced: bool) -> None:
        """Publish that the pair's line leaves or, if ``replaced``, that another line takes its place."""
        verdict = None
        if cause is Cause.REVOKED:
            for run_id in (pair.chosen_run_id, pair.rejected_run_id):
                category = self._work.verdicts(run_id, self._options)[1]
                place = self._work.verdict_place(run_id, category) if category else None
                expected = Category.ACCEPTED if run_id == pair.chosen_run_id else None
                if place is not None and category is not expected:
                    verdict = place
                    break
        self.out.withdrawals.append(
            Withdrawal(
                _PREFERENCE, pair.sample_key, cause, replaced, chosen_run_id=pair.chosen_run_id,
                rejected_run_id=pair.rejected_run_id, verdict=verdict, shipped_batch=pair.batch or None,
            )
        )  # fmt: skip


def _pair_of(gone: Departure) -> WorkPair:
    """Return a departed pair as it was recorded, as far as its withdrawal needs it."""
    return WorkPair(
        0, gone.cause, "", 0, gone.run_id or "", gone.other_run_id or "", 0, None, None, gone.sample_key or 0,
        gone.outcome, gone.line, gone.batch,
    )  # fmt: skip
