"""The places of partitions in walk order: one integer each, with gaps for later partitions."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from typing import Final, NamedTuple

from distilld.core.line_facts import LINES_END
from distilld.core.model import ProgramError
from distilld.store.connection import Store

BASE_STEP: Final = LINES_END << 17
"""The distance between partitions that come in order at either end, and after a spread while there is room."""
NEAR_STEP: Final = LINES_END << 7
"""The distance from the newer neighbour in a gap where partitions come one by one: half a gap has room for 511."""
BASE_START: Final = BASE_STEP << 11
"""The base of the first partition: others may come before it."""
BASE_END: Final = 1 << 60
_MASK = LINES_END - 1


class _Neighbour(NamedTuple):
    """A partition beside a gap, or an end of the range, which is older than all partitions."""

    partition_id: int
    base: int


def place_partitions(store: Store, paths: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Give new partitions their place in walk order; return (partition_id, walk_base) of every known path.

    A new partition gets a base in the gap between the bases of its neighbours. If a gap is used up, all bases
    are spread again (counted in ``counters.walk_relabels``).
    """
    run = store.connection.execute
    known = {
        path: (number, base)
        for number, path, base in run("SELECT partition_id, path, walk_base FROM partitions ORDER BY walk_base")
    }
    wanted = sorted((path for path in set(paths) if path not in known), key=_components)
    if not wanted:
        return known
    order = list(known)
    groups: dict[int, list[str]] = {}
    for path in wanted:
        groups.setdefault(bisect.bisect(order, _components(path), key=_components), []).append(path)
    for at, group in groups.items():
        low = _Neighbour(*known[order[at - 1]]) if at else None
        high = _Neighbour(*known[order[at]]) if at < len(order) else None
        bases = _bases(low, high, len(group))
        if not bases:
            _spread_bases(store, wanted)
            return place_partitions(store, wanted)
        for path, base in zip(group, bases, strict=True):
            partition_id = run("INSERT INTO partitions (path, walk_base) VALUES (?, ?)", (path, base)).lastrowid
            known[path] = (partition_id or 0, base)
    return known


def _bases(low: _Neighbour | None, high: _Neighbour | None, count: int) -> list[int]:
    """Return bases for new partitions between two known ones; none if the gap is used up.

    Partitions mostly come in ascending or in descending order, so the next one comes beside the newest. At an end they
    take whole steps; the first ones of a store take half of the range at most. A whole gap does not show the order yet:
    they stand in its middle. In any other gap they stand near the newer neighbour and leave the rest to the next ones;
    even shares would halve it each time, and are taken only where steps do not fit.
    """
    is_inner, is_first = low is not None and high is not None, low is None and high is None
    if low is None:
        low = _Neighbour(-1, 0 if high else BASE_START - BASE_STEP)
    high = high or _Neighbour(-1, BASE_END)
    gap = high.base - low.base
    share = gap // (count + 1) & ~_MASK
    if share < LINES_END:
        return []
    steps = (NEAR_STEP,) if is_inner else (BASE_STEP, share // 2 & ~_MASK if is_first else NEAR_STEP)
    step = next((step for step in steps if LINES_END <= step <= share), share)
    spare = gap - step * (count + 1)
    if is_inner and gap >= BASE_STEP:
        spare = spare // 2 & ~_MASK
    elif low.partition_id >= high.partition_id:
        spare = 0
    return [low.base + spare + step * number for number in range(1, count + 1)]


def _spread_bases(store: Store, coming: list[str]) -> None:
    """Spread all bases evenly, with room for ``coming`` paths and at both ends; rows move with their partitions."""
    run = store.connection.execute
    old = run("SELECT partition_id, path, walk_base FROM partitions").fetchall()
    order = sorted([*(path for _, path, _ in old), *coming], key=_components)
    step = min(BASE_STEP, (BASE_END - BASE_START) // (2 * len(order)) & ~_MASK)
    if step < 2 * LINES_END:
        raise ProgramError(f"{len(order)} partitions are more than a state store can order")
    new = {path: BASE_START + step * number for number, path in enumerate(order)}
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
