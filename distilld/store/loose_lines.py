"""Lines that are or should be in exports but belong to no present row: departed, retained, lost, adopted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable
from typing import Final, NamedTuple

from distilld.core.line_facts import DUPLICATE, EXPORTED
from distilld.core.model import ROW_DATASETS, Dataset, Options
from distilld.store.statements import Statements, array
from distilld.store.verdicts import is_forbidden

ABSENT_RESTS: Final = (
    "EXISTS (SELECT 1 FROM files INDEXED BY verdicts_in_rests WHERE state = 'absent' AND rest_category IS NOT NULL)"
)
"""SQL for whether the unterminated rest of an absent file forbids anything; many more files can be absent."""


class Departure(NamedTuple):
    """A line that is still in an export although its row is gone; for a pair, ``run_id`` is the chosen run."""

    departure_id: int
    dataset: Dataset
    outcome: int
    sample_key: int | None
    line: bytes
    batch: int
    run_id: str | None
    other_run_id: str | None
    cause: str
    partition_id: int | None
    row_line: int | None


class RetainedRow(NamedTuple):
    """A row whose outcomes are retained; the outcome in a dataset that it left is None."""

    retained_id: int
    kind: str
    digest: bytes
    run_id: str | None
    sample_key: int | None
    rag: int | None
    rag_line: bytes | None
    rag_batch: int | None
    sft: int | None
    sft_line: bytes | None
    sft_batch: int | None


class LooseLine(NamedTuple):
    """A line that an id has though no present row does: its departure or retained row, its digest, its batch."""

    is_departure: int
    owner_id: int
    line: bytes
    batch: int


_DEPARTURES: Final = f"SELECT {', '.join(Departure._fields)} FROM departures"
_WAITS: Final = (
    f"(d.outcome = {EXPORTED} AND d.dataset IN ('rag', 'sft') AND EXISTS (SELECT 1 FROM scored_rows s"
    " WHERE s.sample_key = d.sample_key AND (s.rag IS NULL OR s.walk IN (SELECT walk FROM rejudge_rows)))"
    " AND NOT EXISTS (SELECT 1 FROM scored_rows s WHERE s.sample_key = d.sample_key"
    f" AND CASE d.dataset WHEN 'rag' THEN s.rag ELSE s.sft END = {DUPLICATE}) AND NOT {{}})"
)
"""SQL for whether departure ``d`` waits for a row that is still to be judged; it ends with what does not wait.

An id for which a quarantined row waits is free at once: else a later row would take it.
"""
_RETAINED: Final = ", ".join(f"f.{name}" for name in RetainedRow._fields)


class LooseLines(Statements):
    """Reads these lines."""

    def loose_line(self, dataset: Dataset, sample_key: int) -> LooseLine | None:
        """Return the line of this id in RAG or SFT that belongs to a departed or, else, to a retained row, or None."""
        found = self._run(
            f"SELECT 1, departure_id, line, batch FROM departures WHERE dataset = '{dataset}' AND sample_key = ?1"
            f" AND outcome = {EXPORTED} UNION ALL SELECT 0, retained_id, {dataset}_line, {dataset}_batch"
            f" FROM retained_rows WHERE sample_key = ?1 AND {dataset} = {EXPORTED} LIMIT 1",
            (sample_key,),
        ).fetchone()
        return LooseLine(*found) if found else None

    def has_loose_lines(self) -> bool:
        """Return whether there are departures, retained rows, or rests of absent files that forbid a run."""
        return self._holds(
            f"EXISTS (SELECT 1 FROM departures) OR EXISTS (SELECT 1 FROM retained_rows) OR {ABSENT_RESTS}"
        )

    def departures(self, limit: int, options: Options, *, all_judged: bool) -> list[Departure]:
        """Return the first ``limit`` departures, and all others whose runs have a verdict: it may forbid them.

        Unless the queued rows are ``all_judged``, leave out the lines that wait for one of these, which has the same
        id: its row may have moved there. What a verdict forbids does not wait.
        """
        waits = "0" if all_judged else _WAITS.format(is_forbidden("d.run_id", options, *ROW_DATASETS))
        leaving = f"{_DEPARTURES} d WHERE NOT {waits}"
        rows = self._run(f"{leaving} ORDER BY departure_id LIMIT ?", (limit,)).fetchall()
        if len(rows) == limit:
            rows += self._run(
                f"{leaving} AND departure_id > ? AND outcome = {EXPORTED} AND ("
                " EXISTS (SELECT 1 FROM scored_rows v WHERE v.run_id = d.run_id AND v.category IS NOT NULL)"
                " OR EXISTS (SELECT 1 FROM scored_rows v WHERE v.run_id = d.other_run_id AND v.category IS NOT NULL)"
                " OR EXISTS (SELECT 1 FROM malformed_runs m WHERE m.run_id IN (d.run_id, d.other_run_id))"
                " OR EXISTS (SELECT 1 FROM retained_rows v WHERE v.run_id IN (d.run_id, d.other_run_id)"
                "  AND v.category IS NOT NULL AND v.kind = 'absent')) ORDER BY departure_id",
                (rows[-1][0],),
            )
        return [Departure(row[0], Dataset(row[1]), *row[2:]) for row in rows]

    def departing(self) -> int:
        """Return the number of departures."""
        return self._number("SELECT count(*) FROM departures")

    def has_departed_pairs(self) -> bool:
        """Return whether any exported pair departed."""
        return self._holds(f"EXISTS (SELECT 1 FROM departures WHERE dataset = 'preference' AND outcome = {EXPORTED})")

    def departed_pairs(self, keys: Iterable[int]) -> list[Departure]:
        """Return the departures of exported pairs with these ids."""
        rows = self._run(
            f"{_DEPARTURES} WHERE dataset = 'preference' AND outcome = {EXPORTED}"
            " AND sample_key IN (SELECT value FROM json_each(?))",
            (array(keys),),
        )
        return [Departure(row[0], Dataset(row[1]), *row[2:]) for row in rows]

    def retained_queue(self) -> Generator[RetainedRow, None, None]:
        """Yield the queued retained rows, those of a run together: their reason to stay may be gone."""
        rows = self._run(
            f"SELECT {_RETAINED} FROM rejudge_retained q CROSS JOIN retained_rows f ON f.retained_id = q.retained_id"
            " ORDER BY f.run_id, f.retained_id"
        )
        yield from map(RetainedRow._make, rows)

    def moved_to(self, digest: bytes, run_id: str | None) -> list[RetainedRow]:
        """Return a run's absent rows with the line of this digest, which is in a present file now."""
        rows = self._run(
            f"SELECT {_RETAINED} FROM retained_rows f INDEXED BY retained_rows_by_digest"
            " WHERE f.digest = ? AND f.run_id = ? AND f.kind = 'absent'",
            (digest, run_id),
        )
        return [RetainedRow._make(each) for each in rows]

    def has_missing_lines(self) -> bool:
        """Return whether damaged exports lost lines that must still be written again."""
        return self._holds("EXISTS (SELECT 1 FROM missing_lines)")

    def missing_lines(self) -> dict[str, Counter[bytes]]:
        """Return the lines that damaged exports lost and that must still be written again, by export."""
        found: dict[str, Counter[bytes]] = {}
        for name, digest, copies in self._run("SELECT name, digest, copies FROM missing_lines"):
            found.setdefault(name, Counter())[digest] = copies
        return found

    def adopted(self, dataset: Dataset, sample_key: int) -> tuple[str, str] | None:
        """Return the two timestamps of an adopted row, or None."""
        found = self._run(
            "SELECT created_at, recorded_at FROM adopted_rows WHERE dataset = ? AND sample_key = ?",
            (dataset.value, sample_key),
        ).fetchone()
        return (found[0], found[1]) if found else None
