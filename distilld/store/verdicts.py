"""The current verdicts: a run's last verdict, what else forbids it, and which rows a change affects (SPEC 3.4)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Final, NamedTuple

from distilld.core.line_facts import CATEGORY_CODES, UNREVIEWED, VERDICTS, ignored
from distilld.core.model import ROW_DATASETS, Category, Dataset, InputKind, Options
from distilld.store.connection import Store
from distilld.store.inputs import FileRecord
from distilld.store.run_exports import RunExports
from distilld.store.statements import Statements

REST: Final = "f.rest_digest = m.digest AND f.rest_category IS NOT NULL AND f.state = '{}'"
"""SQL for whether file ``f``, in a given state, ends in the rest that row ``m`` of ``malformed_runs`` is about."""


_RESTS = (
    "SELECT p.walk_base + f.indexed_lines, f.rest_category FROM malformed_runs m CROSS JOIN files f"
    f" ON {REST} CROSS JOIN partitions p USING (partition_id) WHERE m.run_id = ?1"
)


def rest_moved(which: str = "1") -> str:
    """Return SQL for whether a present file has absent file ``f``'s rest: as a rest, or as a line ``s`` (``which``)."""
    return (
        "(EXISTS (SELECT 1 FROM files o WHERE o.rest_digest = f.rest_digest AND o.rest_category IS NOT NULL"
        " AND o.state = 'present') OR EXISTS (SELECT 1 FROM scored_rows s WHERE s.run_id IS NULL"
        f" AND s.digest = f.rest_digest AND {which}))"
    )


def last_verdict(run: str, *, but: int = 0) -> str:
    """Return SQL for the category code of a run's last present verdict ``but`` those with a code; NULL if it has none.

    ``run`` is an SQL expression. Malformed lines and unterminated rests count too, by their digests.
    """
    return (
        "(nullif(max("
        f"coalesce((SELECT v.walk << 3 | v.category FROM scored_rows v WHERE v.run_id = {run}"
        f" AND v.category <> {but} ORDER BY v.walk DESC LIMIT 1), -1),"
        " coalesce((SELECT max(max(coalesce((SELECT max(v.walk << 3 | v.category) FROM scored_rows v"
        f" INDEXED BY nameless_rows WHERE v.digest = m.digest AND v.run_id IS NULL AND v.category <> {but}), -1),"
        " coalesce((SELECT max(p.walk_base + f.indexed_lines << 3 | f.rest_category) FROM files f CROSS JOIN partitions p"
        f" USING (partition_id) WHERE {REST.format('present')} AND f.rest_category <> {but}), -1)))"
        f" FROM malformed_runs m WHERE m.run_id = {run}), -1)), -1) & 7)"
    )


class InForce(NamedTuple):
    """The current verdicts of a run: for each dataset, and among the present verdicts only."""

    rag: Category | None
    sft: Category | None
    present: Category | None


class Verdicts(Statements):
    """Finds the verdicts of runs, and queues what their changes affect."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._exports = RunExports(store)

    def in_force(self, run_id: str, options: Options, without: tuple[int, int] | None = None) -> InForce:
        """Return a run's current verdicts, ignoring rows in ``without`` (SPEC 3.4; absent ones forbid, never clear)."""
        low, high = without or (0, 0)
        present = in_rag = self._last_present(run_id, low, high)
        if present is not None and present[1] == ignored(Dataset.RAG, options):
            in_rag = self._last_present(run_id, low, high, but=UNREVIEWED)
        elsewhere = "s.digest = f.digest AND NOT (s.walk >= ?2 AND s.walk < ?3)"
        codes = forbidding_codes(options, *ROW_DATASETS)  # no other absent ones count
        absent = self._run(
            "SELECT p.walk_base + f.line, f.category FROM retained_rows f CROSS JOIN partitions p USING (partition_id)"
            f" WHERE f.run_id = ?1 AND f.kind = 'absent' AND f.category IN ({codes}) AND f.digest NOT IN"
            " (SELECT s.digest FROM scored_rows s WHERE s.run_id = ?1 AND NOT (s.walk >= ?2 AND s.walk < ?3))"
            " UNION ALL SELECT p.walk_base + f.line, f.category FROM malformed_runs m CROSS JOIN retained_rows f"
            " ON f.digest = m.digest AND f.run_id IS NULL CROSS JOIN partitions p USING (partition_id)"
            f" WHERE m.run_id = ?1 AND f.kind = 'absent' AND f.category IN ({codes}) AND NOT EXISTS"
            f" (SELECT 1 FROM scored_rows s WHERE s.run_id IS NULL AND {elsewhere})"
            f" UNION ALL {_RESTS.format('absent')} AND NOT {rest_moved('NOT (s.walk >= ?2 AND s.walk < ?3)')} ORDER BY 1 DESC",
            (run_id, low, high),
        ).fetchall()
        return InForce(
            _last(Dataset.RAG, in_rag, absent, options),
            _last(Dataset.SFT, present, absent, options),
            VERDICTS[present[1]] if present else None,
        )

    def _last_present(self, run_id: str, low: int, high: int, *, but: int = 0) -> tuple[int, int] | None:
        """Return place and code of the last present verdict outside rows ``low`` to ``high``, ``but`` those with a code."""
        found: tuple[int, int] | None = self._run(
            "SELECT walk, category FROM (SELECT * FROM (SELECT walk, category FROM scored_rows WHERE run_id = ?1 AND"
            " category <> ?4 AND walk >= ?3 ORDER BY walk DESC LIMIT 1)"
            " UNION ALL SELECT * FROM (SELECT walk, category FROM scored_rows WHERE run_id = ?1 AND"
            " category <> ?4 AND walk < ?2 ORDER BY walk DESC LIMIT 1)"
            " UNION ALL SELECT s.walk, s.category FROM malformed_runs m CROSS JOIN scored_rows s"
            "  ON s.digest = m.digest AND s.run_id IS NULL WHERE m.run_id = ?1 AND s.category <> ?4"
            "  AND NOT (s.walk >= ?2 AND s.walk < ?3)"
            f" UNION ALL {_RESTS.format('present')} AND f.rest_category <> ?4) ORDER BY walk DESC LIMIT 1",
            (run_id, low, high, but),
        ).fetchone()
        return found

    @contextmanager
    def changing(self, runs: Collection[str], options: Options) -> Iterator[None]:
        """Queue what the block's changes to the verdicts and the exports of these runs affect."""
        within = self._exports.within(runs, options)
        before = [self.in_force(run_id, options) for run_id in runs]
        yield
        self._exports.queue_changes(within, self._exports.within(runs, options))
        for run_id, old in zip(runs, before, strict=True):
            self.queue_change(run_id, old, self.in_force(run_id, options), options)

    def queue_change(self, run_id: str, before: InForce, after: InForce, options: Options) -> None:
        """Queue what a change of the current verdicts can affect: the run's rows, its retained rows, its pairs."""
        if not options.revoke or before == after:
            return
        flips = [
            options.forbids(dataset, new) if new else False
            for dataset, old, new in ((Dataset.RAG, before.rag, after.rag), (Dataset.SFT, before.sft, after.sft))
            if old is not new and any(category and options.forbids(dataset, category) for category in (old, new))
        ]
        if flips:
            self._run(
                "INSERT INTO rejudge_rows (walk, forced) SELECT walk, ?2 FROM scored_rows WHERE run_id = ?1"
                " ON CONFLICT (walk) DO UPDATE SET forced = max(forced, excluded.forced)",
                (run_id, int(any(flips))),
            )
        # An orphan leaves only for a verdict that forbids it: otherwise a first pass would queue all orphans.
        forbids = any(
            new is not None and options.forbids(dataset, new)
            for dataset, new in ((Dataset.RAG, after.rag), (Dataset.SFT, after.sft))
        )
        some = "" if forbids else " AND kind <> 'orphan'"
        self._run(
            f"INSERT OR IGNORE INTO rejudge_retained SELECT retained_id FROM retained_rows WHERE run_id = ?{some}",
            (run_id,),
        )
        self._run(
            "INSERT OR REPLACE INTO rejudge_tasks SELECT task_id, 1 FROM pairs WHERE chosen_run_id = ?1"
            " UNION SELECT task_id, 1 FROM pairs WHERE rejected_run_id = ?1",
            (run_id,),
        )

    def set_rest(self, record: FileRecord, rest: tuple[bytes, int] | None, options: Options) -> None:
        """Record digest and category of a scored file's unterminated rest that forbids runs; None: it forbids none."""
        place = (record.partition_id, InputKind.SCORED.value)
        query = "SELECT rest_digest, rest_category FROM files WHERE partition_id = ? AND kind = ? AND rest_category IS NOT NULL"
        known = self._run(query, place).fetchone()
        if known == rest:
            return
        digests = [each[0] for each in (known, rest) if each is not None]
        named = "SELECT run_id FROM malformed_runs WHERE digest = ?"
        runs = {run_id for digest in digests for run_id in self._column(named, digest)}
        with self.changing(sorted(runs), options):
            self._run(
                "UPDATE files SET rest_digest = ?, rest_category = ? WHERE partition_id = ? AND kind = ?",
                (*(rest or (None, None)), *place),
            )

    def add_malformed_runs(self, runs: list[tuple[str, bytes]]) -> None:
        """Record the runs that malformed lines name, by line digest; call it before the lines are added or applied."""
        if runs:
            self._many("INSERT OR IGNORE INTO malformed_runs VALUES (?, ?)", runs)

    def runs_of_rest(self, record: FileRecord) -> list[str]:
        """Return the runs that a scored file's unterminated rest forbids."""
        return self._column(
            "SELECT m.run_id FROM files f CROSS JOIN malformed_runs m ON m.digest = f.rest_digest"
            " WHERE f.partition_id = ? AND f.kind = 'scored' AND f.rest_category IS NOT NULL",
            record.partition_id,
        )


def _last(
    dataset: Dataset, present: tuple[int, int] | None, absent: list[tuple[int, int]], options: Options
) -> Category | None:
    """Return the last of the present verdict and the absent ones that forbid; ``absent`` is in falling walk order."""
    for walk, code in absent:
        if present and walk < present[0]:
            break
        if options.forbids(dataset, VERDICTS[code]):
            return VERDICTS[code]
    return VERDICTS[present[1]] if present else None


@lru_cache(maxsize=8)
def forbidding_codes(options: Options, *datasets: Dataset) -> str:
    """Return an SQL list of the category codes that forbid a run in one of the datasets."""
    return ",".join(
        str(code)
        for code, category in VERDICTS.items()
        if any(options.forbids(dataset, category) for dataset in datasets)
    )


def is_forbidden(run: str, options: Options, *datasets: Dataset) -> str:
    """Return SQL for whether a run's last present verdict, or any absent one, forbids it in one of the datasets."""
    if not options.revoke:
        return "0"
    codes = forbidding_codes(options, *datasets)
    return (
        f"(coalesce({last_verdict(run)} IN ({codes}), 0) OR EXISTS (SELECT 1 FROM retained_rows f WHERE f.run_id = {run}"
        f" AND f.kind = 'absent' AND f.category IN ({codes})) OR EXISTS (SELECT 1 FROM malformed_runs m"
        f" CROSS JOIN retained_rows f ON f.digest = m.digest AND f.run_id IS NULL WHERE m.run_id = {run}"
        f" AND f.kind = 'absent' AND f.category IN ({codes})) OR EXISTS (SELECT 1 FROM malformed_runs m CROSS JOIN files f"
        f" ON {REST.format('absent')} AND f.rest_category IN ({codes}) WHERE m.run_id = {run}))"
    )


def runs_of(rows: str, where: str) -> str:
    """Return SQL for the runs that these rows, called ``n``, name, or forbid as malformed lines."""
    return (
        f"SELECT n.run_id FROM {rows} n WHERE n.run_id IS NOT NULL AND {where} UNION {named_in_malformed(rows, where)}"
    )


def named_in_malformed(rows: str, where: str = "1") -> str:
    """Return SQL for the runs that malformed lines among these rows, called ``n``, forbid."""
    return (
        f"SELECT m.run_id FROM {rows} n CROSS JOIN malformed_runs m INDEXED BY malformed_runs_by_digest"
        f" ON m.digest = n.digest WHERE n.run_id IS NULL AND n.category IS NOT NULL AND {where}"
    )


def overruled(pair: str = "pairs") -> str:
    """Return SQL for whether a side's last present verdict is not the one with which the pair was formed."""
    chosen, rejected = (
        f"coalesce({last_verdict(f'{pair}.{side}_run_id')} IN ({{}}), 1)" for side in ("chosen", "rejected")
    )
    accepted, partial, other = (
        codes_of(category) for category in (Category.ACCEPTED, Category.PARTIALLY_ACCEPTED, Category.REJECTED)
    )
    # For a pair from an older exporter, it is not known which of the two its rejected side was.
    return (
        f"NOT {chosen.format(accepted)} OR NOT CASE {pair}.rejected_category WHEN {CATEGORY_CODES[Category.PARTIALLY_ACCEPTED]} THEN {rejected.format(partial)}"
        f" WHEN {CATEGORY_CODES[Category.REJECTED]} THEN {rejected.format(other)}"
        f" ELSE {rejected.format(f'{partial},{other}')} END"
    )


def codes_of(category: Category) -> str:
    """Return an SQL list of the codes that mean a category, written exactly or not."""
    return ",".join(str(code) for code, said in VERDICTS.items() if said is category)
