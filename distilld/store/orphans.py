"""Take over exports that no store knows: orphans, older withdrawals, verdicts in old quarantine files (SPEC 3.11)."""

from __future__ import annotations

from typing import NamedTuple

from distilld.core.line_facts import CATEGORIES, CATEGORY_CODES, EXPORTED, NO_CONTENT, REASON_CODES
from distilld.core.model import ROW_DATASETS, Category, Dataset, InputKind, Options, Reason, RowRef, StatFacts
from distilld.store.connection import Store
from distilld.store.decisions import PublishedWithdrawal
from distilld.store.departures import Departures
from distilld.store.inputs import FileRecord, Inputs
from distilld.store.statements import Statements
from distilld.store.verdicts import forbidding_codes, overruled
from distilld.store.walk_order import place_partitions
from distilld.store.withdrawals import WITHDRAWAL, columns_of


class Orphan(NamedTuple):
    """A row of an export that no store knows: from an older exporter, or from before a store was lost."""

    key: int
    digest: bytes
    run_id: str
    other_run_id: str | None
    task_id: str | None
    created_at: str
    recorded_at: str


class ToldVerdict(NamedTuple):
    """A verdict from a row of an old quarantine file; if given, the place and reason of the quarantined row."""

    run_ids: tuple[str, ...]
    category: Category
    at: RowRef | None
    reason: Reason | None
    is_malformed: bool
    """Whether the row's line is malformed: it can forbid several runs, and names none."""


class Orphans(Statements):
    """Takes over older exports, and decides on their rows when all inputs are judged."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._departures = Departures(store)
        self._inputs = Inputs(store)

    def stage(self) -> None:
        """Begin to stage a file that no store knows."""
        self._stage(
            "arrivals",
            "(sample_key INTEGER PRIMARY KEY, line BLOB, run_id TEXT, other_run_id TEXT, task_id TEXT, created_at TEXT,"
            " recorded_at TEXT)",
        )
        self._stage("history", f"AS SELECT {WITHDRAWAL} FROM withdrawals LIMIT 0")

    def add_row(self, orphan: Orphan) -> bool:
        """Stage a row of an export; return False if its id was staged before."""
        return bool(self._run("INSERT OR IGNORE INTO arrivals VALUES (?, ?, ?, ?, ?, ?, ?)", orphan).rowcount)

    def add_withdrawal(self, withdrawal: PublishedWithdrawal) -> None:
        """Stage a line of an older log of withdrawals."""
        self._run("INSERT INTO history VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", columns_of(withdrawal))

    def take_rows(self, dataset: Dataset) -> None:
        """Store the staged rows as orphans of this dataset."""
        if dataset is Dataset.PREFERENCE:
            rows = self._run(
                "INSERT INTO pairs (task_id, slot, retained, chosen_run_id, rejected_run_id, rejected_category, sample_key,"
                f" outcome, line, batch) SELECT coalesce(task_id, ''), 0, 'orphan', run_id, coalesce(other_run_id, ''), 0,"
                f" sample_key, {EXPORTED}, line, 0 FROM arrivals"
            ).rowcount
        else:
            rows = self._run(
                f"INSERT INTO retained_rows (kind, start_byte, length_bytes, digest, run_id, sample_key, {dataset},"
                f" {dataset}_line, {dataset}_batch) SELECT 'orphan', 0, 0, x'', run_id, sample_key, {EXPORTED}, line, 0"
                " FROM arrivals"
            ).rowcount
        self._run(
            "INSERT INTO adopted_rows SELECT ?, sample_key, created_at, recorded_at FROM arrivals", (dataset.value,)
        )
        self._departures.add_total(dataset.value, "retained", EXPORTED, rows)
        self._unstage("arrivals")

    def take_withdrawals(self) -> None:
        """Store the staged lines as withdrawals from before this store, numbered up to 0 so that they are not news."""
        self._run(
            f"INSERT INTO withdrawals (withdrawal_id, {WITHDRAWAL}) SELECT (SELECT min(coalesce(min(withdrawal_id), 1), 1)"
            f" FROM withdrawals) - row_number() OVER (ORDER BY rowid DESC), {WITHDRAWAL} FROM history"
        )
        self._unstage("history")

    def stage_verdicts(self) -> None:
        """Begin to stage verdicts from old quarantine files."""
        self._stage(
            "told",
            "(dataset TEXT, path TEXT, line INTEGER, run_id TEXT, category INTEGER, outcome INTEGER, digest BLOB,"
            " source BLOB, UNIQUE (dataset, path, line))",
        )
        self._stage("told_runs", "(run_id TEXT, digest BLOB, category INTEGER)")

    def add_verdict(self, dataset: Dataset, verdict: ToldVerdict, digest: bytes, *, stays: bool) -> bool:
        """Stage a verdict and its quarantine row's digest; return False if the row is staged already.

        The digest of a malformed line is not known, so that of its quarantine row stands for it.
        """
        partition, number = verdict.at or (None, None)
        outcome = REASON_CODES[verdict.reason] if verdict.reason is not None else None
        code = CATEGORY_CODES[verdict.category]
        run_id, line = (None, digest) if verdict.is_malformed else (verdict.run_ids[0], b"")
        is_first = self._run(
            "INSERT OR IGNORE INTO told VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (dataset.value, partition, number, run_id, code, outcome, digest if stays else None, line),
        ).rowcount
        if is_first:
            self._many("INSERT INTO told_runs VALUES (?, ?, ?)", [(each, line, code) for each in verdict.run_ids])
        return bool(is_first)

    def take_verdicts(self) -> None:
        """Apply the staged verdicts: to orphans at once, and to all rows of their runs until their partitions are read.

        A partition counts as absent until then; only line, run and verdict of its rows are known. When it is read, it
        is indexed as a rewritten file.
        """
        for run_id, code in self._run("SELECT DISTINCT run_id, category FROM told_runs").fetchall():
            self._forbid_orphans(run_id, CATEGORIES[code])
        paths = self._column("SELECT DISTINCT path FROM told WHERE path IS NOT NULL")
        for path, place in place_partitions(self._store, paths).items():
            facts, content = StatFacts(0, 0, 0, 0, 0), NO_CONTENT._replace(sha256="")
            self._inputs.write_file(FileRecord(*place, path, InputKind.SCORED, "absent", facts, content))
        line = "max(t.digest) FILTER (WHERE t.dataset = '{0}')"
        outcome = "max(t.outcome) FILTER (WHERE t.dataset = '{0}' AND t.digest IS NOT NULL)"
        self._run(
            "INSERT INTO retained_rows (kind, partition_id, line, start_byte, length_bytes, digest, run_id, category,"
            " rag, rag_line, rag_batch, sft, sft_line, sft_batch)"
            " SELECT 'absent', p.partition_id, t.line, 0, 0, min(t.source), min(t.run_id), min(t.category),"
            f" {outcome.format('rag')}, {line.format('rag')}, iif({line.format('rag')} IS NULL, NULL, 0),"
            f" {outcome.format('sft')}, {line.format('sft')}, iif({line.format('sft')} IS NULL, NULL, 0)"
            " FROM told t CROSS JOIN partitions p ON p.path = t.path GROUP BY p.partition_id, t.line"
        )
        staying = "SELECT dataset, outcome, count(*) FROM told WHERE digest IS NOT NULL GROUP BY 1, 2"
        for dataset, code, rows in self._run(staying).fetchall():
            self._departures.add_total(dataset, "retained", code, rows)
        self._run("INSERT OR IGNORE INTO malformed_runs SELECT run_id, digest FROM told_runs WHERE digest <> x''")
        self._unstage("told", "told_runs")

    def _forbid_orphans(self, run_id: str, category: Category) -> None:
        """Forbid a run's orphans: an old quarantine file says that it was rejected or never reviewed."""
        self._run(
            "UPDATE retained_rows SET category = ? WHERE run_id = ? AND kind = 'orphan' AND coalesce(category, 0) <> ?",
            (CATEGORY_CODES[category], run_id, CATEGORY_CODES[Category.REJECTED]),
        )
        # Without the index's name, SQLite looks at all orphans for each run.
        self._run(
            "UPDATE pairs INDEXED BY pairs_by_chosen_run SET rejected_category = -1"
            " WHERE chosen_run_id = ? AND retained = 'orphan'",
            (run_id,),
        )

    def undecided(self) -> bool:
        """Return whether any orphan is undecided."""
        return self._holds(
            "EXISTS (SELECT 1 FROM retained_rows WHERE kind = 'orphan' AND accepted = 0)"
            " OR EXISTS (SELECT 1 FROM pairs WHERE retained = 'orphan' AND accepted = 0)"
        )

    def settle(self, options: Options) -> int:
        """Withdraw orphans whose runs the inputs name, or that a verdict forbids; call it once every input is judged.

        Mark the others as decided; return how many leave.
        """
        gone = 0
        for dataset in ROW_DATASETS:
            codes = forbidding_codes(options, dataset)
            where = (
                f"kind = 'orphan' AND accepted = 0 AND {dataset} IS NOT NULL AND (EXISTS (SELECT 1 FROM scored_rows s"
                f" WHERE s.run_id = retained_rows.run_id) OR category IN ({codes}))"
            )
            cause = f"CASE WHEN category IN ({codes}) THEN 'revoked' ELSE 'rescored' END"
            gone += self._departures.move_rows(dataset, where, cause)
        gone += self._departures.move_pairs(
            "retained = 'orphan' AND accepted = 0 AND (rejected_category = -1 OR EXISTS (SELECT 1 FROM scored_rows s"
            " WHERE s.run_id = pairs.chosen_run_id) OR EXISTS (SELECT 1 FROM scored_rows s"
            " WHERE s.run_id = pairs.rejected_run_id))",
            f"CASE WHEN rejected_category = -1 OR {overruled()} THEN 'revoked' ELSE 'rescored' END",
        )
        self._run("UPDATE retained_rows SET accepted = 1 WHERE kind = 'orphan' AND accepted = 0")
        self._run("UPDATE pairs SET accepted = 1 WHERE retained = 'orphan' AND accepted = 0")
        return gone
