"""The queues: rows and tasks whose outcome a change of facts can change, and that are judged again for this reason.

Queue entries are written in the transaction that changes the facts, so that a crash between indexing and judging loses
nothing.
"""

from __future__ import annotations

from typing import Final

from distilld.core.line_facts import CATEGORY_CODES, DUPLICATE, EXPORTED, REASON_CODES
from distilld.core.model import ROW_DATASETS, Category, Dataset, Options, Reason
from distilld.store.counts import Counts
from distilld.store.schema import BEHIND_ID, HOLDS_RAG
from distilld.store.verdicts import is_forbidden

CAN_HAVE_PAIRS: Final = "{0}.task_id IS NOT NULL AND ({0}.evidence_found = 1 OR EXISTS (SELECT 1 FROM pairs p WHERE p.task_id = {0}.task_id))"
"""SQL for whether a row's task may have pairs; if the row's evidence is absent, these can be retained pairs."""
HAS_OUTCOME: Final = "(s.rag IS NOT NULL OR s.sft IS NOT NULL)"
"""SQL for whether row ``s`` was judged; it may have lost its outcome in one dataset since, and waits then."""
ORDER_MATTERS: Final = (
    "EXISTS (SELECT 1 FROM totals WHERE dataset = 'preference' AND state = 'live' AND rows > 0"
    f" AND outcome IN ({DUPLICATE}, {REASON_CODES[Reason.SCHEMA_VIOLATION]}))"
)
"""SQL for whether the order of tasks can change the outcome of any pair; SQLite evaluates it once per statement."""
EVIDENCE_PRUNED: Final = 2
"""In ``rejudge_rows.evidence_changed``: an operator gave up the row's evidence; it is published as pruned."""


def _rows_after(condition: str) -> tuple[str, str]:
    """Return SQL for the places after ?2 of rows with the id ?1: of those that hold it in RAG, and of all others.

    The index separates the two, and each part is in walk order.
    """
    rows = f"SELECT walk FROM scored_rows INDEXED BY scored_rows_by_key WHERE sample_key = ?1 AND walk > ?2 AND {condition}"
    return f"{rows} AND {HOLDS_RAG} = 0", f"{rows} AND {HOLDS_RAG} IS NULL"


def first_waiter(dataset: str) -> str:
    """Return SQL for the first row after place ?2 that is quarantined because another row has the id ?1.

    Without the plus sign, SQLite puts the code into the index's expression and no longer recognizes the expression.
    """
    holder, others = _rows_after(f"+{dataset} = {DUPLICATE}")
    return f"SELECT min(walk) AS walk FROM ({holder} UNION ALL SELECT * FROM ({others} ORDER BY walk LIMIT 1))"


def rows_behind(dataset: str) -> str:
    """Return SQL for rows after place ?2 with the id ?1 that fail a gate after the id gate: duplicates if it is held."""
    return " UNION ALL ".join(_rows_after(BEHIND_ID[dataset]))


class Queues(Counts):
    """Queues what must be judged again."""

    def add_all(self, options: Options) -> None:
        """Queue every judged row and every task; exported rows that a verdict may now forbid come first."""
        self._run(
            "INSERT INTO rejudge_rows (walk, forced) SELECT walk, "
            f"CASE WHEN rag = {EXPORTED} OR sft = {EXPORTED} THEN {is_forbidden('s.run_id', options, *ROW_DATASETS)}"
            f" ELSE 0 END FROM scored_rows s WHERE {HAS_OUTCOME}"
            " ON CONFLICT (walk) DO UPDATE SET forced = max(forced, excluded.forced)"
        )
        self._run(
            f"INSERT INTO rejudge_tasks SELECT DISTINCT task_id, 1 FROM pairs WHERE outcome = {EXPORTED}"
            f" AND {is_forbidden('pairs.chosen_run_id', options, Dataset.PREFERENCE)}"
            " ON CONFLICT (task_id) DO UPDATE SET forced = 1"
        )
        self.add_tasks("pairs", "1")
        self._run(
            "INSERT OR IGNORE INTO rejudge_tasks SELECT task_id, 0 FROM scored_rows"
            " WHERE task_id IS NOT NULL AND evidence_found = 1 AND category IS NOT NULL GROUP BY task_id"
            f" HAVING max(category = {CATEGORY_CODES[Category.ACCEPTED]}) AND max(category IN"
            f" ({CATEGORY_CODES[Category.REJECTED]}, {CATEGORY_CODES[Category.PARTIALLY_ACCEPTED]}))"
        )
        # Whether the inputs name an orphan's run is asked when all is judged. A malformed line names none, but forbids.
        self._run(
            "INSERT OR IGNORE INTO rejudge_retained SELECT retained_id FROM retained_rows WHERE kind <> 'orphan' OR run_id IN"
            " (SELECT run_id FROM (SELECT DISTINCT run_id FROM retained_rows WHERE kind = 'orphan') o"
            f" WHERE {is_forbidden('o.run_id', options, *ROW_DATASETS)})"
        )
        self._run("UPDATE retained_rows SET accepted = 0 WHERE kind = 'orphan' AND accepted = 1")
        self._run("UPDATE pairs SET accepted = 0 WHERE retained = 'orphan' AND accepted = 1")

    def add_rows(self, source: str, *values: object) -> None:
        """Queue the rows of a source by their places; ``source`` is the SQL after FROM."""
        self._run(f"INSERT OR IGNORE INTO rejudge_rows (walk, forced) SELECT walk, 0 FROM {source}", values)

    def add_tasks(self, table: str, where: str, *values: object) -> None:
        """Queue the tasks of some rows of a table."""
        tasks = f"SELECT DISTINCT task_id, 0 FROM {table} WHERE {where}"
        self._run(f"INSERT OR IGNORE INTO rejudge_tasks {tasks}", values)

    def drop_rows(self, where: str) -> None:
        """Delete scored rows, which a condition on ``walk`` selects.

        If a queued row among them waits for an id, no other row may be queued for it: queue the next one that waits.
        """
        woken = [
            (dataset, key)
            for dataset in ROW_DATASETS
            for key in self._column(
                f"SELECT DISTINCT d.sample_key FROM (SELECT * FROM scored_rows WHERE {where}) d"
                f" CROSS JOIN rejudge_rows q ON q.walk = d.walk WHERE d.{dataset} = {DUPLICATE}"
            )
        ]
        self.count_rows_of("scored_rows", where, -1)
        self._run(f"DELETE FROM scored_rows WHERE {where}")
        self._run(f"DELETE FROM rejudge_rows WHERE {where}")
        for dataset, key in woken:
            self.add_rows(f"({first_waiter(dataset)}) WHERE walk IS NOT NULL", key, -1)

    def wake_waiters(self, table: str, where: str) -> None:
        """Queue the first waiting row for each id that rows ``g`` of a table hold."""
        for dataset in ROW_DATASETS:
            self.add_rows(
                f"(SELECT min(d.walk) AS walk FROM {table} g CROSS JOIN scored_rows d ON d.sample_key = g.sample_key"
                f" AND d.{dataset} = {DUPLICATE} WHERE {where} AND g.{dataset} = {EXPORTED} GROUP BY d.sample_key)"
            )

    def add_rows_behind(self, table: str, where: str) -> None:
        """Queue rows that fail a later gate but are duplicates now: an earlier row ``m`` of a table holds their id."""
        for dataset, behind in BEHIND_ID.items():
            held = behind.replace(f"{dataset} IN", f"b.{dataset} IN")
            held = held.replace("sample_key", "b.sample_key").replace("evidence_found", "b.evidence_found")
            self.add_rows(
                f"(SELECT b.walk FROM {table} m CROSS JOIN scored_rows b ON b.sample_key = m.sample_key"
                f" WHERE {where} AND m.{dataset} = {EXPORTED} AND b.walk > m.walk AND {held})"
            )

    def add_retained(self, lines: str) -> None:
        """Queue what new present lines, given as SQL, concern among retained rows and pairs.

        A retained row whose line is one of them counts only there, like its pairs. An orphan is undecided again if one
        names its run: the inputs cover that run now (SPEC 3.11).
        """
        if self._holds("EXISTS (SELECT 1 FROM retained_rows)"):
            # Orphans, and rows that only an old quarantine tells of, have no digest, and are no copies of each other.
            copied = f"({lines}) n CROSS JOIN retained_rows f ON f.digest = n.digest{{}} WHERE n.digest <> x'' AND f.kind <> 'orphan'"
            self._run(f"INSERT OR IGNORE INTO rejudge_retained SELECT f.retained_id FROM {copied.format('')}")
            for side in ("chosen", "rejected"):
                # Without the index's name, SQLite compares each row with all retained pairs.
                pairs = f" CROSS JOIN pairs p INDEXED BY pairs_by_{side}_run ON p.{side}_run_id = f.run_id"
                self._run(
                    f"INSERT OR IGNORE INTO rejudge_tasks SELECT p.task_id, 0 FROM {copied.format(pairs)}"
                    " AND p.retained = 'absent'"
                )
        named = f"(SELECT run_id FROM ({lines}))"
        if self._holds("EXISTS (SELECT 1 FROM retained_rows WHERE kind = 'orphan' AND accepted = 1)"):
            self._run(
                "UPDATE retained_rows INDEXED BY retained_rows_by_run SET accepted = 0"
                f" WHERE kind = 'orphan' AND run_id IN {named}"
            )
        if self._holds("EXISTS (SELECT 1 FROM pairs WHERE retained = 'orphan' AND accepted = 1)"):
            for side in ("chosen", "rejected"):
                self._run(
                    f"UPDATE pairs INDEXED BY pairs_by_{side}_run SET accepted = 0"
                    f" WHERE retained = 'orphan' AND {side}_run_id IN {named}"
                )


def _can_pair() -> str:
    other = "SELECT 1 FROM scored_rows o WHERE o.task_id = s.task_id AND o.evidence_found = 1 AND o.category = {}"
    accepted, partial, rejected = (
        other.format(CATEGORY_CODES[category])
        for category in (Category.ACCEPTED, Category.PARTIALLY_ACCEPTED, Category.REJECTED)
    )
    shares = (
        "SELECT 1 FROM pairs p CROSS JOIN pairs q ON q.sample_key = p.sample_key AND q.task_id <> p.task_id"
        " WHERE p.task_id = s.task_id"
    )
    return (
        "s.walk >= ?1 AND s.walk < ?2 AND s.task_id IS NOT NULL AND s.evidence_found = 1"
        f" AND (s.category <= 3 AND EXISTS ({accepted}) AND (EXISTS ({rejected}) OR EXISTS ({partial}))"
        f" OR {ORDER_MATTERS} AND EXISTS ({shares}))"
    )


CAN_PAIR: Final = _can_pair()
"""SQL for rows of a span that may change pairs: their task has an accepted row and a row to pair it with.

A row of any category may be the first of its task. That matters if pairs of two tasks share an id.
"""
