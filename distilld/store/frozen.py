"""What is kept although no present input gives it: absent, vanished and orphaned rows (SPEC 3, 3.11, 6)."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from enum import StrEnum
from itertools import zip_longest
from typing import TYPE_CHECKING, Final, NamedTuple

import orjson

from distilld.core.line_facts import CATEGORIES, CATEGORY_CODES, DUPLICATE, LINES_END, REASON_CODES, SHIPPED
from distilld.core.model import Category, Dataset, InputKind, Options, Reason, RowRef, StatFacts
from distilld.core.plan import FileKey
from distilld.store.connection import Store
from distilld.store.counts import Counts
from distilld.store.evidence_rows import EvidenceRows
from distilld.store.inputs import FileRecord, Inputs
from distilld.store.verdicts import Verdicts, forbidding_codes, last_verdict
from distilld.store.walk_order import place_partitions
from distilld.store.work import Work

if TYPE_CHECKING:
    # Those who only look at the store do without it.
    from distilld.core.decisions import PublishedWithdrawal
    from distilld.store.ledger import Totals

_VANISHED: Final = (
    f"d.outcome = {SHIPPED} AND d.cause IN ('row_removed', 'rescored') AND d.partition_id IS NOT NULL"
    " AND (NOT EXISTS (SELECT 1 FROM scored_rows s WHERE s.run_id = d.run_id)"
    "  OR EXISTS (SELECT 1 FROM scored_rows s WHERE s.run_id = d.run_id AND s.digest = d.row)"
    "  AND NOT EXISTS (SELECT 1 FROM scored_rows s WHERE s.run_id = d.run_id AND s.evidence_found = 1))"
    " AND {not_forbidden}"
)
"""Rows whose run is named nowhere any more, or only by the very line, in another place and without its evidence."""
_EVIDENCE_GONE: Final = (
    "FROM rejudge_rows q CROSS JOIN scored_rows s USING (walk) WHERE s.{dataset} = {shipped} AND s.evidence_found = 0"
    " AND s.kept & {bit} = 0 AND q.evidence_changed <> {pruned} AND NOT EXISTS (SELECT 1 FROM files f CROSS JOIN partitions p USING (partition_id)"
    " CROSS JOIN evidence_rows e ON e.partition_id = f.partition_id AND e.run_id = s.run_id"
    " WHERE p.walk_base = (s.walk >> 26) << 26 AND f.kind = 'evidence' AND f.state = 'absent') AND {not_forbidden}"
)
"""Rows whose evidence row is gone. One that an absent file still holds is absent with it."""
_MOVED_ALONE: Final = (
    "SELECT f.* FROM rejudge_frozen q CROSS JOIN frozen_rows f USING (frozen_id)"
    f" WHERE f.kind = 'absent' AND f.{{dataset}} = {SHIPPED}"
    " AND (EXISTS (SELECT 1 FROM scored_rows s WHERE s.run_id = f.run_id AND s.digest = f.digest)"
    "  OR EXISTS (SELECT 1 FROM scored_rows s WHERE s.run_id IS NULL AND s.digest = f.digest))"
    " AND NOT EXISTS (SELECT 1 FROM scored_rows s WHERE s.run_id = f.run_id AND s.evidence_found = 1)"
    " AND {not_forbidden}"
)
"""Absent rows whose very lines stand in a present partition now, but without their evidence."""
EVIDENCE_PRUNED: Final = 2
"""In ``rejudge_rows.evidence_changed``: the row stood on evidence that an operator gave up, and is published as pruned."""
_PAIR_GONE: Final = (
    "SELECT p.pair_id, p.task_id, p.chosen_partition, p.chosen_run_id, p.rejected_partition, p.rejected_run_id,"
    " p.rejected_category, EXISTS (SELECT 1 FROM files f WHERE f.state = 'absent'"
    "  AND f.partition_id IN (p.chosen_partition, p.rejected_partition)) FROM rejudge_tasks t CROSS JOIN pairs p"
    f" USING (task_id) WHERE p.outcome = {SHIPPED} AND (p.frozen IS NULL OR p.frozen = 'absent') AND ("
    " NOT EXISTS (SELECT 1 FROM scored_rows s WHERE s.run_id = p.chosen_run_id AND s.evidence_found = 1)"
    " OR NOT EXISTS (SELECT 1 FROM scored_rows s WHERE s.run_id = p.rejected_run_id AND s.evidence_found = 1))"
)
KEPT_BITS: Final = {Dataset.RAG: 1, Dataset.SFT: 2}
KEPT_FOR_GOOD: Final = 4
_ABSENT_FILE: Final = "EXISTS (SELECT 1 FROM files f WHERE f.state = 'absent' AND f.partition_id IN (chosen_partition, rejected_partition))"


def _not_forbidden(run: str, dataset: Dataset, options: Options) -> str:
    """Whether no present verdict takes a run out anyway; ``run`` is an expression."""
    if not options.revoke:
        return "1"
    return f"coalesce({last_verdict(run)} IN ({forbidding_codes(options, dataset)}), 0) = 0"


def _vanished(dataset: Dataset, options: Options) -> str:
    return _VANISHED.format(not_forbidden=_not_forbidden("d.run_id", dataset, options))


def _moved_alone(dataset: Dataset, options: Options) -> str:
    return _MOVED_ALONE.format(dataset=dataset, not_forbidden=_not_forbidden("f.run_id", dataset, options))


def _evidence_gone(dataset: Dataset, options: Options) -> str:
    return _EVIDENCE_GONE.format(
        dataset=dataset,
        shipped=SHIPPED,
        bit=KEPT_BITS[dataset],
        pruned=EVIDENCE_PRUNED,
        not_forbidden=_not_forbidden("s.run_id", dataset, options),
    )


def _overruled(pair: str = "pairs") -> str:
    """Whether the last present verdict about a side of a pair is not the one that the pair was formed with."""
    last = f"coalesce({last_verdict(pair + '.{side}_run_id')}, {{expected}}) NOT IN ({{allowed}})"
    accepted, partial, rejected = (
        CATEGORY_CODES[category] for category in (Category.ACCEPTED, Category.PARTIALLY_ACCEPTED, Category.REJECTED)
    )
    chosen = last.format(side="chosen", expected=accepted, allowed=accepted)
    return f"{chosen} OR {last.format(side='rejected', expected=rejected, allowed=f'{partial}, {rejected}')}"


def _places_in(name: str) -> str:
    """SQL for the lines of an export by their keys, each with its place in canonical walk order."""
    dataset, sign = _lines_in(name)
    if dataset == Dataset.PREFERENCE:
        key = "sample_key" if dataset == name else "line"
        return (
            f"SELECT {key} AS key, (SELECT min(f.walk) FROM scored_rows f WHERE f.task_id = r.task_id"
            f" AND f.evidence_found = 1) AS place, slot FROM pairs r WHERE frozen IS NULL AND outcome {sign} {SHIPPED}"
        )
    key = "sample_key" if dataset == name else f"{dataset}_line"
    return (
        f"SELECT {key} AS key, walk AS place, 0 AS slot FROM scored_rows WHERE {dataset} {sign} {SHIPPED}"
        f" UNION ALL SELECT {key}, p.walk_base + f.line, 1 FROM frozen_rows f CROSS JOIN partitions p"
        f" USING (partition_id) WHERE f.kind = 'absent' AND {dataset} {sign} {SHIPPED}"
    )


def _lines_in(export: str) -> tuple[str, str]:
    """Whose lines stand in an export: the dataset, and how their outcomes compare with SHIPPED."""
    dataset = export.removeprefix("quarantine_")
    return dataset, "=" if dataset == export else "<>"


def without_evidence(dataset: Dataset) -> str:
    """A query for the shipped rows that are kept although their evidence is gone: why, and where in the walk order."""
    ships = f"s.{dataset} = {SHIPPED} AND s.evidence_found = 0"
    return (
        "SELECT 'evidence vanished' AS kind, s.walk, s.kept FROM scored_rows s INDEXED BY kept_rows"
        f" WHERE s.kept <> 0 AND {ships} UNION ALL"
        # Else SQLite makes an index of its own for the shipped rows, and reads all of them for each absent file.
        " SELECT 'evidence absent', s.walk, s.kept FROM files f CROSS JOIN partitions p USING (partition_id)"
        f" CROSS JOIN scored_rows s NOT INDEXED ON s.walk >= p.walk_base AND s.walk < p.walk_base + {LINES_END}"
        f" WHERE f.kind = 'evidence' AND f.state = 'absent' AND s.kept = 0 AND {ships}"
    )


def shipped_by_exception(totals: Totals, without_evidence: Mapping[Dataset, Mapping[str, int]]) -> dict[str, int]:
    """How many rows of each dataset ship by way of exception: frozen ones, and those whose evidence is gone."""
    return {
        dataset.value: totals.frozen(dataset) + sum(without_evidence.get(dataset, {}).values()) for dataset in Dataset
    }


class Only(StrEnum):
    """A kind of retained rows that ``prune`` may be limited to."""

    ORPHAN = "orphan"
    VANISHED = "vanished"
    """What the tripwire keeps and nobody accepted."""


def only_kind(only: Only | None, column: str = "kind") -> str:
    """Which frozen rows or pairs are of this kind; ``column`` says why each is frozen."""
    match only:
        case None:
            return "1"
        case Only.ORPHAN:
            return f"{column} = 'orphan'"
        case Only.VANISHED:
            return f"{column} = 'vanished' AND accepted = 0"


class Orphan(NamedTuple):
    """A shipped row of an export that no store knows: from an older exporter, or from before a store was lost."""

    key: int
    digest: bytes
    run_id: str
    other_run_id: str | None
    task_id: str | None
    created_at: str
    recorded_at: str


class Pruned(NamedTuple):
    """What prune let go: shipped rows and pairs, and absent files with the verdicts of their rows."""

    rows: int
    files: int


class ToldVerdict(NamedTuple):
    """What a row of an old quarantine file says of a run, and where and why the row was held, if it says so."""

    run_id: str
    category: Category
    at: RowRef | None
    reason: Reason | None


def has_exceptions(store: Store) -> bool:
    """Whether anything is absent, kept by way of exception, or about to depart."""
    return bool(
        store.connection.execute(
            "SELECT EXISTS (SELECT 1 FROM frozen_rows) OR EXISTS (SELECT 1 FROM departures)"
            " OR EXISTS (SELECT 1 FROM files WHERE state = 'absent')"
            " OR EXISTS (SELECT 1 FROM pairs WHERE frozen IS NOT NULL)"
        ).fetchone()[0]
    )


class Frozen:
    """The part of the store that knows what is kept by way of exception."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._run = store.connection.execute
        self._many = store.connection.executemany
        self._inputs = Inputs(store)
        self._evidence = EvidenceRows(store, self._inputs)
        self._counts = Counts(store)
        self._verdicts = Verdicts(store)

    # the tripwire

    def vanishing(self, dataset: Dataset, options: Options) -> int:
        """How many rows of a dataset are about to leave only because they vanished from the inputs."""
        if dataset is Dataset.PREFERENCE:
            return len(self._pairs_gone(options))
        departed = self._count(
            f"SELECT count(*) FROM departures d WHERE d.dataset = ? AND {_vanished(dataset, options)}", dataset.value
        )
        moved = self._count(f"SELECT count(*) FROM ({_moved_alone(dataset, options)})")
        return departed + moved + self._count(f"SELECT count(*) {_evidence_gone(dataset, options)}")

    def _pairs_gone(self, options: Options) -> list[tuple[int]]:
        """Pairs a side of which vanished, and none is absent any more, for then they are frozen anyway."""
        gone = f"{_PAIR_GONE} AND NOT ({_overruled('p')})" if options.revoke else _PAIR_GONE
        work, accepted = Work(self._store), CATEGORY_CODES[Category.ACCEPTED]
        return [
            (pair_id,)
            for pair_id, task_id, chosen_in, chosen, rejected_in, rejected, category, near in self._run(gone)
            if not near
            or not (
                work.side_is_absent(chosen_in, chosen, task_id, accepted)
                or work.side_is_absent(rejected_in, rejected, task_id, category)
            )
        ]

    def _count(self, query: str, *values: object) -> int:
        return int(self._run(query, values).fetchone()[0])

    def keep_vanishing(self, dataset: Dataset, options: Options) -> None:
        """Freeze them instead: they stay until somebody says what is to become of them."""
        if dataset is Dataset.PREFERENCE:
            gone = self._pairs_gone(options)
            live = self._many(
                "UPDATE pairs SET frozen = 'vanished' WHERE pair_id = ? AND frozen IS NULL", gone
            ).rowcount
            self._many("UPDATE pairs SET frozen = 'vanished' WHERE pair_id = ?", gone)
            self._shift(dataset, "live", "frozen", live)
            return
        where = f"d.dataset = '{dataset}' AND {_vanished(dataset, options)}"
        count = self._count(f"SELECT count(*) FROM departures d WHERE {where}")
        self._run(
            "INSERT INTO frozen_rows (kind, partition_id, line, start_byte, length_bytes, digest, run_id, task_id, category,"
            f" sample_key, {dataset}, {dataset}_line, {dataset}_batch)"
            " SELECT 'vanished', partition_id, row_line, 0, 0, row, run_id, task_id, category, sample_key, outcome, line, batch"
            f" FROM departures d WHERE {where}"
        )
        self._run(f"DELETE FROM departures AS d WHERE {where}")
        self._shift(dataset, "departing", "frozen", count)
        self._keep_moved(dataset, options)
        self._run(
            "INSERT OR IGNORE INTO rejudge_frozen SELECT frozen_id FROM frozen_rows WHERE kind = 'vanished' AND accepted = 0"
        )
        self._run(
            "INSERT OR IGNORE INTO rejudge_rows (walk, forced) SELECT min(s.walk), 0 FROM frozen_rows f CROSS JOIN scored_rows s"
            f" ON s.sample_key = f.sample_key AND s.{dataset} = {DUPLICATE} WHERE f.kind = 'vanished'"
            f" AND f.{dataset} = {SHIPPED} GROUP BY s.sample_key"
        )
        self._run(
            f"UPDATE scored_rows SET kept = kept | {KEPT_BITS[dataset]} WHERE walk IN (SELECT s.walk"
            f" {_evidence_gone(dataset, options)})"
        )

    def _keep_moved(self, dataset: Dataset, options: Options) -> None:
        """The lines of absent rows go to rows that vanished; what the absent ones say of their runs stays."""
        self._run("DROP TABLE IF EXISTS temp.moved")
        self._run(f"CREATE TEMP TABLE moved AS {_moved_alone(dataset, options)}")
        self._empty_rows(dataset, "frozen_id IN (SELECT frozen_id FROM moved)")
        columns = (
            "partition_id, line, start_byte, length_bytes, digest, run_id, task_id, category, sample_key,"
            f" {dataset}, {dataset}_line, {dataset}_batch"
        )
        self._run(f"INSERT INTO frozen_rows (kind, {columns}) SELECT 'vanished', {columns} FROM moved")
        self._run("DROP TABLE temp.moved")

    def thaw(self) -> None:
        """What returned, or is gone for good, is as live as before (SPEC 3, 'A path that returns')."""
        self._run(
            "DELETE FROM rejudge_frozen WHERE NOT EXISTS"
            " (SELECT 1 FROM frozen_rows f WHERE f.frozen_id = rejudge_frozen.frozen_id)"
        )
        self._thaw_pairs()
        for dataset, other in ((Dataset.RAG, Dataset.SFT), (Dataset.SFT, Dataset.RAG)):
            self._thaw_half(dataset, other)

    def _thaw_half(self, dataset: Dataset, other: Dataset) -> None:
        """Rows that returned and have an outcome in one dataset alone, because a present row took their other id over.

        They count as never judged. The line that they have goes back to them when they are judged, if they still ship it.
        """
        half = (
            "SELECT s.walk FROM rejudge_rows q CROSS JOIN scored_rows s USING (walk)"
            f" WHERE s.{dataset} IS NOT NULL AND s.{other} IS NULL"
        )
        counts = self._run(f"SELECT {dataset}, count(*) FROM scored_rows WHERE walk IN ({half}) GROUP BY 1").fetchall()
        if not counts:
            return
        for outcome, rows in counts:
            self._counts.add_total(dataset.value, "live", outcome, -rows)
            self._counts.add_total(dataset.value, "departing", outcome, rows)
        self._run(
            "INSERT INTO departures (dataset, outcome, sample_key, line, batch, run_id, task_id, category, cause,"
            f" partition_id, row_line, row) SELECT '{dataset}', {dataset}, sample_key, {dataset}_line, {dataset}_batch,"
            " run_id, task_id, category, 'displaced', partition_id, line, digest"
            f" FROM row_places WHERE walk IN ({half})"
        )
        rows = self._run(
            f"UPDATE scored_rows SET {dataset} = NULL, {dataset}_line = NULL, {dataset}_batch = NULL WHERE walk IN ({half})"
        ).rowcount
        if dataset is Dataset.RAG:  # a row without an outcome in RAG counts as unjudged already
            self._run("UPDATE counters SET value = value + ? WHERE name = 'unjudged_rows'", (rows,))

    def _thaw_pairs(self) -> None:
        """Frozen pairs of which no file is absent any more are formed anew.

        Their tasks wait in the queue already: the rows that returned, or are gone for good, have put them there.
        """
        where = f"frozen = 'absent' AND task_id IN (SELECT task_id FROM rejudge_tasks) AND NOT {_ABSENT_FILE}"
        counts = self._run(f"SELECT outcome, count(*) FROM pairs WHERE {where} GROUP BY 1").fetchall()
        for outcome, rows in counts:
            self._counts.add_total(Dataset.PREFERENCE.value, "frozen", outcome, -rows)
            self._counts.add_total(Dataset.PREFERENCE.value, "live", outcome, rows)
        if counts:
            self._run(f"UPDATE pairs SET frozen = NULL WHERE {where}")

    def _shift(self, dataset: Dataset, source: str, target: str, rows: int) -> None:
        self._counts.add_total(dataset.value, source, SHIPPED, -rows)
        self._counts.add_total(dataset.value, target, SHIPPED, rows)

    def held_by_tripwire(self) -> dict[str, int]:
        """Rows that the tripwire keeps and nobody has decided on, by dataset; datasets without any are left out."""
        found = {
            dataset.value: self._count(
                f"SELECT count(*) FROM frozen_rows WHERE kind = 'vanished' AND accepted = 0 AND {dataset} = {SHIPPED}"
            )
            + self._count(
                f"SELECT count(*) FROM scored_rows INDEXED BY kept_rows WHERE kept <> 0"
                f" AND kept & {bit | KEPT_FOR_GOOD} = {bit} AND {dataset} = {SHIPPED}"
            )
            for dataset, bit in KEPT_BITS.items()
        }
        found[Dataset.PREFERENCE.value] = self._count(
            "SELECT count(*) FROM pairs WHERE frozen = 'vanished' AND accepted = 0"
        )
        return {dataset: rows for dataset, rows in found.items() if rows}

    def counts_without_evidence(self) -> dict[Dataset, dict[str, int]]:
        """Shipped rows that are kept although their evidence is gone, by dataset and kind."""
        return {
            dataset: dict(
                self._run(f"SELECT kind, count(*) FROM ({without_evidence(dataset)}) GROUP BY kind").fetchall()
            )
            for dataset in KEPT_BITS
        }

    def frozen_counts(self) -> dict[str, int]:
        """Frozen shipped rows and pairs by kind, over all datasets: what ships in two of them counts twice."""
        rows = self._run(
            f"SELECT kind, sum((rag IS {SHIPPED}) + (sft IS {SHIPPED})) FROM frozen_rows GROUP BY kind"
            f" UNION ALL SELECT frozen, count(*) FROM pairs WHERE frozen IS NOT NULL AND outcome = {SHIPPED} GROUP BY frozen"
        )
        found: dict[str, int] = {}
        for kind, count in rows:
            if count:
                found[kind] = found.get(kind, 0) + count
        return found

    # prune

    def accept(self) -> int:
        """Keep what the tripwire kept for good; returns how many rows and pairs."""
        done = self._run("UPDATE frozen_rows SET accepted = 1 WHERE kind = 'vanished' AND accepted = 0").rowcount
        done += self._run("UPDATE pairs SET accepted = 1 WHERE frozen = 'vanished' AND accepted = 0").rowcount
        self._run(
            f"UPDATE frozen_rows SET accepted = accepted | {KEPT_FOR_GOOD} WHERE kind = 'absent' AND accepted <> 0"
        )
        done += self._run(
            f"UPDATE scored_rows SET kept = kept | {KEPT_FOR_GOOD} WHERE kept <> 0 AND kept & {KEPT_FOR_GOOD} = 0"
        ).rowcount
        return int(done)

    def prune(
        self, partition_glob: str | None, *, only: Only | None, options: Options, returned: Iterable[FileRecord] = ()
    ) -> Pruned:
        """Let frozen rows depart, and forget the absent verdicts behind them, unless ``only`` one kind is meant.

        What they hold leaves the files with the next batch, and is published as pruned. What belongs to absent files that
        have ``returned`` is left alone: the next look finds it.
        """
        spared = {(record.kind, record.path): record for record in returned}
        self._run("DROP TABLE IF EXISTS temp.spared")
        self._run("CREATE TEMP TABLE spared (partition_id INTEGER, kind TEXT)")
        self._many(
            "INSERT INTO spared VALUES (?, ?)", [(each.partition_id, each.kind.value) for each in spared.values()]
        )
        matches = "1"
        values: tuple[object, ...] = ()
        if partition_glob is not None:
            matches = "EXISTS (SELECT 1 FROM partitions p WHERE p.partition_id = {column} AND p.path GLOB ?1)"
            values = (partition_glob,)
        where = (
            matches.format(column="frozen_rows.partition_id")
            + f" AND {only_kind(only)}"
            + " AND NOT EXISTS (SELECT 1 FROM spared x WHERE x.partition_id = frozen_rows.partition_id AND x.kind = 'scored')"
        )
        runs = [
            run_id
            for (run_id,) in self._run(
                f"SELECT DISTINCT run_id FROM frozen_rows WHERE run_id IS NOT NULL AND {where}"
                " UNION SELECT m.run_id FROM frozen_rows CROSS JOIN malformed_runs m ON m.digest = frozen_rows.digest"
                f" WHERE frozen_rows.run_id IS NULL AND {where}"
                " UNION SELECT m.run_id FROM files f CROSS JOIN malformed_runs m ON m.digest = f.rest_digest"
                " WHERE f.state = 'absent' AND f.rest_category IS NOT NULL",
                values,
            )
        ]
        before = [self._verdicts.in_force(run_id, options) for run_id in runs]
        pruned = 0
        for dataset in KEPT_BITS:
            pruned += self._count(f"SELECT count(*) FROM frozen_rows WHERE {dataset} = {SHIPPED} AND {where}", *values)
            self._depart_rows(dataset, where, values)
        self._run(
            f"DELETE FROM rejudge_frozen WHERE frozen_id IN (SELECT frozen_id FROM frozen_rows WHERE {where})", values
        )
        self._run(f"DELETE FROM frozen_rows WHERE {where}", values)
        pruned += self._depart_pairs(partition_glob, only)
        files = 0
        if only is None:
            files = self._forget_absent_files(partition_glob, spared)
        if only is not Only.ORPHAN:
            self._give_up_kept(partition_glob, only)
            pruned += self._rows_without_evidence()
        for run_id, old in zip(runs, before, strict=True):
            self._verdicts.queue_change(run_id, old, self._verdicts.in_force(run_id, options), options)
        self._run("DROP TABLE temp.spared")
        return Pruned(pruned, files)

    def _depart_rows(self, dataset: Dataset, where: str, values: tuple[object, ...], cause: str = "'pruned'") -> None:
        counts = self._run(
            f"SELECT {dataset}, count(*) FROM frozen_rows WHERE {dataset} IS NOT NULL AND {where} GROUP BY 1", values
        ).fetchall()
        for outcome, rows in counts:
            self._counts.add_total(dataset.value, "frozen", outcome, -rows)
            self._counts.add_total(dataset.value, "departing", outcome, rows)
        self._run(
            "INSERT INTO departures (dataset, outcome, sample_key, line, batch, run_id, task_id, category, cause, partition_id,"
            f" row_line, row) SELECT '{dataset}', {dataset}, sample_key, {dataset}_line, {dataset}_batch, run_id, task_id,"
            f" category, {cause}, partition_id, line, digest FROM frozen_rows WHERE {dataset} IS NOT NULL AND {where}",
            values,
        )

    def _empty_rows(self, dataset: Dataset, where: str) -> None:
        """Frozen rows have no outcome in a dataset any more."""
        self._run(
            f"UPDATE frozen_rows SET {dataset} = NULL, {dataset}_line = NULL, {dataset}_batch = NULL WHERE {where}"
        )

    def _depart_pairs(self, partition_glob: str | None, only: Only | None) -> int:
        where, values = f"frozen IS NOT NULL AND {only_kind(only, 'frozen')}", ()
        where += " AND NOT EXISTS (SELECT 1 FROM spared x WHERE x.partition_id IN (pairs.chosen_partition, pairs.rejected_partition))"
        if partition_glob is not None:
            where += (
                " AND EXISTS (SELECT 1 FROM partitions p WHERE p.partition_id IN (chosen_partition, rejected_partition)"
                " AND p.path GLOB ?1)"
            )
            values = (partition_glob,)  # type: ignore[assignment]
        return self.depart_pairs(where, values, "'pruned'")

    def depart_pairs(self, where: str, values: tuple[object, ...], cause: str) -> int:
        """Let frozen pairs depart; returns how many of them ship."""
        counts = self._run(f"SELECT outcome, count(*) FROM pairs WHERE {where} GROUP BY 1", values).fetchall()
        for outcome, rows in counts:
            self._counts.add_total(Dataset.PREFERENCE.value, "frozen", outcome, -rows)
            self._counts.add_total(Dataset.PREFERENCE.value, "departing", outcome, rows)
        self._run(
            "INSERT INTO departures (dataset, outcome, sample_key, line, batch, run_id, other_run_id, task_id, cause)"
            f" SELECT 'preference', outcome, sample_key, line, batch, chosen_run_id, rejected_run_id, task_id, {cause}"
            f" FROM pairs WHERE {where}",
            values,
        )
        self._run(f"DELETE FROM pairs WHERE {where}", values)
        return sum(rows for outcome, rows in counts if outcome == SHIPPED)

    def _forget_absent_files(self, partition_glob: str | None, spared: Mapping[FileKey, FileRecord]) -> int:
        """Evidence that is absent, or vanished and was missed, is gone for good: what was built on it is judged without.

        Returns how many files are forgotten.
        """
        forgotten = 0
        self._inputs.forget_files()
        for key, record in list(self._inputs.files().items()):
            if record.present or key in spared or not self._matches(record.path, partition_glob):
                continue
            if record.kind.value == "evidence":
                self._evidence.stage()
                self._evidence.apply(record, whole_file=True)
                self._give_up(
                    "walk >= ?1 AND walk < ?2 AND evidence_found = 0",
                    (record.walk_base, record.walk_base + LINES_END),
                )
            self._inputs.forget_file(record)
            forgotten += 1
        self._inputs.forget_files()
        return forgotten

    def _give_up_kept(self, partition_glob: str | None, only: Only | None) -> None:
        """Rows that are kept though their evidence vanished are judged without it."""
        decided = f" AND kept & {KEPT_FOR_GOOD} = 0" if only is Only.VANISHED else ""
        self._give_up(
            f"kept <> 0{decided} AND (?1 IS NULL OR EXISTS (SELECT 1 FROM partitions p"
            " WHERE p.walk_base = (scored_rows.walk >> 26) << 26 AND p.path GLOB ?1))",
            (partition_glob,),
        )

    def _rows_without_evidence(self) -> int:
        """Shipped rows that are judged without the evidence which was given up."""
        return self._count(
            "SELECT coalesce(sum((s.rag = 0) + (s.sft = 0)), 0) FROM rejudge_rows q CROSS JOIN scored_rows s USING (walk)"
            f" WHERE q.evidence_changed = {EVIDENCE_PRUNED} AND s.evidence_found = 0"
        )

    def _give_up(self, where: str, values: tuple[object, ...]) -> None:
        """Rows that stand without their evidence are judged without it, and count as pruned where they leave."""
        self._run(
            f"INSERT INTO rejudge_rows SELECT walk, 0, {EVIDENCE_PRUNED} FROM scored_rows WHERE rag IS NOT NULL AND {where}"
            f" ON CONFLICT (walk) DO UPDATE SET evidence_changed = {EVIDENCE_PRUNED}",
            values,
        )
        self._run(f"UPDATE scored_rows SET kept = 0 WHERE kept <> 0 AND {where}", values)

    def _matches(self, path: str, partition_glob: str | None) -> bool:
        return partition_glob is None or bool(self._count("SELECT ? GLOB ?", path, partition_glob))

    # taking over

    def stage_arrivals(self) -> None:
        """Begin to take a file in that no store knows."""
        self._run("DROP TABLE IF EXISTS temp.arrivals")
        self._run(
            "CREATE TEMP TABLE arrivals (sample_key INTEGER PRIMARY KEY, line BLOB, run_id TEXT, other_run_id TEXT,"
            " task_id TEXT, created_at TEXT, recorded_at TEXT)"
        )
        self._run("DROP TABLE IF EXISTS temp.history")
        self._run(
            "CREATE TEMP TABLE history (nth INTEGER PRIMARY KEY, id TEXT, source_run_id TEXT, chosen_run_id TEXT,"
            " rejected_run_id TEXT, cause TEXT, replaced INTEGER, verdict TEXT, shipped_batch TEXT, withdrawn_batch TEXT,"
            " withdrawn_at TEXT)"
        )

    def stage_orphan(self, orphan: Orphan) -> bool:
        """Take in a row of an export; False for one whose id was taken in before."""
        return bool(self._run("INSERT OR IGNORE INTO arrivals VALUES (?, ?, ?, ?, ?, ?, ?)", orphan).rowcount)

    def stage_history(self, withdrawal: PublishedWithdrawal) -> None:
        """Take in a line of an older log of withdrawals."""
        verdict = orjson.dumps(withdrawal.verdict).decode() if withdrawal.verdict is not None else None
        self._run(
            "INSERT INTO history (id, source_run_id, chosen_run_id, rejected_run_id, cause, replaced, verdict,"
            " shipped_batch, withdrawn_batch, withdrawn_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*withdrawal[1:7], verdict, *withdrawal[8:]),
        )

    def add_orphans(self, dataset: Dataset) -> None:
        """The staged rows are orphans of this dataset."""
        if dataset is Dataset.PREFERENCE:
            rows = self._run(
                "INSERT INTO pairs (task_id, slot, frozen, chosen_run_id, rejected_run_id, rejected_category, sample_key,"
                f" outcome, line, batch) SELECT coalesce(task_id, ''), 0, 'orphan', run_id, coalesce(other_run_id, ''), 0,"
                f" sample_key, {SHIPPED}, line, 0 FROM arrivals"
            ).rowcount
        else:
            rows = self._run(
                f"INSERT INTO frozen_rows (kind, start_byte, length_bytes, digest, run_id, sample_key, {dataset},"
                f" {dataset}_line, {dataset}_batch) SELECT 'orphan', 0, 0, x'', run_id, sample_key, {SHIPPED}, line, 0"
                " FROM arrivals"
            ).rowcount
        self._run(
            "INSERT INTO adopted_rows SELECT ?, sample_key, created_at, recorded_at FROM arrivals", (dataset.value,)
        )
        self._counts.add_total(dataset.value, "frozen", SHIPPED, rows)
        self._run("DROP TABLE temp.arrivals")

    def add_history(self, dataset: Dataset) -> None:
        """The staged lines are withdrawals from before this store: numbered up to 0, so that they count as no news."""
        self._run(
            "INSERT INTO withdrawals SELECT (SELECT min(coalesce(min(withdrawal_id), 1), 1) FROM withdrawals) - n.down, ?1,"
            " id, source_run_id, chosen_run_id, rejected_run_id, cause, replaced, verdict, shipped_batch, withdrawn_batch,"
            " withdrawn_at FROM (SELECT *, row_number() OVER (ORDER BY nth DESC) AS down FROM history) AS n",
            (dataset.value,),
        )
        self._run("DROP TABLE temp.history")

    def stage_verdicts(self) -> None:
        """Begin to take in what old quarantine files say of runs."""
        self._run("DROP TABLE IF EXISTS temp.told")
        self._run(
            "CREATE TEMP TABLE told (dataset TEXT, path TEXT, line INTEGER, run_id TEXT, category INTEGER, outcome INTEGER,"
            " digest BLOB, UNIQUE (dataset, path, line))"
        )

    def stage_verdict(self, dataset: Dataset, verdict: ToldVerdict, line: bytes | None) -> bool:
        """Take one in, with the digest of its line if that is to stay; False where another told of the same row."""
        partition, number = verdict.at or (None, None)
        outcome = REASON_CODES[verdict.reason] if verdict.reason is not None else None
        return bool(
            self._run(
                "INSERT OR IGNORE INTO told VALUES (?, ?, ?, ?, ?, ?, ?)",
                (dataset.value, partition, number, verdict.run_id, CATEGORY_CODES[verdict.category], outcome, line),
            ).rowcount
        )

    def add_verdicts(self) -> None:
        """The staged verdicts forbid: orphans at once, and all rows of their runs until their partitions are read.

        A partition counts as absent until then; nothing of the row but its line is known. When it is read it is taken in
        as one that was rewritten meanwhile.
        """
        for run_id, code in self._run("SELECT DISTINCT run_id, category FROM told").fetchall():
            self._forbid_orphans(run_id, CATEGORIES[code])
        paths = [path for (path,) in self._run("SELECT DISTINCT path FROM told WHERE path IS NOT NULL")]
        for path, place in place_partitions(self._store, paths).items():
            nothing = StatFacts(0, 0, 0, 0, 0)
            self._inputs.write_file(
                FileRecord(*place, path, InputKind.SCORED, "absent", nothing, 0, "", 0, 0, None, 0, None)
            )
        line = "max(t.digest) FILTER (WHERE t.dataset = '{0}')"
        outcome = "max(t.outcome) FILTER (WHERE t.dataset = '{0}' AND t.digest IS NOT NULL)"
        self._run(
            "INSERT INTO frozen_rows (kind, partition_id, line, start_byte, length_bytes, digest, run_id, category,"
            " rag, rag_line, rag_batch, sft, sft_line, sft_batch)"
            " SELECT 'absent', p.partition_id, t.line, 0, 0, x'', min(t.run_id), min(t.category),"
            f" {outcome.format('rag')}, {line.format('rag')}, iif({line.format('rag')} IS NULL, NULL, 0),"
            f" {outcome.format('sft')}, {line.format('sft')}, iif({line.format('sft')} IS NULL, NULL, 0)"
            " FROM told t CROSS JOIN partitions p ON p.path = t.path GROUP BY p.partition_id, t.line"
        )
        staying = "SELECT dataset, outcome, count(*) FROM told WHERE digest IS NOT NULL GROUP BY 1, 2"
        for dataset, code, rows in self._run(staying).fetchall():
            self._counts.add_total(dataset, "frozen", code, rows)
        self._run("DROP TABLE temp.told")

    def _forbid_orphans(self, run_id: str, category: Category) -> None:
        """A row of an old quarantine file says that a run was rejected, or never reviewed."""
        self._run(
            "UPDATE frozen_rows SET category = ? WHERE run_id = ? AND kind = 'orphan' AND coalesce(category, 0) <> ?",
            (CATEGORY_CODES[category], run_id, CATEGORY_CODES[Category.REJECTED]),
        )
        self._run("UPDATE pairs SET rejected_category = -1 WHERE chosen_run_id = ? AND frozen = 'orphan'", (run_id,))

    def unsettled_orphans(self) -> bool:
        """Whether there are orphans that nobody has decided on."""
        return bool(
            self._count("SELECT EXISTS (SELECT 1 FROM frozen_rows WHERE kind = 'orphan' AND accepted = 0)")
            or self._count("SELECT EXISTS (SELECT 1 FROM pairs WHERE frozen = 'orphan' AND accepted = 0)")
        )

    def settle_orphans(self, options: Options) -> int:
        """Once every input was judged: orphans leave where the inputs name their runs, or something forbids them.

        Those that stay are marked as looked at; returns how many leave.
        """
        gone = 0
        for dataset in KEPT_BITS:
            codes = forbidding_codes(options, dataset)
            where = (
                f"kind = 'orphan' AND accepted = 0 AND {dataset} IS NOT NULL AND (EXISTS (SELECT 1 FROM scored_rows s"
                f" WHERE s.run_id = frozen_rows.run_id) OR category IN ({codes}))"
            )
            gone += self._count(f"SELECT count(*) FROM frozen_rows WHERE {where}")
            self._depart_rows(dataset, where, (), f"CASE WHEN category IN ({codes}) THEN 'revoked' ELSE 'rescored' END")
            self._empty_rows(dataset, where)
        self._run("DELETE FROM frozen_rows WHERE kind = 'orphan' AND rag IS NULL AND sft IS NULL")
        gone += self.depart_pairs(
            "frozen = 'orphan' AND accepted = 0 AND (rejected_category = -1 OR EXISTS (SELECT 1 FROM scored_rows s"
            " WHERE s.run_id = pairs.chosen_run_id) OR EXISTS (SELECT 1 FROM scored_rows s"
            " WHERE s.run_id = pairs.rejected_run_id))",
            (),
            f"CASE WHEN rejected_category = -1 OR {_overruled()} THEN 'revoked' ELSE 'rescored' END",
        )
        self._run("UPDATE frozen_rows SET accepted = 1 WHERE kind = 'orphan'")
        self._run("UPDATE pairs SET accepted = 1 WHERE frozen = 'orphan'")
        return gone

    # damaged exports

    def expect(self, name: str) -> None:
        """Collect the digests of the lines that an export is to hold, in ``temp.expected``."""
        self._run("DROP TABLE IF EXISTS temp.expected")
        self._run("CREATE TEMP TABLE expected (digest BLOB PRIMARY KEY, copies INTEGER) WITHOUT ROWID")
        dataset, sign = _lines_in(name)
        if dataset == Dataset.PREFERENCE:
            lines = f"SELECT line FROM pairs WHERE outcome {sign} {SHIPPED}"
        else:
            lines = (
                f"SELECT {dataset}_line AS line FROM scored_rows WHERE {dataset} {sign} {SHIPPED}"
                f" UNION ALL SELECT {dataset}_line FROM frozen_rows WHERE {dataset} {sign} {SHIPPED}"
            )
        lines += f" UNION ALL SELECT line FROM departures WHERE dataset = '{dataset}' AND outcome {sign} {SHIPPED}"
        self._run(f"INSERT INTO expected SELECT line, count(*) FROM ({lines}) WHERE line IS NOT NULL GROUP BY line")

    def is_expected(self, digest: bytes) -> bool:
        """Whether one more line with this digest is expected; it counts as found then."""
        return bool(
            self._run("UPDATE expected SET copies = copies - 1 WHERE digest = ? AND copies > 0", (digest,)).rowcount
        )

    def miss_expected(self, name: str) -> int:
        """What was not found is missing: rows are queued to be written again, frozen rows are lost."""
        self._run("DELETE FROM missing_lines WHERE name = ?", (name,))
        self._run("INSERT INTO missing_lines SELECT ?, digest, copies FROM expected WHERE copies > 0", (name,))
        missing = self._count("SELECT coalesce(sum(copies), 0) FROM missing_lines WHERE name = ?", name)
        lines = "(SELECT digest FROM expected WHERE copies > 0)"
        dataset, sign = _lines_in(name)
        self._lose(name, lines)
        if dataset == Dataset.PREFERENCE:
            self._run(
                f"INSERT OR IGNORE INTO rejudge_tasks SELECT DISTINCT task_id, 1 FROM pairs WHERE line IN {lines}"
            )
        else:
            self._run(
                "INSERT OR IGNORE INTO rejudge_rows (walk, forced) SELECT walk, 0 FROM scored_rows"
                f" WHERE {dataset} {sign} {SHIPPED} AND {dataset}_line IN {lines}"
            )
        self._run("DROP TABLE temp.expected")
        return missing

    def lose_missing(self) -> None:
        """Lines that a damaged export lost and whose rows were frozen since cannot be written again: they are lost."""
        for (name,) in self._run("SELECT DISTINCT name FROM missing_lines").fetchall():
            self._lose(name, f"(SELECT digest FROM missing_lines WHERE name = '{name}')")

    def _lose(self, name: str, lines: str) -> None:
        """Frozen rows and pairs whose lines an export lost, by their digests, leave."""
        dataset, sign = _lines_in(name)
        if dataset == Dataset.PREFERENCE:
            self.depart_pairs(f"frozen IS NOT NULL AND outcome {sign} {SHIPPED} AND line IN {lines}", (), "'lost'")
            return
        where = f"{dataset} {sign} {SHIPPED} AND {dataset}_line IN {lines}"
        self._depart_rows(Dataset(dataset), where, (), "'lost'")
        self._empty_rows(Dataset(dataset), where)

    # canonical order

    def is_in_order(self, name: str, lines: Iterable[tuple[int, int, object]]) -> bool:
        """Whether an export's lines are those of :meth:`order_lines`, in that order; the same ``lines``."""
        with closing(self._run(f"SELECT key FROM ({_places_in(name)}) ORDER BY place, slot")) as expected:
            return all(
                line is not None and row is not None and line[2] == row[0] for line, row in zip_longest(lines, expected)
            )

    def order_lines(
        self, name: str, lines: Iterable[tuple[int, int, object]]
    ) -> Generator[tuple[int, int], None, None]:
        """The (offset, length) of an export's lines in canonical walk order; to be closed if it is not read to its end.

        Rows of absent partitions stand where they stood; pairs that are frozen, and orphans, come last. ``lines`` gives
        offset, length and key of each line: the sample key in a dataset, the digest in a quarantine.
        """
        self._run("DROP TABLE IF EXISTS temp.lines")
        self._run("CREATE TEMP TABLE lines (start INTEGER PRIMARY KEY, length INTEGER, key)")
        self._many("INSERT INTO lines VALUES (?, ?, ?)", lines)
        self._run("DROP TABLE IF EXISTS temp.places")
        self._run(
            "CREATE TEMP TABLE places AS SELECT *, row_number() OVER (PARTITION BY key ORDER BY place, slot) AS nth"
            f" FROM ({_places_in(name)})"
        )
        self._run("CREATE INDEX temp.places_by_key ON places (key, nth)")
        yield from self._run(
            "SELECT l.start, l.length FROM (SELECT *, row_number() OVER (PARTITION BY key ORDER BY start) AS nth"
            " FROM lines) l LEFT JOIN places p ON p.key = l.key AND p.nth = l.nth"
            " ORDER BY p.place IS NULL, p.place, p.slot, l.start"
        )
        self._run("DROP TABLE temp.lines")
        self._run("DROP TABLE temp.places")
