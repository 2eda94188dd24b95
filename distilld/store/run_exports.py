"""The exports of a run: which are within ``max_exports_per_run``, and which rows a change affects (SPEC 3.12).

Nothing is stored: it follows from the present rows, and is computed only for runs with more rows than the limit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from distilld.core.model import Options
from distilld.store.connection import Store
from distilld.store.statements import Statements

Export = tuple[int | None, str | None]
"""What the rows of one export share: the id that they would have, and their task."""
Within = dict[str, set[Export]]
"""The exports within the limit, by run; only for runs with more rows than that: no other has too many exports."""
NOWHERE: Final = (0, 0)
REMEMBERED: Final = 100_000
"""Of how many runs, and exports of large runs, it is remembered which are within the limit."""
_FEW: Final = 20
"""Fewer runs than this are looked up one by one: one statement for many runs costs as much as that."""


class RunExports(Statements):
    """Finds which exports of a run are within the limit."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._known: dict[str, set[Export] | None] = {}
        """The exports within the limit of the runs that :meth:`over` asked for: None if the run is not large."""
        self._size = 0

    def forget(self) -> None:
        """Forget what :meth:`over` asked for: the facts of the inputs may change, or have changed."""
        self._known, self._size = {}, 0

    def within(self, runs: Iterable[str], options: Options, without: tuple[int, int] = NOWHERE) -> Within:
        """Return the exports within the limit, as if there were no rows in span ``without``."""
        most = options.max_exports_per_run
        return {run_id: self._first(run_id, most, without) for run_id in self._large(runs, most)}

    def over(self, rows: Iterable[tuple[int, str | None]], options: Options) -> set[int]:
        """Return the places of the rows, given as (place, run), that are over the limit, ``max_exports_per_run``."""
        places: dict[str, list[int]] = {}
        for walk, run_id in rows:
            if run_id is not None:
                places.setdefault(run_id, []).append(walk)
        return {
            walk
            for run_id, within in self._within(places, options).items()
            for walk in places[run_id]
            if self._run("SELECT sample_key, task_id FROM scored_rows WHERE walk = ?", (walk,)).fetchone() not in within
        }

    def _within(self, runs: Collection[str], options: Options) -> Within:
        if self._size > REMEMBERED:
            self.forget()
        new = [run_id for run_id in runs if run_id not in self._known]
        found = self.within(new, options)
        self._known |= {run_id: found.get(run_id) for run_id in new}
        self._size += len(new) + sum(map(len, found.values()))
        return {run_id: exports for run_id in runs if (exports := self._known[run_id]) is not None}

    def queue_changes(self, before: Within, after: Within) -> None:
        """Queue the rows that came within the limit or went over it, and their tasks."""
        for run_id in before.keys() | after.keys():
            old, new = before.get(run_id), after.get(run_id)
            if old == new:
                continue
            walks = [
                (walk,)
                for walk, *export in self._run(
                    "SELECT walk, sample_key, task_id FROM scored_rows WHERE run_id = ?", (run_id,)
                )
                if (old is None or tuple(export) in old) != (new is None or tuple(export) in new)
            ]
            self._many("INSERT OR IGNORE INTO rejudge_rows (walk, forced) VALUES (?, 0)", walks)
            self._many(
                "INSERT OR IGNORE INTO rejudge_tasks SELECT task_id, 0 FROM scored_rows"
                " WHERE walk = ? AND task_id IS NOT NULL",
                walks,
            )

    def _large(self, runs: Iterable[str], most: int) -> list[str]:
        wanted = list(runs) if most else []
        large = f"EXISTS (SELECT 1 FROM scored_rows WHERE run_id = value LIMIT 1 OFFSET {most})"
        if len(wanted) < _FEW:
            one = f"SELECT 1 FROM (SELECT ? AS value) WHERE {large}"
            return [run_id for run_id in wanted if self._run(one, (run_id,)).fetchone()]
        return [run_id for (run_id,) in self._ask(f"SELECT value FROM asked WHERE {large}", wanted)]

    def _first(self, run_id: str, most: int, without: tuple[int, int]) -> set[Export]:
        first: set[Export] = set()
        rows = self._run(
            "SELECT sample_key, task_id FROM scored_rows WHERE run_id = ?1 AND NOT (walk >= ?2 AND walk < ?3) ORDER BY walk",
            (run_id, *without),
        )
        for export in rows:
            first.add(export)
            if len(first) == most:
                break
        return first
