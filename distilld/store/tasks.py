"""Tasks: which rows can pair, which pairs are recorded, and for which tasks pairs must be formed again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Any, Final, NamedTuple

from distilld.core.line_facts import ALL_WALKS, CATEGORY_CODES, DUPLICATE, EXPORTED, VERDICTS, Walks
from distilld.core.model import Category
from distilld.store.queues import CAN_PAIR, ORDER_MATTERS
from distilld.store.schema import ON_PARTITION
from distilld.store.statements import Statements, array
from distilld.store.verdicts import last_verdict

EVIDENCE_OF_ROWS: Final = (
    f" CROSS JOIN partitions p ON {ON_PARTITION}"
    " LEFT JOIN evidence_rows e ON e.partition_id = p.partition_id AND e.run_id = s.run_id"
)
"""SQL that joins rows ``s`` with their partitions ``p`` and their evidence ``e``."""
_NOWHERE: Final = 1 << 62
_FIRST_WALKS: Final = ", ".join(
    "coalesce((SELECT f.walk FROM scored_rows f WHERE f.task_id = t.task_id AND f.evidence_found = 1"
    f" AND f.category IS {category} ORDER BY f.walk LIMIT 1), {_NOWHERE})"
    for category in ("NULL", *VERDICTS)
)
_FIRST_WALK: Final = f"min({_FIRST_WALKS})"
"""SQL for the place of the first row of task ``t`` whose evidence is found; ``_NOWHERE`` if there is none."""

_IS_UNJUDGED: Final = "f.kind = 'scored' AND f.judged_lines < f.indexed_lines AND f.state = 'present'"
UNJUDGED: Final = f"files f INDEXED BY unjudged_files CROSS JOIN partitions p USING (partition_id) WHERE {_IS_UNJUDGED}"
"""SQL for the scored files ``f``, with their partitions ``p``, that have rows behind those that were judged."""


def unjudged_in(within: Walks) -> str:
    """Return the same SQL for the partitions from base ?1 to place ?2, which are ``within``.

    The partitions of a batch are few, and far more files may wait behind them.
    """
    if within == ALL_WALKS:
        return f"{UNJUDGED} AND p.walk_base >= ?1 AND p.walk_base <= ?2"
    few = "partitions p CROSS JOIN files f USING (partition_id) WHERE p.walk_base >= ?1 AND p.walk_base <= ?2"
    return f"{few} AND {_IS_UNJUDGED}"


class WorkPair(NamedTuple):
    """A recorded pair of a task, with its outcome and line digest; from the third field on the same as a PairRow."""

    pair_id: int
    retained: str | None
    task_id: str
    slot: int
    chosen_run_id: str
    rejected_run_id: str
    rejected_category: int
    chosen_partition: int | None
    rejected_partition: int | None
    sample_key: int
    outcome: int
    line: bytes
    batch: int


_PAIR: Final = ", ".join(WorkPair._fields)


class Tasks(Statements):
    """Reads tasks and their pairs."""

    def _unjudged_spans(self, within: Walks = ALL_WALKS, which: str = "") -> list[tuple[int, int]]:
        spans = "SELECT p.walk_base + f.judged_lines, p.walk_base + f.indexed_lines"
        return self._run(f"{spans} FROM {unjudged_in(within)}{which} ORDER BY 1", within).fetchall()

    def copies(self, digest: bytes, of_run: dict[bytes, list[tuple[int, bool]]]) -> list[tuple[int, bool]]:
        """Return the places of the present rows with this digest and run (:meth:`rows_of_run`), or without any run.

        A row that is too long now names no run, and is always quarantined.
        """
        nameless = self._run("SELECT walk, 1 FROM scored_rows WHERE run_id IS NULL AND digest = ?", (digest,))
        return [*of_run.get(digest, []), *nameless]

    def rows_of_run(self, run_id: str | None) -> dict[bytes, list[tuple[int, bool]]]:
        """Return the places of the present rows that name a run, by digest, and whether their outcomes are known."""
        found: dict[bytes, list[tuple[int, bool]]] = {}
        judged = "rag IS NOT NULL AND sft IS NOT NULL"
        rows = self._run(f"SELECT digest, walk, {judged} FROM scored_rows WHERE run_id = ?", (run_id,))
        for digest, walk, is_judged in rows:
            found.setdefault(digest, []).append((walk, bool(is_judged)))
        return found

    def tasks(self, limit: int, out_of_reach: Set[str] = frozenset()) -> list[tuple[int, str]]:
        """Return (place of the first row, task) for tasks whose pairs must be formed again, in that order.

        These are all tasks that a verdict may now forbid, and up to ``limit`` others that are not ``out_of_reach``;
        with a limit, tasks of unjudged rows count too. Tasks with a pair that waits for an id are added if they come before the task that holds it.
        A temporary table keeps the first places of the other queued tasks until :meth:`forget_task_places`.
        """
        run = self._run
        run(
            f"INSERT INTO temp.task_places SELECT task_id, {_FIRST_WALK} FROM rejudge_tasks t"
            f" WHERE {'1' if limit else 'forced = 1'}"
            " AND NOT EXISTS (SELECT 1 FROM temp.task_places p WHERE p.task_id = t.task_id)"
        )
        known = "SELECT p.walk, p.task_id FROM {} WHERE q.forced = {} ORDER BY p.walk, p.task_id LIMIT ?"
        forced = run(known.format("rejudge_tasks q CROSS JOIN temp.task_places p USING (task_id)", 1), (-1,)).fetchall()
        others: set[tuple[int, str]] = set()
        if limit:
            waiting = known.format("temp.task_places p CROSS JOIN rejudge_tasks q USING (task_id)", 0)
            queued = run(waiting, (limit + len(out_of_reach),)).fetchall()
            others.update(place for place in queued if place[1] not in out_of_reach)
            unjudged = self.tasks_of_unjudged(ALL_WALKS).difference(task_id for _, task_id in forced)
            first_walks = (
                f"SELECT {_FIRST_WALK}, task_id FROM (SELECT value AS task_id FROM asked WHERE value IS NOT NULL) t"
            )
            others.update(self._ask(first_walks, sorted(unjudged)))
        first = [*forced, *sorted(others)[:limit]]
        self._many("DELETE FROM temp.task_places WHERE task_id = ?", [(task_id,) for _, task_id in first])
        return sorted({*first, *self._passed_over(first)})

    def forget_task_places(self) -> None:
        """Drop the known first places of tasks, since rows may be judged, or come and go; call it before :meth:`tasks`."""
        self._stage("task_places", "(task_id TEXT PRIMARY KEY, walk INTEGER NOT NULL) WITHOUT ROWID")
        self._run("CREATE INDEX IF NOT EXISTS temp.tasks_by_place ON task_places (walk, task_id)")

    def _passed_over(self, chosen: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
        """Yield tasks that come before a chosen task, with a pair quarantined because that task's pair has its id."""
        if not self._holds(ORDER_MATTERS):
            return
        waiting = (
            "SELECT w.task_id FROM pairs h CROSS JOIN pairs w ON w.sample_key = h.sample_key AND w.task_id <> h.task_id"
            f" WHERE h.task_id = ? AND h.outcome = {EXPORTED} AND w.outcome = {DUPLICATE} AND w.retained IS NULL"
        )
        for place in chosen:
            for task_id in self._column(waiting, place[1]):
                other = self.first_walk(task_id), task_id
                if other < place:
                    yield other

    def tasks_of_unjudged(self, within: Walks) -> set[str]:
        """Return the tasks that may form pairs from rows that are still unjudged, within these places."""
        found: set[str] = set()
        # No row of a partition pairs without the evidence file, which may be read together with the rows.
        known = (
            " AND EXISTS (SELECT 1 FROM files e WHERE e.partition_id = f.partition_id AND e.kind = 'evidence'"
            " AND e.state = 'present')"
        )
        for low, high in self._unjudged_spans(within, known):
            tasks = f"SELECT DISTINCT task_id FROM scored_rows s WHERE {CAN_PAIR}"
            found.update(self._column(tasks, low, min(high, within[1] + 1)))
        return found

    def first_walk(self, task_id: str) -> int:
        """Return the place of the task's first row whose evidence is found; ``_NOWHERE`` if there is none."""
        return self._number(f"SELECT {_FIRST_WALK} FROM (SELECT ? AS task_id) t", task_id)

    def task_rows(
        self, tasks: Sequence[str], categories: Sequence[Category], limit: int
    ) -> dict[str, list[list[tuple[Any, ...]]]]:
        """Return the first rows of tasks with found evidence, up to ``limit`` of each category, by task: TaskRows.

        They are plain tuples, because most of them are only passed on to a worker.
        """
        place = {CATEGORY_CODES[category]: number for number, category in enumerate(categories)}
        found: dict[str, list[list[tuple[Any, ...]]]] = {task_id: [[] for _ in categories] for task_id in tasks}
        first = " UNION ALL ".join(
            "SELECT f.walk FROM asked t CROSS JOIN scored_rows f ON f.walk IN (SELECT walk FROM scored_rows"
            f" WHERE task_id = t.value AND evidence_found = 1 AND category = {code} ORDER BY walk LIMIT {limit})"
            for code in place
        )
        rows = self._ask(
            "SELECT s.walk, s.task_id, s.run_id, s.category, p.partition_id, s.start_byte,"
            f" s.length_bytes, s.digest, e.start_byte, e.length_bytes, e.digest, {last_verdict('s.run_id')}"
            f" FROM ({first}) q CROSS JOIN scored_rows s USING (walk){EVIDENCE_OF_ROWS}",
            tasks,
        )
        for row in sorted(rows):
            found[row[1]][place[row[3]]].append(row)
        return found

    def pairs_of_tasks(self, tasks: Sequence[str]) -> dict[str, list[WorkPair]]:
        """Return the recorded pairs of tasks, including retained ones, by task; a task without any is left out."""
        found: dict[str, list[WorkPair]] = {}
        rows = self._ask(
            f"SELECT {_PAIR} FROM pairs WHERE task_id IN (SELECT value FROM asked) ORDER BY task_id, slot", tasks
        )
        for pair in map(WorkPair._make, rows):
            found.setdefault(pair.task_id, []).append(pair)
        return found

    def pairs_with_keys(self, keys: Iterable[int]) -> dict[int, list[WorkPair]]:
        """Return the recorded pairs with these ids, by id."""
        found: dict[int, list[WorkPair]] = {}
        rows = self._run(
            f"SELECT {_PAIR} FROM pairs WHERE sample_key IN (SELECT value FROM json_each(?))", (array(keys),)
        )
        for pair in map(WorkPair._make, rows):
            found.setdefault(pair.sample_key, []).append(pair)
        return found

    def names_run(self, run_id: str) -> bool:
        """Return whether a present scored row names the run."""
        return self._holds("EXISTS (SELECT 1 FROM scored_rows WHERE run_id = ?)", run_id)

    def lacks_evidence(self, run_id: str) -> bool:
        """Return whether no present scored row of the run has evidence."""
        return not self._holds("EXISTS (SELECT 1 FROM scored_rows WHERE run_id = ? AND evidence_found = 1)", run_id)

    def side_is_absent(self, partition_id: int, run_id: str, task_id: str, category: int) -> bool:
        """Return whether a pair's side is in an absent scored file, or depends on an absent evidence file.

        A line that is also in a present partition counts only there (SPEC 3).
        """
        side = (run_id, partition_id, task_id, category)
        states = dict(self._run("SELECT kind, state FROM files WHERE partition_id = ?", (partition_id,)).fetchall())
        if states.get("scored") == "absent":
            absent = self._column(
                "SELECT digest FROM retained_rows INDEXED BY retained_rows_by_run"
                " WHERE run_id = ? AND partition_id = ? AND task_id = ? AND category = ?",
                *side,
            )
            of_run = self.rows_of_run(run_id)
            return any(not self.copies(digest, of_run) for digest in absent)
        if states.get("evidence") != "absent":
            return False
        return self._holds(
            "EXISTS (SELECT 1 FROM row_places r CROSS JOIN evidence_rows e USING (partition_id, run_id)"
            " WHERE r.run_id = ? AND r.partition_id = ? AND r.task_id = ? AND r.category = ?)",
            *side,
        )
