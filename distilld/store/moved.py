"""Forget what moved: a line of an absent file that is in a present one counts only there (SPEC 3, 'Absent partitions').

Also forget what nothing refers to any more: evidence of the runs, records of files, partitions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from distilld.store.connection import Store
from distilld.store.verdicts import rest_moved

_FORGET: Final = (
    "DELETE FROM retained_rows AS f WHERE retained_id IN (SELECT value FROM json_each(?1)) AND kind = 'absent'"
    " AND rag IS NULL AND sft IS NULL AND run_id IS ?2 AND CASE WHEN ?2 IS NULL"
    " THEN EXISTS (SELECT 1 FROM scored_rows s WHERE s.run_id IS NULL AND s.digest = f.digest)"
    " ELSE f.digest IN (SELECT digest FROM scored_rows WHERE run_id = ?2) END RETURNING partition_id"
)
"""SQL that deletes a run's absent rows whose lines are in a present file and name the same run there.

A present line that is too long now names no run: the absent row stays, and its verdict still forbids.
"""
_UNNAMED: Final = (
    "DELETE FROM evidence_rows WHERE partition_id = ?1"
    " AND EXISTS (SELECT 1 FROM files WHERE partition_id = ?1 AND kind = 'evidence' AND state = 'absent')"
    " AND NOT EXISTS (SELECT 1 FROM files WHERE partition_id = ?1 AND kind = 'scored' AND state = 'present')"
    " AND NOT EXISTS (SELECT 1 FROM retained_rows f INDEXED BY retained_rows_by_run"
    " WHERE f.run_id = evidence_rows.run_id AND f.partition_id = ?1 AND f.kind = 'absent')"
)
"""SQL that forgets the absent evidence of a partition if no scored row there names its run.

Without the index's name, SQLite compares each evidence row with all retained rows of the partition.
"""
_EMPTY: Final = (
    "f.state = 'absent' AND CASE f.kind"
    " WHEN 'scored' THEN f.rest_category IS NULL AND NOT EXISTS (SELECT 1 FROM retained_rows r WHERE r.partition_id = f.partition_id AND r.kind = 'absent')"
    " ELSE NOT EXISTS (SELECT 1 FROM evidence_rows e WHERE e.partition_id = f.partition_id) END"
)
"""SQL for whether nothing is known about absent file ``f`` except that it existed."""
_IN_PAIRS: Final = " UNION ALL ".join(
    f"SELECT p.{side}_partition FROM {pairs} p.{side}_partition IS NOT NULL"
    for side in ("chosen", "rejected")
    for pairs in (
        "pairs p WHERE p.retained IS NOT NULL AND",
        "rejudge_tasks t CROSS JOIN pairs p USING (task_id) WHERE",
    )
)
"""SQL for partitions that pairs may name though they have no file: all other pairs stand on present files."""
_MOVED_RESTS: Final = (
    "SELECT partition_id FROM files f INDEXED BY verdicts_in_rests"
    f" WHERE state = 'absent' AND rest_category IS NOT NULL AND {rest_moved()}"
)


def forget_moved_rows(store: Store, retained_ids: Iterable[int]) -> None:
    """Forget the absent rows among these that moved and have no line left in the exports."""
    run = store.connection.execute
    by_run: dict[str | None, list[int]] = {}
    for retained_id in retained_ids:
        for (run_id,) in run(
            "SELECT run_id FROM retained_rows WHERE retained_id = ? AND kind = 'absent'", (retained_id,)
        ):
            by_run.setdefault(run_id, []).append(retained_id)
    for run_id, some in by_run.items():
        partitions = set(run(_FORGET, (f"[{','.join(map(str, some))}]", run_id)).fetchall())
        for (partition_id,) in partitions:
            run(f"{_UNNAMED} AND run_id = ?2", (partition_id, run_id))


def forget_unnamed_evidence(store: Store, partitions: Iterable[int]) -> None:
    """Forget absent evidence in these partitions if no scored row there names its run."""
    store.connection.executemany(_UNNAMED, [(partition_id,) for partition_id in partitions])


def forget_empty_files(store: Store, *, names_gone: bool) -> bool:
    """Forget absent files without any rows, and partitions that nothing names; return whether there were any.

    Partitions are only looked for if there are such files, or names that were known or seen may be gone. Files and
    partitions that the next receipt must report stay until then.
    """
    run = store.connection.execute
    if run(f"SELECT EXISTS ({_MOVED_RESTS})").fetchone()[0]:
        with store.transaction():
            run(f"UPDATE files SET rest_category = NULL WHERE kind = 'scored' AND partition_id IN ({_MOVED_RESTS})")
    empty = run(
        f"SELECT partition_id, kind FROM files f WHERE {_EMPTY} AND partition_id NOT IN (SELECT partition_id FROM unreported_inputs)"
    ).fetchall()
    if not (empty or names_gone):
        return False
    with store.transaction():
        store.connection.executemany("DELETE FROM files WHERE partition_id = ? AND kind = ?", empty)
        nameless = run(
            "DELETE FROM partitions WHERE partition_id IN (SELECT partition_id FROM partitions EXCEPT SELECT partition_id"
            " FROM files EXCEPT SELECT partition_id FROM departures EXCEPT SELECT partition_id FROM unreported_inputs)"
            " AND NOT EXISTS (SELECT 1 FROM retained_rows r WHERE r.partition_id = partitions.partition_id)"
            f" AND partition_id NOT IN ({_IN_PAIRS})"
        ).rowcount
    return bool(empty or nameless)
