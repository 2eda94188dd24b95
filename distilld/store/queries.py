"""Read-only queries for people (SPEC 4): status, summaries, lists."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson

from distilld.core.line_facts import CATEGORIES, CATEGORY_CODES, DUPLICATE, EXPORTED, VERDICTS
from distilld.core.model import ROW_DATASETS, Category, Cause, Dataset, InputKind, Reason, RowRef
from distilld.store.connection import Form, Store
from distilld.store.receipts import BatchRecord
from distilld.store.statements import Statements


class Pairing(NamedTuple):
    """How many task ids have an exported pair, and how many have rows but no pair to try."""

    tasks_paired: int
    tasks_insufficient: int


class QuarantineCount(NamedTuple):
    """Rows of a dataset's quarantine with one reason."""

    dataset: Dataset
    reason: Reason
    rows: int


class TreeSummary(NamedTuple):
    """What is known about one input tree as of the last look."""

    kind: InputKind
    present: int
    absent: int
    lines: int
    malformed_lines: int
    unjudged_lines: int
    size_bytes: int


class KeptReceipt(NamedTuple):
    """A receipt as stored."""

    batch: BatchRecord
    content: bytes
    sha256: str
    written: bool

    def is_changed(self) -> bool:
        """Return whether it was changed in the store."""
        return hashlib.sha256(self.content).hexdigest() != self.sha256

    def facts(self) -> dict[str, Any]:
        """Return what it says; nothing if it was changed in the store, or is no receipt."""
        try:
            found = None if self.is_changed() else orjson.loads(self.content)
        except orjson.JSONDecodeError:
            found = None
        return found if isinstance(found, dict) else {}


class PublishedLine(NamedTuple):
    """A withdrawal as it was published."""

    withdrawn_at: str
    withdrawn_batch: str
    dataset: str
    id: str
    cause: str
    source_run_id: str | None
    chosen_run_id: str | None
    rejected_run_id: str | None


class Withdrawn(NamedTuple):
    """A row that left a dataset or was replaced under its id."""

    dataset: Dataset
    id: str
    source_run_id: str | None
    chosen_run_id: str | None
    rejected_run_id: str | None
    cause: Cause
    replaced: bool


@contextmanager
def reading(path: Path, root: Path) -> Iterator[Store]:
    """Read one committed state of a root's store, with or without a running writer.

    Raises:
        OperatorError: There is no store, or it cannot be read.
        StoreTooNewError: A newer distilld wrote it.
        StoreOfOtherRootError: It belongs to another root.
    """
    with Store.reading(path) as store:
        Form(store).refuse_other_root(root)
        yield store


_END_OF_TIME: Final = "9999-12-31T23:59:59.999Z"


class Views(Statements):
    """Reads the store for people; each method answers one question."""

    # inputs

    def trees(self) -> list[TreeSummary]:
        """Return the summaries of both input trees, the scored one first."""
        rows = self._run(
            "SELECT kind, count(*) FILTER (WHERE state = 'present'), count(*) FILTER (WHERE state = 'absent'),"
            " coalesce(sum(lines) FILTER (WHERE state = 'present'), 0),"
            " coalesce(sum(malformed_lines) FILTER (WHERE state = 'present'), 0),"
            " coalesce(sum(unjudged_lines) FILTER (WHERE state = 'present'), 0),"
            " CAST(total(size_bytes) FILTER (WHERE state = 'present') AS INTEGER) FROM file_lag GROUP BY kind"
        )
        found = {InputKind(row[0]): TreeSummary(InputKind(row[0]), *row[1:]) for row in rows}
        return [found.get(kind, TreeSummary(kind, 0, 0, 0, 0, 0, 0)) for kind in InputKind]

    # outcomes

    def pairing(self) -> Pairing:
        """Return the preference exporter's two counts of task ids."""
        paired, tried = self._run(
            f"SELECT count(DISTINCT task_id) FILTER (WHERE outcome = {EXPORTED}),"
            " count(DISTINCT task_id) FILTER (WHERE retained IS NULL) FROM pairs"
        ).fetchone()
        tasks = self._number(
            "SELECT count(DISTINCT task_id) FROM scored_rows WHERE task_id IS NOT NULL AND evidence_found = 1"
        )
        return Pairing(paired, tasks - tried)

    def quarantine(self, dataset: Dataset | None = None, reason: Reason | None = None) -> list[QuarantineCount]:
        """Return quarantined rows by dataset and reason in the contract's order; zero counts are left out."""
        found = {
            (Dataset(of), Reason(why)): rows
            for of, why, rows in self._run("SELECT dataset, reason, rows FROM quarantine_by_reason")
        }
        return [
            QuarantineCount(of, why, found[of, why])
            for of in Dataset
            for why in Reason
            if (of, why) in found and dataset in (None, of) and reason in (None, why)
        ]

    def waiting_to_leave(self) -> int:
        """Return how many rows are in a dataset although a verdict may now forbid them, or their scored row is gone.

        Pairs whose tasks wait and rows still to be overwritten count too. A row that waits to be judged may stay.
        """
        return self._number(
            "SELECT (SELECT count(*) FROM rejudge_rows q CROSS JOIN scored_rows s USING (walk) WHERE q.forced = 1"
            f" AND (s.rag = {EXPORTED} OR s.sft = {EXPORTED}))"
            " + (SELECT count(*) FROM rejudge_tasks q CROSS JOIN pairs p USING (task_id) WHERE q.forced = 1"
            f" AND p.outcome = {EXPORTED}) + (SELECT count(*) FROM departures WHERE outcome = {EXPORTED})"
            " + (SELECT count(*) FROM overwrites WHERE name IN ('rag', 'sft', 'preference'))"
        )

    def is_to_leave(self, run_id: str) -> bool:
        """Return whether the next batch first judges a run's exports: they depart, or a verdict may forbid them."""
        return self._holds(
            "EXISTS (SELECT 1 FROM scored_rows s CROSS JOIN rejudge_rows q USING (walk)"
            " WHERE s.run_id = ?1 AND q.forced = 1)"
            " OR EXISTS (SELECT 1 FROM retained_rows f CROSS JOIN rejudge_retained q USING (retained_id) WHERE f.run_id = ?1)"
            " OR EXISTS (SELECT 1 FROM pairs p CROSS JOIN rejudge_tasks q USING (task_id)"
            "  WHERE (p.chosen_run_id = ?1 OR p.rejected_run_id = ?1) AND q.forced = 1)"
            " OR EXISTS (SELECT 1 FROM departures WHERE ?1 IN (run_id, other_run_id))",
            run_id,
        )

    # batches

    def receipts(self, limit: int | None, *, until: str = _END_OF_TIME) -> Iterator[KeptReceipt]:
        """Yield the newest receipts until a time, newest first, up to ``limit``; None for all."""
        # As a blob: damaged text may not be UTF-8. Batches outlast their receipts, so older ones are left out.
        rows = self._run(
            f"SELECT {', '.join(BatchRecord._fields)}, CAST(receipt AS BLOB), receipt_sha256, written FROM batches CROSS JOIN receipts"
            " USING (batch) WHERE batch >= (SELECT min(batch) FROM receipts) AND recorded_at <= ?"
            " ORDER BY batch DESC LIMIT ?",
            (until, -1 if limit is None else limit),
        )
        width = len(BatchRecord._fields)
        for row in rows:
            yield KeptReceipt(BatchRecord._make(row[:width]), row[width], row[width + 1], bool(row[width + 2]))

    def rows_at(self, moment: str) -> dict[str, int]:
        """Return the row counts of the datasets at a time; empty if no kept receipt goes back that far."""
        return {
            dataset: figures.get("rows", figures.get("shipped"))  # older versions used another key
            for receipt in self.receipts(1, until=moment)
            for dataset, figures in receipt.facts().get("record_counts", {}).get("per_exporter", {}).items()
        }

    def withdrawals_since(self, moment: str, limit: int | None) -> tuple[int, list[PublishedLine]]:
        """Return how many rows left the datasets after a time, and the newest ``limit`` (None: all), oldest first."""
        # Numbers from 1 on are in the order of time. Those before 1 are older, and in the order of the datasets.
        before = self._number(
            f"SELECT coalesce(max(withdrawal_id), {-(1 << 62)}) FROM withdrawals"
            " WHERE withdrawal_id > 0 AND withdrawn_at <= ?",
            moment,
        )
        after = "FROM withdrawals WHERE withdrawal_id > ?1 AND replaced = 0 AND withdrawn_at > ?2"
        rows = self._run(
            f"SELECT {', '.join(PublishedLine._fields)} {after} ORDER BY withdrawn_at DESC, withdrawal_id DESC LIMIT ?3",
            (before, moment, -1 if limit is None else limit),
        ).fetchall()
        count = self._number(f"SELECT count(*) {after}", before, moment)
        return count, [PublishedLine._make(row) for row in reversed(rows)]

    def runs_of(self, sample_id: str) -> list[str]:
        """Return the runs that withdrawals of an id name."""
        rows = self._run(
            "SELECT coalesce(source_run_id, chosen_run_id), rejected_run_id FROM withdrawals WHERE id = ?", (sample_id,)
        )
        return list(dict.fromkeys(run_id for row in rows for run_id in row if run_id is not None))

    def last_options(self) -> dict[str, Any] | None:
        """Return the options of the newest batch whose receipt is kept, or None if it is damaged, or there is none."""
        newest = next(self.receipts(1), None)
        return None if newest is None else newest.facts().get("options")

    # withdrawals

    def last_withdrawal(self) -> int:
        """Return the number of the newest withdrawal, or 0 if there is none."""
        return self._number("SELECT coalesce(max(withdrawal_id), 0) FROM withdrawals")

    def exported_only_of(self, dataset: Dataset, category: Category) -> int:
        """Return how many present rows of a category are in a dataset whose id no row of another category waits for."""
        another = f"w.sample_key = s.sample_key AND +w.{dataset} = {DUPLICATE} AND w.category <> s.category"
        return self._number(
            f"SELECT count(*) FROM scored_rows s WHERE s.{dataset} = {EXPORTED} AND s.category = ?"
            f" AND NOT EXISTS (SELECT 1 FROM scored_rows w WHERE {another})",
            CATEGORY_CODES[category],
        )

    def causes_since(self, withdrawal: int) -> dict[tuple[Dataset, Cause, bool], int]:
        """Count withdrawals after a number, by dataset, cause and whether the row was replaced under its id."""
        rows = self._run(
            "SELECT dataset, cause, replaced, count(*) FROM withdrawals WHERE withdrawal_id > ? GROUP BY 1, 2, 3",
            (withdrawal,),
        )
        return {(Dataset(dataset), Cause(cause), bool(replaced)): count for dataset, cause, replaced, count in rows}

    def withdrawn_since(self, withdrawal: int, limit: int | None) -> list[Withdrawn]:
        """Return the rows that ``causes_since`` counts, in the order in which they left; None for all."""
        rows = self._run(
            f"SELECT {', '.join(Withdrawn._fields)} FROM withdrawals WHERE withdrawal_id > ? ORDER BY withdrawal_id LIMIT ?",
            (withdrawal, -1 if limit is None else limit),
        )
        return [Withdrawn._make((Dataset(of), *ids, Cause(cause), bool(again))) for of, *ids, cause, again in rows]


class KeptLine(NamedTuple):
    """A line of a retained row.

    ``row`` is the scored line's digest, empty for vanished rows and orphans; a present copy counts instead.
    For an orphan, ``told`` is the category that an old quarantine file gives its run.
    """

    dataset: Dataset
    outcome: int
    line: bytes
    sample_key: int | None
    at: RowRef | None
    run_id: str | None
    row: bytes
    is_orphan: bool
    told: Category | None


class KeptPair(NamedTuple):
    """A retained pair."""

    outcome: int
    line: bytes
    sample_key: int
    chosen_run_id: str
    rejected_run_id: str
    rejected: Category | None
    is_orphan: bool


class Exceptions(Statements):
    """Reads the lines of retained rows (SPEC 3) for the deep verify."""

    def verdicts(self) -> Iterator[tuple[RowRef, str, Category, bytes, bool, bool]]:
        """Yield the verdicts of absent partitions: place, run, category, digest, whether in a malformed line, in a rest."""
        for path, line, run_id, category, digest, malformed in self._run(
            "SELECT p.path, f.line, f.run_id, f.category, f.digest, 0 FROM retained_rows f CROSS JOIN partitions p"
            " USING (partition_id) WHERE f.kind = 'absent' AND f.run_id IS NOT NULL AND f.category IS NOT NULL"
            " UNION ALL SELECT p.path, f.line, m.run_id, f.category, f.digest, 1 FROM malformed_runs m"
            " CROSS JOIN retained_rows f ON f.digest = m.digest AND f.run_id IS NULL"
            " CROSS JOIN partitions p USING (partition_id) WHERE f.kind = 'absent' AND f.category IS NOT NULL"
            " UNION ALL SELECT p.path, f.indexed_lines, m.run_id, f.rest_category, f.rest_digest, 2 FROM malformed_runs m"
            " CROSS JOIN files f ON f.rest_digest = m.digest AND f.rest_category IS NOT NULL AND f.state = 'absent'"
            " CROSS JOIN partitions p USING (partition_id)"
        ):
            yield RowRef(path, line), run_id, VERDICTS[category], digest, malformed > 0, malformed == 2

    def rows(self) -> Iterator[KeptLine]:
        """Yield the lines of rows that are in no present partition."""
        return self._lines(
            "SELECT f.{0}, f.{0}_line, f.sample_key, p.path, f.line, f.run_id,"
            " CASE f.kind WHEN 'absent' THEN f.digest ELSE x'' END, f.kind = 'orphan',"
            " CASE f.kind WHEN 'orphan' THEN f.category END FROM retained_rows f"
            " LEFT JOIN partitions p USING (partition_id) WHERE f.{0} IS NOT NULL"
        )

    def rows_without_evidence(self) -> Iterator[KeptLine]:
        """Yield the lines of present rows whose evidence is absent."""
        return self._lines(
            "SELECT r.{0}, r.{0}_line, r.sample_key, r.partition, r.line, r.run_id, r.digest, 0, NULL"
            " FROM row_places r"
            " WHERE r.{0} IS NOT NULL AND r.evidence_found = 0 AND EXISTS (SELECT 1 FROM evidence_rows e"
            " WHERE e.partition_id = r.partition_id AND e.run_id = r.run_id)"
        )

    def _lines(self, query: str) -> Iterator[KeptLine]:
        for dataset in ROW_DATASETS:
            for outcome, line, key, path, number, run_id, digest, orphan, told in self._run(query.format(dataset)):
                at = RowRef(path, number) if path is not None else None
                yield KeptLine(dataset, outcome, line, key, at, run_id, digest, bool(orphan), CATEGORIES.get(told))

    def pairs(self) -> Iterator[KeptPair]:
        """Yield the lines of retained pairs."""
        for outcome, line, key, chosen, rejected, category, retained in self._run(
            "SELECT outcome, line, sample_key, chosen_run_id, rejected_run_id, rejected_category, retained FROM pairs"
            " WHERE retained IS NOT NULL"
        ):
            yield KeptPair(outcome, line, key, chosen, rejected, CATEGORIES.get(category), retained == "orphan")
