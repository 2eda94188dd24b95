"""What must be judged, with everything that judging needs except the text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from distilld.core.line_facts import EXPORTED, LINE_BITS, LINES_END, VERDICTS, ignored
from distilld.core.model import Category, Dataset, Options, RowRef, Verdict
from distilld.store.connection import Store
from distilld.store.loose_lines import ABSENT_RESTS, LooseLines
from distilld.store.queues import HAS_OUTCOME, first_waiter, rows_behind
from distilld.store.run_exports import RunExports
from distilld.store.schema import HOLDS_RAG, ON_PARTITION
from distilld.store.statements import array
from distilld.store.tasks import EVIDENCE_OF_ROWS, UNJUDGED, Tasks
from distilld.store.verdicts import InForce, Verdicts, absent_verdicts, codes_of, last_verdict

_FACTS: Final = (
    "s.walk, s.start_byte, s.length_bytes, s.digest, s.run_id, s.malformed, s.sample_key, s.evidence_found,"
    " e.start_byte, e.length_bytes, e.digest, s.rag, s.rag_line, s.rag_batch, s.sft, s.sft_line, s.sft_batch"
)
_HOLDER: Final = (
    "(SELECT CASE h.evidence_found WHEN 1 THEN h.walk ELSE -h.walk END FROM scored_rows h"
    " WHERE h.sample_key = s.sample_key AND {holds})"
)
_ROW: Final = (
    f"SELECT {_FACTS}, coalesce((SELECT j.evidence_changed FROM rejudge_rows j WHERE j.walk = s.walk), 0), 1,"
    f" {_HOLDER.format(holds=f'{HOLDS_RAG} = 0'.replace('rag', 'h.rag'))}, {_HOLDER.format(holds=f'h.sft = {EXPORTED}')}"
    f" FROM scored_rows s{EVIDENCE_OF_ROWS} WHERE s.walk = ?"
)
_EVIDENCE_OF: Final = " LEFT JOIN evidence_rows e ON e.partition_id = ?1 AND e.run_id = s.run_id"
_OTHERS: Final = (
    "EXISTS (SELECT 1 FROM scored_rows o WHERE o.run_id = s.run_id AND o.walk <> s.walk)"
    " OR EXISTS (SELECT 1 FROM scored_rows o INDEXED BY scored_rows_by_key"
    " WHERE o.sample_key = s.sample_key AND o.walk <> s.walk)"
    " OR EXISTS (SELECT 1 FROM malformed_runs m WHERE m.run_id = s.run_id)"
)
_CONTESTED: Final = f"({_OTHERS})"
_CONTESTED_BESIDE_LOOSE: Final = (
    f"({_OTHERS} OR EXISTS (SELECT 1 FROM retained_rows f WHERE f.run_id = s.run_id)"
    f" OR EXISTS (SELECT 1 FROM retained_rows f WHERE f.sample_key = s.sample_key AND f.rag = {EXPORTED})"
    f" OR EXISTS (SELECT 1 FROM retained_rows f WHERE f.sample_key = s.sample_key AND f.sft = {EXPORTED})"
    " OR EXISTS (SELECT 1 FROM departures d WHERE d.dataset IN ('rag', 'sft') AND d.sample_key = s.sample_key"
    f" AND d.outcome = {EXPORTED}))"
)
"""SQL for whether row ``s`` is contested; a departed line may go to the row that holds its id now."""
_NOTED: Final = "EXISTS (SELECT 1 FROM temp.contested c WHERE c.walk = s.walk)"
_NAMED_TWICE: Final = (
    "SELECT run_id FROM scored_rows INDEXED BY scored_rows_by_run WHERE run_id IS NOT NULL GROUP BY 1 HAVING count(*) > 1"
    " UNION SELECT run_id FROM malformed_runs UNION SELECT run_id FROM retained_rows"
)
_HAD_TWICE: Final = (
    "SELECT sample_key FROM scored_rows INDEXED BY scored_rows_by_key WHERE sample_key IS NOT NULL GROUP BY 1"
    f" HAVING count(*) > 1 UNION SELECT sample_key FROM retained_rows WHERE rag = {EXPORTED} OR sft = {EXPORTED}"
    f" UNION SELECT sample_key FROM departures WHERE dataset IN ('rag', 'sft') AND outcome = {EXPORTED}"
)

_FORCED_ROWS: Final = "rejudge_rows q INDEXED BY forced_rows WHERE q.forced = 1"

RUNS_REMEMBERED: Final = 10_000


class Place(NamedTuple):
    """A partition by its place in walk order."""

    partition_id: int
    path: str
    base: int


class Recorded(NamedTuple):
    """A row's recorded outcome in a dataset; ``code`` is None if it was never judged."""

    code: int | None
    line: bytes
    batch: int


class WorkRow(NamedTuple):
    """A scored row to be judged: its facts, its evidence, its recorded outcomes, what it depends on.

    Evidence columns without ``evidence_found`` mean that the evidence file is absent. A row that was never judged has no
    outcomes. A row is contested if another row, or a line without a present row, names its run or has its id.
    A holder is the row that has this row's id now; negative if that has no evidence now, and is retained or about to leave.
    Rows from the queue have no holder set: see :meth:`alone`.
    """

    walk: int
    start: int
    length: int
    digest: bytes
    run_id: str | None
    malformed: int | None
    sample_key: int | None
    evidence_found: int
    evidence_start: int | None
    evidence_length: int | None
    evidence_digest: bytes | None
    rag: int | None
    rag_line: bytes | None
    rag_batch: int | None
    sft: int | None
    sft_line: bytes | None
    sft_batch: int | None
    evidence_changed: int
    contested: int
    rag_holder: int | None
    sft_holder: int | None

    @property
    def is_plain(self) -> bool:
        """Whether only its own text decides its outcome."""
        evidence_is_absent = self.evidence_digest is not None and not self.evidence_found
        # A line that the row lost in one dataset may be where only the committing process sees it.
        is_half_judged = (self.rag is None) != (self.sft is None)
        return not (self.contested or self.evidence_changed or evidence_is_absent or is_half_judged)

    def alone(self) -> WorkRow:
        """Return the row as the holder of its exported ids, as a row that is not contested is judged."""
        holder = self.walk if self.evidence_found else -self.walk
        return self._replace(
            rag_holder=holder if self.rag == EXPORTED else None, sft_holder=holder if self.sft == EXPORTED else None
        )

    def recorded(self, dataset: Dataset) -> Recorded:
        """Return its recorded outcome in RAG or in SFT."""
        if dataset is Dataset.RAG:
            return Recorded(self.rag, self.rag_line or b"", self.rag_batch or 0)
        return Recorded(self.sft, self.sft_line or b"", self.sft_batch or 0)

    def holder(self, dataset: Dataset) -> int | None:
        """Return the holder of its id in RAG or in SFT."""
        return self.rag_holder if dataset is Dataset.RAG else self.sft_holder


class Waiting(NamedTuple):
    """How much waits to be judged."""

    rows: int
    tasks: int
    departures: int
    retained: int

    @property
    def anything(self) -> bool:
        """Whether a batch is due."""
        return any(self)


class Work(LooseLines, Tasks):
    """Reads what must be judged."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._verdicts = Verdicts(store)
        self.exports = RunExports(store)
        self._places: dict[int, Place] = {}
        self._has_loose = True
        self._noted = False
        self._said: dict[str, InForce] = {}
        """The current verdicts of runs, cached while the facts of the inputs do not change."""

    def waiting(self) -> Waiting:
        """Return how much waits to be judged; rows may be counted twice, but never missed."""
        tables = ("rejudge_rows", "rejudge_tasks", "departures", "rejudge_retained")
        rows, tasks, departures, retained = (self._number(f"SELECT count(*) FROM {table}") for table in tables)
        unjudged = sum(high - low for low, high in self._unjudged_spans())
        return Waiting(rows + unjudged, tasks, departures, retained)

    def anything_waits(self) -> bool:
        """Return whether a batch is due; count nothing, since this is asked before each batch."""
        sources = ("rejudge_rows", "rejudge_tasks", "departures", "rejudge_retained", UNJUDGED)
        return any(self._holds(f"EXISTS (SELECT 1 FROM {source})") for source in sources)

    def bytes_waiting(self) -> int:
        """Return about how many bytes of inputs must be read to judge all waiting rows."""
        rows = self.waiting().rows
        if not rows:
            return 0
        known, size = self._run(
            "SELECT (SELECT value FROM counters WHERE name = 'scored_rows'), (SELECT total(indexed_bytes) FROM files)"
        ).fetchone()
        return int(rows * size / max(known, 1))

    def partitions_queued(self, after: int, *, forced_only: bool) -> Iterator[tuple[Place, int, int]]:
        """Yield partitions with rows to judge after a place, in walk order, and the spans of their unjudged rows.

        Each is looked up when it is due, so rows that were judged meanwhile are left out.
        """
        unjudged = [] if forced_only else [each for each in self._unjudged_spans() if each[1] > after + 1]
        queue = _FORCED_ROWS if forced_only else "rejudge_rows q WHERE 1"
        at = 0
        while True:
            (queued,) = self._run(f"SELECT min(q.walk) FROM {queue} AND q.walk > ?", (after,)).fetchone()
            new = unjudged[at] if at < len(unjudged) else None
            if queued is None and new is None:
                return
            first = min(each for each in (queued, new[0] if new else None) if each is not None)
            place = self.place(first)
            end = place.base + LINES_END
            low, high = (0, 0)
            if new is not None and new[0] < end:
                (low, high), at = new, at + 1
            yield place, low, high
            after = end - 1

    def queued(
        self, place: Place, span: tuple[int, int], after: int, limit: int, *, forced_only: bool
    ) -> list[WorkRow]:
        """Return up to ``limit`` rows of a partition to judge after a place, in walk order, each once.

        ``span`` has the rows that were never judged.
        """
        facts = f"SELECT {_FACTS}, {{changed}}, {self._contested()}, NULL, NULL FROM {{source}}{_EVIDENCE_OF}"
        # A row that was never judged has no line to withdraw: it waits for its turn, as its job may exist already.
        forced = f" AND {HAS_OUTCOME}" if forced_only else ""
        queue = f"(SELECT q.* FROM {_FORCED_ROWS})" if forced_only else "rejudge_rows"
        source = f"{queue} q CROSS JOIN scored_rows s USING (walk)"
        rows = self._run(
            f"{facts.format(changed='q.evidence_changed', source=source)}"
            f" WHERE q.walk > ?2 AND q.walk < ?3{forced} ORDER BY q.walk LIMIT ?4",
            (place.partition_id, after, place.base + LINES_END, limit),
        ).fetchall()
        low, high = max(span[0], after + 1), span[1]
        if low < high:
            known = {row[0] for row in rows}
            new = self._run(
                f"{facts.format(changed='0', source='scored_rows s')}"
                " WHERE s.walk >= ?2 AND s.walk < ?3 AND s.rag IS NULL ORDER BY s.walk LIMIT ?4",
                (place.partition_id, low, high, limit),
            ).fetchall()
            rows = sorted([*rows, *(row for row in new if row[0] not in known)]) if rows else new
        return [tuple.__new__(WorkRow, row) for row in rows[:limit]]

    def contested_among(self, low: int, high: int, *, everything: bool) -> list[tuple[int, str | None]]:
        """Return the contested rows (``everything``: all rows) in [low, high) with their runs, in walk order."""
        contested = "1" if everything else self._contested()
        query = (
            f"SELECT s.walk, s.run_id FROM scored_rows s WHERE s.walk >= ? AND s.walk < ? AND {contested} ORDER BY 1"
        )
        return self._run(query, (low, high)).fetchall()

    def _contested(self) -> str:
        if self._noted:
            return _NOTED
        return _CONTESTED_BESIDE_LOOSE if self._has_loose else _CONTESTED

    def begin_judging(self) -> None:
        """Cache what follows from the facts of the inputs, which do not change until :meth:`end_judging`.

        Collect the contested rows in a table if that is faster than a check of each waiting row.
        """
        self.end_judging()
        self.forget_task_places()
        # Retained rows and departures are looked through too, and can be far more than the present rows.
        known = self._number(
            "SELECT (SELECT value FROM counters WHERE name = 'scored_rows')"
            " + (SELECT total(rows) FROM totals WHERE dataset = 'rag' AND state <> 'live')"
        )
        self._noted = bool(known) and 4 * self.waiting().rows >= known
        if not self._noted:
            return
        self._stage("contested", "(walk INTEGER PRIMARY KEY)")
        for column, values in (("run_id", _NAMED_TWICE), ("sample_key", _HAD_TWICE)):
            self._run(
                "INSERT OR IGNORE INTO temp.contested SELECT s.walk"
                f" FROM ({values}) t CROSS JOIN scored_rows s ON s.{column} = t.{column}"
            )

    def end_judging(self) -> None:
        """Drop these caches: the facts of the inputs may change."""
        self._noted = False
        self._said.clear()
        self.exports.forget()

    def look_for_loose_lines(self) -> set[tuple[int | None, int | None]]:
        """Note whether exports have lines without a present row; return the places of quarantined departures.

        Call it before :meth:`queued`. A place is a partition and a line.
        """
        self._has_loose = self.has_loose_lines()
        if not self._has_loose:
            return set()
        rows = self._run(
            "SELECT partition_id, row_line FROM departures INDEXED BY quarantined_departures"
            f" WHERE outcome <> {EXPORTED}"
        )
        return {(partition_id, line) for partition_id, line in rows}

    def verdict_of(self, run_id: str, options: Options) -> tuple[Category | None, Category | None]:
        """Return the current verdicts for a run, in RAG and in SFT."""
        if self._has_loose:
            return self.verdicts(run_id, options)[:2]
        found = self._run(f"SELECT {last_verdict('?1')}", (run_id,)).fetchone()[0]
        if found == ignored(Dataset.RAG, options):
            return self.verdicts(run_id, options)[:2]
        category = VERDICTS[found] if found is not None else None
        return category, category

    def row(self, walk: int) -> WorkRow:
        """Return one row by its place."""
        return WorkRow(*self._run(_ROW, (walk,)).fetchone())

    def known(self, walks: Iterable[int]) -> list[tuple[int, str | None, int | None, int | None]]:
        """Return rows by their places: place, run, category code, number of the id."""
        return self._run(
            "SELECT s.walk, s.run_id, s.category, s.sample_key FROM json_each(?) j CROSS JOIN scored_rows s ON s.walk = j.value",
            (array(walks),),
        ).fetchall()

    def place(self, walk: int) -> Place:
        """Return the partition of a row."""
        base = walk >> LINE_BITS << LINE_BITS
        found = self._places.get(base)
        if found is None:
            row = self._run("SELECT partition_id, path FROM partitions WHERE walk_base = ?", (base,)).fetchone()
            found = self._places[base] = Place(row[0], row[1], base)
        return found

    def forget_places(self) -> None:
        """Drop the cached places of partitions, which may have changed."""
        self._places.clear()

    def waiter_after(self, dataset: Dataset, sample_key: int, walk: int) -> int | None:
        """Return the first row after ``walk`` that is quarantined because an earlier row has this id."""
        (found,) = self._run(first_waiter(dataset), (sample_key, walk)).fetchone()
        return None if found is None else int(found)

    def behind(self, dataset: Dataset, sample_key: int, walk: int) -> list[int]:
        """Return rows after ``walk`` that fail a gate after the id gate: duplicates if ``walk`` is exported."""
        return self._column(rows_behind(dataset.value), sample_key, walk)

    def has_retained_verdicts(self) -> bool:
        """Return whether there are absent rows, or rests of absent files that forbid a run."""
        return self._holds(f"EXISTS (SELECT 1 FROM retained_rows WHERE kind = 'absent') OR {ABSENT_RESTS}")

    def verdicts(self, run_id: str, options: Options) -> InForce:
        """Return the current verdicts for RAG and SFT, and among present verdicts only."""
        found = self._said.get(run_id)
        if found is None:
            if len(self._said) >= RUNS_REMEMBERED:
                self._said.clear()
            found = self._said[run_id] = self._verdicts.in_force(run_id, options)
        return found

    def verdict_place(self, run_id: str, category: Category) -> Verdict | None:
        """Return the place of a run's last verdict of this category: in present rows, else absent ones, else rests."""
        codes = codes_of(category)
        present = (
            "SELECT p.path, s.walk - p.walk_base FROM (SELECT walk FROM (SELECT walk FROM scored_rows"
            f" WHERE run_id = ?1 AND category IN ({codes}) ORDER BY walk DESC LIMIT 1)"
            " UNION ALL SELECT max(v.walk) FROM malformed_runs m CROSS JOIN scored_rows v ON v.digest = m.digest"
            f" AND v.run_id IS NULL WHERE m.run_id = ?1 AND v.category IN ({codes})) s CROSS JOIN partitions p"
            f" ON {ON_PARTITION} ORDER BY s.walk DESC LIMIT 1"
        )
        absent = (
            f"SELECT p.path, f.line FROM ({absent_verdicts('?1', codes)}) f CROSS JOIN partitions p USING (partition_id)"
            " ORDER BY p.walk_base DESC, f.line DESC LIMIT 1"
        )
        rest = (
            "SELECT p.path, f.indexed_lines FROM malformed_runs m CROSS JOIN files f ON f.rest_digest = m.digest"
            f" AND f.rest_category IN ({codes}) CROSS JOIN partitions p USING (partition_id) WHERE m.run_id = ?1"
            " ORDER BY p.walk_base DESC LIMIT 1"
        )
        for query in (present, absent, rest):
            if found := self._run(query, (run_id,)).fetchone():
                return Verdict(category, RowRef(*found))
        return None

    def stamps(self, batches: Iterable[int]) -> dict[int, str]:
        """Return the times that batches stamped on their rows."""
        stamps = "SELECT b.batch, b.recorded_at FROM json_each(?) j CROSS JOIN batches b ON b.batch = j.value"
        return dict(self._run(stamps, (array(set(batches)),)))
