"""Forget what moved: a line of an absent file that is in a present one counts only there (SPEC 3, 'Absent partitions').

Also forget what nothing refers to any more: evidence of the runs, records of files, partitions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from distilld.store.connection import Store
from distilld.store.statements import array
from distilld.store.verdicts import rest_moved, stands

_FORGET: Final = (
    "DELETE FROM retained_rows AS f WHERE retained_id IN (SELECT value FROM json_each(?1)) AND kind = 'absent'"
    f" AND rag IS NULL AND sft IS NULL AND run_id IS ?2 AND {stands('?2')} RETURNING partition_id"
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
_HAS_LOOKED: Final = "SELECT 1 FROM temp.sqlite_master WHERE name = 'emptied'"
"""SQL for whether this process has looked at all absent files; it notes in ``temp.emptied`` what may be empty since."""


def _note(store: Store, partitions: Iterable[int]) -> None:
    """Note partitions whose absent files may be empty now, once all absent files were looked at in this process."""
    if store.connection.execute(_HAS_LOOKED).fetchone():
        store.connection.executemany(
            "INSERT OR IGNORE INTO temp.emptied VALUES (?)", [(partition_id,) for partition_id in partitions]
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
        partitions = {number for (number,) in run(_FORGET, (array(some), run_id)).fetchall()}
        for partition_id in partitions:
            run(f"{_UNNAMED} AND run_id = ?2", (partition_id, run_id))
        _note(store, partitions)


def forget_unnamed_evidence(store: Store, partitions: Collection[int]) -> None:
    """Forget the evidence of files in these partitions, now absent, if no scored row there names its run."""
    store.connection.executemany(_UNNAMED, [(partition_id,) for partition_id in partitions])
    _note(store, partitions)


def forget_empty_files(store: Store, *, names_gone: bool) -> bool:
    """Forget absent files without any rows, and partitions that nothing names; return whether there were any.

    The first call in a process looks at all absent files, later ones at those that lost something since. Partitions are
    only looked for if there are such files, or names that were known or seen may be gone. Files and partitions that the
    next receipt must report stay until then.
    """
    run = store.connection.execute
    with store.transaction():
        moved = "UPDATE files SET rest_category = NULL WHERE kind = 'scored' AND partition_id IN"
        _note(store, [number for (number,) in run(f"{moved} ({_MOVED_RESTS}) RETURNING partition_id").fetchall()])
        candidates = "temp.emptied CROSS JOIN files f USING (partition_id)"
        if not run(_HAS_LOOKED).fetchone():
            run("CREATE TEMP TABLE emptied (partition_id INTEGER PRIMARY KEY)")
            candidates = "files f"
        unreported = "SELECT partition_id FROM unreported_inputs"
        empty = run(
            f"SELECT partition_id, kind FROM {candidates} WHERE {_EMPTY} AND partition_id NOT IN ({unreported})"
        ).fetchall()
        run(f"DELETE FROM temp.emptied WHERE partition_id NOT IN ({unreported})")
        run(f"INSERT OR IGNORE INTO temp.emptied {unreported}")
        if not (empty or names_gone):
            return False
        store.connection.executemany("DELETE FROM files WHERE partition_id = ? AND kind = ?", empty)
        nameless = run(
            "DELETE FROM partitions WHERE partition_id IN (SELECT partition_id FROM partitions EXCEPT SELECT partition_id"
            f" FROM files EXCEPT SELECT partition_id FROM departures EXCEPT {unreported})"
            " AND NOT EXISTS (SELECT 1 FROM retained_rows r WHERE r.partition_id = partitions.partition_id)"
            f" AND partition_id NOT IN ({_IN_PAIRS})"
        ).rowcount
    return bool(empty or nameless)
