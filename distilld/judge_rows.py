"""Scored rows become outcomes in RAG and SFT, and outcomes become changes (DESIGN 3, step 4).

Rows are judged in walk order. An id belongs to the first row that passes the gates; a row that is displaced, or that
waits for an id which came free, joins the batch. A line is rewritten only if its content, timestamps aside, changed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from distilld.datasets import Hold, Outcome, Ship, hold_malformed, rag, sft
from distilld.decisions import Decisions, RowUpdate, Withdrawal
from distilld.firewall import MissingFiles, RowCase
from distilld.lake import tree_path
from distilld.model import Category, Cause, Dataset, InputKind, Options, RowRef
from distilld.store.schema import CATEGORIES, DUPLICATE, MALFORMED, REASON_CODES, SHIPPED
from distilld.store.work import Departure, FrozenRow, Standing, Work, WorkRow
from distilld.tail import digest_of
from distilld.texts import Texts

_JUDGES: Final[dict[Dataset, Callable[[RowCase, RowRef], Outcome]]] = {Dataset.RAG: rag.judge, Dataset.SFT: sft.judge}
_ROW_DATASETS: Final = (Dataset.RAG, Dataset.SFT)
_KEPT_BITS: Final = {Dataset.RAG: 1, Dataset.SFT: 2}
_NEEDS_EVIDENCE: Final = frozenset({"evidence", "content", "shape", "schema"})


class _Recorded(NamedTuple):
    """What was recorded of a row in a dataset; ``code`` is None where it was never judged."""

    code: int | None
    line: bytes
    batch: int


class _Freed(NamedTuple):
    """A line whose row gave its id up in this batch; another row may still take the line over."""

    line: bytes
    batch: int
    withdrawal: Withdrawal


class RowJudge:
    """Judges the rows of one batch and adds what follows to its decisions."""

    def __init__(
        self,
        work: Work,
        texts: Texts,
        options: Options,
        decisions: Decisions,
        *,
        missing_files: MissingFiles | None,
        options_changed: bool,
    ) -> None:
        self._work = work
        self._texts = texts
        self._options = options
        self._out = decisions
        self._missing_files = missing_files
        self._options_changed = options_changed
        self._stamps: dict[int, str] = {}
        self._taken: dict[Dataset, dict[int, int | None]] = {dataset: {} for dataset in _ROW_DATASETS}
        self._shipped_now: dict[Dataset, set[int]] = {dataset: set() for dataset in _ROW_DATASETS}
        self._freed: dict[Dataset, dict[int, _Freed]] = {dataset: {} for dataset in _ROW_DATASETS}
        self._joined: list[int] = []
        self._done: set[int] = set()
        self._loose = work.has_loose_lines()
        self._absent_verdicts = work.has_frozen_verdicts()
        self._readable = frozenset(options.rag_allowed) | frozenset(options.sft_allowed)

    # the order of work

    def judge(self, rows: Iterator[WorkRow], *, max_rows: int, max_bytes: int) -> int | None:
        """Judge rows in walk order until a limit is reached.

        Returns the place of the last row that was taken from ``rows``, or None if none of them is left over.
        """
        start = self._texts.bytes_read
        last = -1
        for row in rows:
            if len(self._done) >= max_rows or self._texts.bytes_read - start >= max_bytes:
                self._judge_joined(1 << 62)
                return last
            self._judge_joined(row.walk)
            self._judge_once(row)
            last = row.walk
        self._judge_joined(1 << 62)
        return None

    def _judge_joined(self, before: int) -> None:
        """Judge the rows that joined the batch and stand before a place."""
        while self._joined and self._joined[0] < before:
            walk = heapq.heappop(self._joined)
            if walk not in self._done:
                self._judge_once(self._work.row(walk))

    def _judge_once(self, row: WorkRow) -> None:
        if row.walk not in self._done:
            self._done.add(row.walk)
            self._judge_row(row)

    def take_departures(self, departures: Iterable[Departure]) -> None:
        """Lines whose rows are gone: they leave, unless another row ships the same id."""
        for each in departures:
            self._out.departures.append(each.departure_id)
            self._out.totals[each.dataset, "departing", each.outcome] -= 1
            if each.outcome != SHIPPED:
                self._out.changes[each.dataset].removed_held[each.line] += 1
                continue
            key = each.sample_key or 0
            cause = Cause.REVOKED if self._forbidden(each.dataset, each.run_id) else Cause(each.cause)
            self._free(each.dataset, key, each.line, each.batch, each.run_id, cause)
            self._wake(each.dataset, key, -1)

    def take_frozen(self, frozen: Iterable[FrozenRow]) -> None:
        """Frozen rows leave when their run is revoked, or when their very line stands in a present partition."""
        for row in frozen:
            self._out.frozen_seen.append(row.frozen_id)
            copied = row.kind != "orphan" and self._work.stands_elsewhere(row.digest, row.run_id)
            for dataset, code, line, batch in (
                (Dataset.RAG, row.rag, row.rag_line, row.rag_batch),
                (Dataset.SFT, row.sft, row.sft_line, row.sft_batch),
            ):
                if code is None or line is None or batch is None:
                    continue
                revoked = code == SHIPPED and self._forbidden(dataset, row.run_id)
                if not (copied or revoked):
                    continue
                self._out.frozen_left.append((dataset, row.frozen_id))
                self._out.totals[dataset, "frozen", code] -= 1
                if code == SHIPPED:
                    cause = Cause.REVOKED if revoked else Cause.DISPLACED
                    self._free(dataset, row.sample_key or 0, line, batch, row.run_id, cause)
                    self._wake(dataset, row.sample_key or 0, -1)
                else:
                    self._out.changes[dataset].removed_held[line] += 1

    def finish(self) -> None:
        """Lines that no row took over leave their datasets, and are published."""
        for dataset in _ROW_DATASETS:
            for key, freed in self._freed[dataset].items():
                self._out.changes[dataset].removed_keys[key] = freed.line
                self._out.withdrawals.append(freed.withdrawal)
                self._out.unadopted.append((dataset, key))

    # one row

    def _judge_row(self, row: WorkRow) -> None:
        out = self._out
        out.judged_walks.append(row.walk)
        first_time = row.rag is None
        out.newly_judged += first_time
        if row.malformed is not None:
            outcomes = [self._settle(dataset, row, self._malformed(dataset, row)) for dataset in _ROW_DATASETS]
        else:
            scored = self._texts.scored(row)
            if scored.category:
                out.by_category[scored.category] += 1
            evidence = self._texts.evidence(row) if scored.category in self._readable else None
            outcomes = []
            for dataset in _ROW_DATASETS:
                holder = self._holder(dataset, row)
                verdict = self._verdict(dataset, row)
                taken = holder is not None and holder < row.walk
                case = RowCase(scored, evidence, verdict, taken, self._options, self._missing_files)
                outcomes.append(self._settle(dataset, row, _JUDGES[dataset](case, row.at)))
        (rag_code, rag_line, rag_batch), (sft_code, sft_line, sft_batch) = outcomes
        recorded = (row.rag, row.rag_line, row.rag_batch, row.sft, row.sft_line, row.sft_batch)
        if recorded != (rag_code, rag_line, rag_batch, sft_code, sft_line, sft_batch):
            out.rows.append(RowUpdate(rag_code, rag_line, rag_batch, sft_code, sft_line, sft_batch, row.walk))

    def _malformed(self, dataset: Dataset, row: WorkRow) -> Hold:
        return hold_malformed(
            dataset,
            self._texts.malformed_head(row),
            MALFORMED[row.malformed or 0],
            row.at,
            source_file=tree_path(InputKind.SCORED, row.path),
            max_line_bytes=self._options.max_line_bytes,
        )

    def _verdict(self, dataset: Dataset, row: WorkRow) -> Category | None:
        if row.run_id is None:
            return None
        if self._absent_verdicts:
            in_rag, in_sft, _ = self._work.verdicts(row.run_id, self._options)
            return in_rag if dataset is Dataset.RAG else in_sft
        return CATEGORIES[row.verdict & 7] if row.verdict is not None else None

    def _forbidden(self, dataset: Dataset, run_id: str | None) -> bool:
        if run_id is None or not self._options.revoke:
            return False
        in_rag, in_sft, _ = self._work.verdicts(run_id, self._options)
        verdict = in_rag if dataset is Dataset.RAG else in_sft
        return verdict is not None and self._options.forbids(dataset, verdict)

    def _holder(self, dataset: Dataset, row: WorkRow) -> int | None:
        if row.sample_key is None:
            return None
        taken = self._taken[dataset]
        if row.sample_key in taken:
            return taken[row.sample_key]
        return row.rag_holder if dataset is Dataset.RAG else row.sft_holder

    # from outcome to change

    def _settle(self, dataset: Dataset, row: WorkRow, outcome: Outcome) -> tuple[int, bytes, int]:
        """Turn an outcome into changes; returns the row's code, line digest and batch from now on."""
        recorded = _recorded(dataset, row)
        if recorded.code is not None and isinstance(outcome, Hold) and self._is_frozen(dataset, row, outcome):
            return recorded.code, recorded.line, recorded.batch
        if isinstance(outcome, Ship):
            settled = self._ship(dataset, row, recorded, outcome)
        else:
            settled = self._hold(dataset, row, recorded, outcome)
        if recorded.code is None:
            self._out.totals[dataset, "live", settled[0]] += 1
        elif recorded.code != settled[0]:
            self._out.totals[dataset, "live", recorded.code] -= 1
            self._out.totals[dataset, "live", settled[0]] += 1
        return settled

    def _is_frozen(self, dataset: Dataset, row: WorkRow, outcome: Hold) -> bool:
        """Whether the evidence is absent, not gone: then what became of the row stays as it is (SPEC 3)."""
        absent = row.evidence_digest is not None and not row.evidence_found
        return outcome.gate == "evidence" and (absent or bool(row.kept & _KEPT_BITS[dataset]))

    def _ship(self, dataset: Dataset, row: WorkRow, recorded: _Recorded, ship: Ship) -> tuple[int, bytes, int]:
        key = row.sample_key or 0
        changes = self._out.changes[dataset]
        holder = self._holder(dataset, row)
        if holder is not None and holder > row.walk:
            heapq.heappush(self._joined, holder)
        standing = self._standing(dataset, row, key, holder)
        if recorded.code is not None and recorded.code != SHIPPED:
            changes.removed_held[recorded.line] += 1
        self._taken[dataset][key] = row.walk
        self._shipped_now[dataset].add(key)
        if standing is not None:
            owner, line, batch = standing
            if digest_of(self._stamped(dataset, key, ship, batch)) == line:
                return SHIPPED, line, batch
            changes.removed_keys[key] = line
            self._out.unadopted.append((dataset, key))
            self._publish(dataset, key, self._cause_of_change(row, owner), batch, row.run_id, replaced=True)
        line_bytes = ship.line(self._out.recorded_at)
        changes.shipped.add(line_bytes)
        if row.run_id:
            self._out.shipped_runs.setdefault(dataset, []).append(row.run_id)
        return SHIPPED, digest_of(line_bytes), self._out.sequence

    def _standing(self, dataset: Dataset, row: WorkRow, key: int, holder: int | None) -> tuple[str, bytes, int] | None:
        """The line that this id has now: whose it was ('own' or another), its digest and its batch."""
        freed = self._freed[dataset].pop(key, None)
        if freed is not None:
            return "other", freed.line, freed.batch
        if holder == row.walk:
            recorded = _recorded(dataset, row)
            return ("own", recorded.line, recorded.batch) if recorded.code == SHIPPED else None
        if holder is not None:
            held = _recorded(dataset, self._work.row(holder))
            self._out.released[dataset].append(holder)
            return "other", held.line, held.batch
        loose = self._work.frozen_standing(dataset, key) if self._loose else None
        return self._take_loose(dataset, loose) if loose else None

    def _take_loose(self, dataset: Dataset, loose: Standing) -> tuple[str, bytes, int]:
        if loose.owner == "frozen":
            self._out.frozen_left.append((dataset, loose.owner_id))
            self._out.totals[dataset, "frozen", SHIPPED] -= 1
        else:
            self._out.departures.append(loose.owner_id)
            self._out.totals[dataset, "departing", SHIPPED] -= 1
        return "other", loose.line, loose.batch

    def _hold(self, dataset: Dataset, row: WorkRow, recorded: _Recorded, hold: Hold) -> tuple[int, bytes, int]:
        changes = self._out.changes[dataset]
        key = row.sample_key
        if recorded.code is not None and recorded.code != SHIPPED:
            if digest_of(hold.line(self._stamp(recorded.batch))) == recorded.line:
                if recorded.code == DUPLICATE and key is not None:
                    self._wake_next(dataset, row, key)
                return REASON_CODES[hold.reason], recorded.line, recorded.batch
            changes.removed_held[recorded.line] += 1
        line = hold.line(self._out.recorded_at)
        changes.held.add(line)
        if recorded.code == SHIPPED and key is not None:
            self._release(dataset, row, recorded, key, hold)
        elif recorded.code == DUPLICATE and key is not None:
            self._wake_next(dataset, row, key)
        return REASON_CODES[hold.reason], digest_of(line), self._out.sequence

    def _release(self, dataset: Dataset, row: WorkRow, recorded: _Recorded, key: int, hold: Hold) -> None:
        """A row that shipped ships no more; if no other row took its id in this batch, the line is free."""
        self._out.released[dataset].append(row.walk)
        if key in self._shipped_now[dataset]:
            return
        self._taken[dataset][key] = None
        self._free(dataset, key, recorded.line, recorded.batch, row.run_id, self._cause_of_hold(row, hold))
        self._wake(dataset, key, -1)

    def _free(self, dataset: Dataset, key: int, line: bytes, batch: int, run_id: str | None, cause: Cause) -> None:
        verdict = None
        if cause is Cause.REVOKED and run_id is not None:
            in_rag, in_sft, _ = self._work.verdicts(run_id, self._options)
            category = in_rag if dataset is Dataset.RAG else in_sft
            verdict = self._work.verdict_place(run_id, category) if category else None
        withdrawal = Withdrawal(
            dataset, key, cause, False, source_run_id=run_id, verdict=verdict, shipped_batch=batch or None
        )
        self._freed[dataset][key] = _Freed(line, batch, withdrawal)

    def _wake_next(self, dataset: Dataset, row: WorkRow, key: int) -> None:
        if self._holder(dataset, row) is None:
            self._wake(dataset, key, row.walk)

    def _wake(self, dataset: Dataset, key: int, after: int) -> None:
        waiter = self._work.waiter_after(dataset, key, after)
        while waiter is not None and waiter in self._done:
            waiter = self._work.waiter_after(dataset, key, waiter)
        if waiter is not None:
            heapq.heappush(self._joined, waiter)

    def _cause_of_hold(self, row: WorkRow, hold: Hold) -> Cause:
        if hold.gate == "revoked":
            return Cause.REVOKED
        if row.evidence_changed and hold.gate in _NEEDS_EVIDENCE:
            return Cause.EVIDENCE_CHANGED
        if hold.gate == "duplicate":
            return Cause.DISPLACED
        if self._options_changed:
            return Cause.OPTIONS_CHANGED
        return Cause.EVIDENCE_CHANGED if row.evidence_changed else Cause.UNDONE

    def _cause_of_change(self, row: WorkRow, owner: str) -> Cause:
        if owner != "own":
            return Cause.DISPLACED
        if self._options_changed and not row.evidence_changed:
            return Cause.OPTIONS_CHANGED
        return Cause.EVIDENCE_CHANGED

    def _publish(
        self, dataset: Dataset, key: int, cause: Cause, batch: int, run_id: str | None, *, replaced: bool
    ) -> None:
        self._out.withdrawals.append(
            Withdrawal(dataset, key, cause, replaced, source_run_id=run_id, shipped_batch=batch or None)
        )

    def _stamped(self, dataset: Dataset, key: int, ship: Ship, batch: int) -> bytes:
        if batch == 0:
            adopted = self._work.adopted(dataset, key)
            return ship.line(*adopted) if adopted else b""
        return ship.line(self._stamp(batch))

    def _stamp(self, batch: int) -> str:
        if batch not in self._stamps:
            self._stamps |= self._work.stamps([batch])
        return self._stamps[batch]


def _recorded(dataset: Dataset, row: WorkRow) -> _Recorded:
    if dataset is Dataset.RAG:
        return _Recorded(row.rag, row.rag_line or b"", row.rag_batch or 0)
    return _Recorded(row.sft, row.sft_line or b"", row.sft_batch or 0)
