"""One dataset's side of a batch: which row holds which id, and what a row's outcome changes."""

from __future__ import annotations

from typing import Final

from distilld.core.line_facts import DUPLICATE, EXPORTED, REASON_CODES
from distilld.core.model import Cause, Dataset
from distilld.core.outcome import Outcome
from distilld.engine.dataset_lines import DatasetLines, FreedLines
from distilld.engine.row_batch import RowBatch
from distilld.store.decisions import Withdrawal
from distilld.store.loose_lines import LooseLine
from distilld.store.work import Recorded, WorkRow

_WAITS_FOR_ID: Final = frozenset({"duplicate", "shape", "source_files", "schema"})
"""The gates whose result may change with the holder of the id: the one for ids, and those after it."""
_NEEDS_EVIDENCE: Final = frozenset({"evidence", "content", "shape", "schema"})


class Lane:
    """Knows which row holds which id at present, and settles the rows of one dataset accordingly."""

    def __init__(self, batch: RowBatch, dataset: Dataset) -> None:
        self._batch = batch
        self._dataset = dataset
        self._out = batch.out
        self._lines = DatasetLines(batch.work, dataset, batch.out)
        self._changes = self._lines.changes
        self._exported_walks = batch.out.exported_walks[dataset]
        self.freed = FreedLines(batch, self._lines)
        self._taken: dict[int, int | None] = {}
        """The present holder of an id, where this batch decided it; None where the id is free."""
        self._exported_now: set[int] = set()
        self._quarantined_now: dict[int, list[int]] = {}
        """Rows that this batch quarantined at the gate for ids or at a later one, by id."""

    def outcome(self, row: WorkRow, judged: tuple[Outcome, Outcome | None]) -> Outcome:
        """Return the outcome of a row, given the present holder of its id."""
        free, taken = judged
        holder = self._holder(row)
        if taken is not None and holder is not None and holder < row.walk:
            return taken
        if taken is not None and free.gate is None and holder is None and self._kept_holder(row) in self._batch.done:
            # The kept row with this id was already judged in this batch: it gives the id up in the next one.
            self._out.rows_to_queue.append(row.walk)
            return taken
        return free

    def displaced_by(self, row: WorkRow, outcome: Outcome) -> int | None:
        """Return the row that loses its id to this one."""
        if outcome.gate is not None:
            return None
        holder = self._holder(row)
        if holder is None:
            return self._kept_holder(row)
        return holder if holder > row.walk else None

    def settle(self, row: WorkRow, recorded: Recorded, outcome: Outcome) -> Recorded:
        """Apply an outcome as changes; return what is recorded of the row from now on."""
        if outcome.gate is None:
            settled = self._export(row, recorded, outcome)
        else:
            if self._stays_as_it_is(row, recorded, outcome):
                self._pass_on(row, recorded)
                return recorded
            settled = self._quarantine(row, recorded, outcome)
        if recorded.code != settled.code:
            totals = self._out.totals
            if recorded.code is not None:
                totals[self._dataset, "live", recorded.code] -= 1
            totals[self._dataset, "live", settled.code or 0] += 1
        return settled

    def _holder(self, row: WorkRow) -> int | None:
        """Return the row that holds the id and has its evidence; None where any present row may take the id."""
        key = row.sample_key
        if key in self._taken:
            return self._taken[key]
        holder = row.holder(self._dataset)
        return holder if holder is not None and holder > 0 else None

    def _kept_holder(self, row: WorkRow) -> int | None:
        """Return the row that holds the id while its evidence is absent, vanished or gone: any other may take it."""
        if row.sample_key in self._taken:
            return None
        holder = row.holder(self._dataset)
        return -holder if holder is not None and holder < 0 and -holder != row.walk else None

    def _stays_as_it_is(self, row: WorkRow, recorded: Recorded, outcome: Outcome) -> bool:
        """Return whether a retained row keeps its outcome: if exported, until another row holds its id."""
        if recorded.code is None or not self._is_retained(row, outcome):
            return False
        if self._changes.is_missing(recorded.code, recorded.line):
            return False
        return recorded.code != EXPORTED or self._holder(row) is None

    def _pass_on(self, row: WorkRow, recorded: Recorded) -> None:
        """Wake the next waiting row if this one waited for its id and does not take it, or has it but is only kept."""
        if recorded.code in (DUPLICATE, EXPORTED) and row.sample_key is not None and self._holder(row) is None:
            self._batch.wake(self._dataset, row.sample_key, row.walk if recorded.code == DUPLICATE else -1)

    def _is_retained(self, row: WorkRow, outcome: Outcome) -> bool:
        """Return whether absent evidence lets the row keep its outcome (SPEC 3)."""
        return outcome.gate == "evidence" and row.evidence_digest is not None and not row.evidence_found

    def _export(self, row: WorkRow, recorded: Recorded, exported: Outcome) -> Recorded:
        key = row.sample_key or 0
        holder, displaced = self._holder(row), self.displaced_by(row, exported)
        if displaced is not None:
            self._batch.displace(displaced)
        # A holder whose evidence came back was passed over meanwhile: later rows were judged as if the id were free.
        if holder != row.walk or row.evidence_changed:
            self._let_wait(key, row.walk, contested=bool(row.contested))
        standing = self._standing(row, recorded, key, displaced if holder is None else holder)
        if recorded.code is not None and recorded.code != EXPORTED:
            self._changes.quarantined.drop(recorded.line)
        self._taken[key] = row.walk
        self._exported_now.add(key)
        if standing is not None:
            if self._lines.keep(standing, exported, key):
                self._changes.exported.adopted += standing.batch == 0 and standing is not recorded
                return standing
            self._lines.take_out(standing.line, key)
            cause = self._cause_of_change(row, own=standing is recorded)
            self._out.withdrawals.append(
                Withdrawal(
                    self._dataset, key, cause, True, source_run_id=row.run_id, shipped_batch=standing.batch or None
                )
            )
        self._exported_walks.append(row.walk)
        return self._lines.write(EXPORTED, exported)

    def _let_wait(self, key: int, walk: int, *, contested: bool) -> None:
        """Give an id to the row at ``walk``: later rows that fail a later gate join, for they are duplicates now."""
        if contested:
            for waiter in self._batch.work.behind(self._dataset, key, walk):
                self._batch.join(waiter)
        self._look_again(key, walk)

    def _look_again(self, key: int, after: int) -> None:
        """Queue rows after ``after`` that this batch has already quarantined: the next batch judges them again."""
        if key in self._quarantined_now:
            self._out.rows_to_queue += [walk for walk in self._quarantined_now[key] if walk > after]

    def _standing(self, row: WorkRow, recorded: Recorded, key: int, holder: int | None) -> Recorded | None:
        """Return the line that this id has now, whichever row had it; the line passes to the row."""
        freed = self.freed.take(key)
        if freed is not None:
            return freed
        if holder == row.walk:
            return recorded if recorded.code == EXPORTED else None
        if holder is not None:
            self._out.released[self._dataset].append(holder)
            return self._batch.work.row(holder).recorded(self._dataset)
        if self._batch.has_loose_lines:
            loose = self._batch.work.loose_line(self._dataset, key)
            if loose is not None:
                return self._take_loose(loose)
        return None

    def _take_loose(self, loose: LooseLine) -> Recorded:
        if loose.is_departure:
            self._out.note_departure(loose.owner_id, self._dataset, EXPORTED)
        else:
            self._out.retained_left.append((self._dataset, loose.owner_id))
            self._out.totals[self._dataset, "retained", EXPORTED] -= 1
        return Recorded(EXPORTED, loose.line, loose.batch)

    def _quarantine(self, row: WorkRow, recorded: Recorded, quarantined: Outcome) -> Recorded:
        assert quarantined.reason is not None  # noqa: S101  a quarantined row has a reason
        code = REASON_CODES[quarantined.reason]
        key = row.sample_key
        if key is not None and quarantined.gate in _WAITS_FOR_ID:
            self._quarantined_now.setdefault(key, []).append(row.walk)
        if recorded.code is not None and recorded.code != EXPORTED:
            self._pass_on(row, recorded)
            if self._lines.keep(recorded, quarantined):
                return recorded if recorded.code == code else Recorded(code, recorded.line, recorded.batch)
            self._changes.quarantined.drop(recorded.line)
        left = self.freed.take_quarantined(row.walk, code, quarantined) if recorded.code is None else None
        if left is not None:
            return left
        if recorded.code == EXPORTED and key is not None:
            self._release(row, recorded, key, quarantined)
        return self._lines.write(code, quarantined)

    def _release(self, row: WorkRow, recorded: Recorded, key: int, quarantined: Outcome) -> None:
        """Release a row that is no longer exported; free its line if no other row took the id in this batch."""
        self._out.released[self._dataset].append(row.walk)
        if key not in self._exported_now:
            lost = self._changes.is_missing(EXPORTED, recorded.line) and self._is_retained(row, quarantined)
            cause = Cause.LOST if lost else self._cause_of_quarantine(row, quarantined)
            self.free(key, recorded, row.run_id, cause, contested=bool(row.contested))

    def give_up(self, row: WorkRow) -> None:
        """Withdraw a row that a verdict forbids, without another outcome."""
        self._out.totals[self._dataset, "live", EXPORTED] -= 1
        self._out.released[self._dataset].append(row.walk)
        self.free(row.sample_key or 0, row.recorded(self._dataset), row.run_id, Cause.REVOKED)

    def free(self, key: int, recorded: Recorded, run_id: str | None, cause: Cause, *, contested: bool = True) -> None:
        """Free a line that lost its row: it leaves unless another row takes the id; the first waiting row joins.

        A row that is not ``contested`` shares its id with no other row.
        """
        self.freed.add(key, recorded, run_id, cause)
        self._taken[key] = None
        if contested:
            self._batch.wake(self._dataset, key, -1)
        self._look_again(key, -1)

    def _cause_of_quarantine(self, row: WorkRow, quarantined: Outcome) -> Cause:
        if quarantined.gate == "revoked":
            return Cause.REVOKED
        # Evidence that changed while the row's file was absent is not marked: without other options, it is the cause.
        if quarantined.gate in _NEEDS_EVIDENCE and (row.evidence_changed or not self._batch.options_changed):
            return Cause.EVIDENCE_CHANGED
        if quarantined.gate == "duplicate":
            return Cause.DISPLACED
        if self._batch.options_changed:
            return Cause.OPTIONS_CHANGED
        if quarantined.gate == "over_limit":
            return Cause.DISPLACED
        return Cause.EVIDENCE_CHANGED if row.evidence_changed else Cause.UNDONE

    def _cause_of_change(self, row: WorkRow, *, own: bool) -> Cause:
        if not own:
            return Cause.DISPLACED
        if self._batch.options_changed and not row.evidence_changed:
            return Cause.OPTIONS_CHANGED
        return Cause.EVIDENCE_CHANGED
