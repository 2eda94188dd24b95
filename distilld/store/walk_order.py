"""The places of partitions in walk order: one integer each, with gaps for later partitions."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from typing import Final

from distilld.core.line_facts import LINES_END
from distilld.core.model import ProgramError
from distilld.store.connection import Store

BASE_STEP: Final = LINES_END << 17
BASE_END: Final = 1 << 60
_MASK = LINES_END - 1


def place_partitions(store: Store, paths: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Give new partitions their place in walk order; return (partition_id, walk_base) of every known path.

    A new partition gets a base in the gap between the bases of its neighbours. If a gap is used up, all bases
    are spread again (counted in ``counters.walk_relabels``).
    """
    run = store.connection.execute
    known = {path: (number, base) for number, path, base in run("SELECT partition_id, path, walk_base FROM partitions")}
    wanted = sorted((path for path in set(paths) if path not in known), key=_components)
    if not wanted:
        return known
    order = sorted(known, key=_components)
    keys = [_components(path) for path in order]
    groups: dict[int, list[str]] = {}
    for path in wanted:
        groups.setdefault(bisect.bisect(keys, _components(path)), []).append(path)
    for at, group in groups.items():
        low = known[order[at - 1]][1] if at else 0
        high = known[order[at]][1] if at < len(order) else min(low + BASE_STEP * (len(group) + 1), BASE_END)
        step = (high - low) // (len(group) + 1) & ~_MASK
        if step < LINES_END:
            _spread_bases(store, wanted)
            return place_partitions(store, wanted)
        for number, path in enumerate(group, 1):
            base = low + step * number
            partition_id = run("INSERT INTO partitions (path, walk_base) VALUES (?, ?)", (path, base)).lastrowid
            known[path] = (partition_id or 0, base)
    return known


def _spread_bases(store: Store, coming: list[str]) -> None:
    """Spread all bases evenly, with room for ``coming`` paths; rows move with their partitions."""
    run = store.connection.execute
    old = run("SELECT partition_id, path, walk_base FROM partitions").fetchall()
    order = sorted([*(path for _, path, _ in old), *coming], key=_components)
    step = BASE_END // (len(order) + 2) & ~_MASK
    step = min(step, BASE_STEP) if len(order) * BASE_STEP < BASE_END // 2 else step
    if step < 2 * LINES_END:
        raise ProgramError(f"{len(order)} partitions are more than a state store can order")
    new = {path: step * (number + 1) for number, path in enumerate(order)}
    # Two passes through negative numbers: a new base may be another partition's old one.
    for sign in (-1, 1):
        for partition_id, path, base in old:
            source = base if sign < 0 else -new[path]
            _move_walks(store, source, sign * new[path])
            run("UPDATE partitions SET walk_base = ? WHERE partition_id = ?", (sign * new[path], partition_id))
    run("UPDATE counters SET value = value + 1 WHERE name = 'walk_relabels'")


def _move_walks(store: Store, source: int, target: int) -> None:
    for table in ("scored_rows", "rejudge_rows"):
        store.connection.execute(
            f"UPDATE {table} SET walk = walk + ? WHERE walk >= ? AND walk < ?",
            (target - source, source, source + LINES_END),
        )


def _components(path: str) -> tuple[str, ...]:
    return tuple(path.split("/"))
