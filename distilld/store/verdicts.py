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
from distilld.store.run_exports import NOWHERE, RunExports
from distilld.store.statements import Statements

REST: Final = "f.rest_digest = m.digest AND f.rest_category IS NOT NULL AND f.state = '{}'"
"""SQL for whether file ``f``, in a given state, ends in the rest that row ``m`` of ``malformed_runs`` is about."""


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
    return f"({_last_present(run, str(but))} & 7)"


def _last_present(run: str, but: str, spans: tuple[str, ...] = ("",)) -> str:
    """Return SQL for place and code of this verdict, ``walk << 3 | code``; ``spans`` limit the rows ``v`` that count."""
    rows = "FROM scored_rows v {} AND v.category <> " + but
    of_run = rows.format(f"WHERE v.run_id = {run}")
    nameless = rows.format("INDEXED BY nameless_rows WHERE v.digest = m.digest AND v.run_id IS NULL")
    named = [f"(SELECT v.walk << 3 | v.category {of_run}{span} ORDER BY v.walk DESC LIMIT 1)" for span in spans]
    in_malformed = [f"(SELECT max(v.walk << 3 | v.category) {nameless}{span})" for span in spans]
    in_rest = (
        "(SELECT max(p.walk_base + f.indexed_lines << 3 | f.rest_category) FROM files f CROSS JOIN partitions p"
        f" USING (partition_id) WHERE {REST.format('present')} AND f.rest_category <> {but})"
    )
    by_digest = f"(SELECT max({_greatest(*in_malformed, in_rest)}) FROM malformed_runs m WHERE m.run_id = {run})"
    return f"nullif({_greatest(*named, by_digest)}, -1)"


def _greatest(*values: str) -> str:
    """Return SQL for the greatest of numbers that may be NULL; -1 if all are."""
    return f"max({', '.join(f'coalesce({value}, -1)' for value in values)})"


_LAST_BESIDE: Final = f"SELECT {_last_present('?1', '?4', (' AND v.walk >= ?3', ' AND v.walk < ?2'))}"
"""SQL for the last present verdict of a run outside the rows from ?2 to ?3; each side is searched from its end."""
_IS_ELSEWHERE: Final = "NOT (s.walk >= ?2 AND s.walk < ?3)"
"""SQL for whether a row ``s`` is outside these rows."""


def absent_verdicts(run: str, codes: str) -> str:
    """Return SQL for the absent rows ``f`` with a verdict on a run that is one of the codes, malformed lines included."""
    those = f"f.kind = 'absent' AND f.category IN ({codes})"
    return (
        f"SELECT f.* FROM retained_rows f WHERE f.run_id = {run} AND {those} UNION ALL SELECT f.* FROM malformed_runs m"
        " CROSS JOIN retained_rows f INDEXED BY retained_rows_by_digest ON f.digest = m.digest AND f.run_id IS NULL"
        f" WHERE m.run_id = {run} AND {those}"
    )


def stands(run: str, which: str = "1") -> str:
    """Return SQL for whether the line of row ``f``, absent and of a run or of none, is one of the present rows ``s``.

    ``run`` is a parameter, so that the lines of the run are read once, not for each row.
    """
    return (
        "CASE WHEN f.run_id IS NULL"
        f" THEN EXISTS (SELECT 1 FROM scored_rows s WHERE s.run_id IS NULL AND s.digest = f.digest AND {which})"
        f" ELSE f.digest IN (SELECT s.digest FROM scored_rows s WHERE s.run_id = {run} AND {which}) END"
    )


Said = tuple[int, int]
"""A verdict: the place in walk order of its row, and its code."""


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

    def in_force(self, run_id: str, options: Options, without: tuple[int, int] = NOWHERE) -> InForce:
        """Return a run's current verdicts, ignoring rows in ``without``."""
        return InForce(*(said and VERDICTS[said[1]] for said in self.said_in_force(run_id, options, without)))

    def said_in_force(
        self, run_id: str, options: Options, without: tuple[int, int] = NOWHERE
    ) -> tuple[Said | None, Said | None, Said | None]:
        """Return the same with their places (SPEC 3.4; absent ones forbid, never clear)."""
        present = in_rag = self._last_present(run_id, without)
        if present is not None and present[1] == ignored(Dataset.RAG, options):
            in_rag = self._last_present(run_id, without, but=UNREVIEWED)
        codes = forbidding_codes(options, *ROW_DATASETS)  # no other absent ones count
        absent = self._run(
            f"SELECT p.walk_base + f.line, f.category FROM ({absent_verdicts('?1', codes)}) f CROSS JOIN partitions p"
            f" USING (partition_id) WHERE NOT {stands('?1', _IS_ELSEWHERE)} UNION ALL"
            " SELECT p.walk_base + f.indexed_lines, f.rest_category FROM malformed_runs m CROSS JOIN files f"
            f" ON {REST.format('absent')} CROSS JOIN partitions p USING (partition_id) WHERE m.run_id = ?1"
            f" AND NOT {rest_moved(_IS_ELSEWHERE)} ORDER BY 1 DESC",
            (run_id, *without),
        ).fetchall()
        return _last(Dataset.RAG, in_rag, absent, options), _last(Dataset.SFT, present, absent, options), present

    def _last_present(self, run_id: str, without: tuple[int, int], *, but: int = 0) -> Said | None:
        """Return the last present verdict outside rows ``without``, ``but`` those with a code."""
        (found,) = self._run(_LAST_BESIDE, (run_id, *without, but)).fetchone()
        return None if found is None else (found >> 3, found & 7)

    @contextmanager
    def changing(self, runs: Collection[str], options: Options) -> Iterator[None]:
        """Queue what the block's changes to the verdicts and the exports of these runs affect."""
        within = self._exports.within(runs, options)
        before = [self.in_force(run_id, options) for run_id in runs]
        yield
        self._exports.queue_changes(within, self._exports.within(runs, options))
        for run_id, old in zip(runs, before, strict=True):
            self.queue_change(run_id, old, self.in_force(run_id, options), options)

    def queue_added(self, runs: Collection[str], options: Options, added: tuple[int, int]) -> None:
        """Do the same for these runs where rows from one place to another were added."""
        within = self._exports.within(runs, options)
        self._exports.queue_changes(self._exports.within(within, options, without=added), within)
        for run_id in runs:
            self.queue_change(run_id, self.in_force(run_id, options, added), self.in_force(run_id, options), options)

    def queue_change(self, run_id: str, before: InForce, after: InForce, options: Options) -> None:
        """Queue what a change of the current verdicts can affect: the run's rows, its retained rows, its pairs."""
        if not options.revoke or before == after:
            return

        def forbids(dataset: Dataset, verdict: Category | None) -> bool:
            return verdict is not None and options.forbids(dataset, verdict)

        verdicts = (Dataset.RAG, before.rag, after.rag), (Dataset.SFT, before.sft, after.sft)
        flips = [
            forbids(of, new) for of, old, new in verdicts if old is not new and (forbids(of, old) or forbids(of, new))
        ]
        if flips:
            self._run(
                "INSERT INTO rejudge_rows (walk, forced) SELECT walk, ?2 FROM scored_rows WHERE run_id = ?1"
                " ON CONFLICT (walk) DO UPDATE SET forced = max(forced, excluded.forced)",
                (run_id, int(any(flips))),
            )
        # An orphan leaves only for a verdict that forbids it: otherwise a first pass would queue all orphans.
        some = "" if any(forbids(of, new) for of, _, new in verdicts) else " AND kind <> 'orphan'"
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
        self._many("INSERT OR IGNORE INTO malformed_runs VALUES (?, ?)", runs)

    def runs_of_rest(self, record: FileRecord) -> list[str]:
        """Return the runs that a scored file's unterminated rest forbids."""
        return self._column(
            "SELECT m.run_id FROM files f CROSS JOIN malformed_runs m ON m.digest = f.rest_digest"
            " WHERE f.partition_id = ? AND f.kind = 'scored' AND f.rest_category IS NOT NULL",
            record.partition_id,
        )


def _last(dataset: Dataset, present: Said | None, absent: list[Said], options: Options) -> Said | None:
    """Return the last of the present verdict and the absent ones that forbid; ``absent`` is in falling walk order."""
    for walk, code in absent:
        if present and walk < present[0]:
            break
        if options.forbids(dataset, VERDICTS[code]):
            return walk, code
    return present


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
        f"(coalesce({last_verdict(run)} IN ({codes}), 0) OR EXISTS ({absent_verdicts(run, codes)})"
        f" OR EXISTS (SELECT 1 FROM malformed_runs m CROSS JOIN files f ON {REST.format('absent')}"
        f" AND f.rest_category IN ({codes}) WHERE m.run_id = {run}))"
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
