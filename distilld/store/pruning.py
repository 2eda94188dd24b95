"""What an operator decides about retained rows: to keep them for good, or to withdraw them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from distilld.core.model import ROW_DATASETS, Options
from distilld.core.plan import FileKey
from distilld.store.connection import Store
from distilld.store.departures import Departures
from distilld.store.evidence_rows import EvidenceRows
from distilld.store.inputs import FileRecord, Inputs
from distilld.store.queues import EVIDENCE_PRUNED, HAS_OUTCOME
from distilld.store.retained import Only, only_kind
from distilld.store.statements import Statements
from distilld.store.verdicts import Verdicts, forbidding_codes, runs_of


class Pruned(NamedTuple):
    """How much prune removed: exported rows and pairs, and absent files with the verdicts of their rows."""

    rows: int
    files: int


class Pruning(Statements):
    """Carries out such decisions."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._inputs = Inputs(store)
        self._evidence = EvidenceRows(store, self._inputs)
        self._departures = Departures(store)
        self._verdicts = Verdicts(store)

    def accept(self) -> int:
        """Mark what the tripwire keeps as kept for good; return how many rows and pairs."""
        done = self._run("UPDATE retained_rows SET accepted = 1 WHERE kind = 'vanished' AND accepted = 0").rowcount
        done += self._run("UPDATE pairs SET accepted = 1 WHERE retained = 'vanished' AND accepted = 0").rowcount
        return int(done)

    def prune(
        self, partition_glob: str | None, *, only: Only | None, options: Options, returned: Iterable[FileRecord] = ()
    ) -> Pruned:
        """Withdraw retained rows; unless ``only`` one kind is meant, also forget absent files with their verdicts.

        The lines leave the files with the next batch, and are published as pruned. Rows of absent files that have
        ``returned`` are spared: the next look finds these files.
        """
        spared = {record.key: record for record in returned}
        self._stage("spared", "(partition_id INTEGER, kind TEXT)")
        self._many(
            "INSERT INTO spared VALUES (?, ?)", [(each.partition_id, each.kind.value) for each in spared.values()]
        )
        matching = "SELECT partition_id FROM partitions WHERE ?1 IS NULL OR path GLOB ?1"
        self._stage_rows("matching", matching, partition_glob)
        # An orphan has no partition, so no pattern matches it.
        matches = "1" if partition_glob is None else "{} IN (SELECT partition_id FROM matching)"
        where = (
            f"{matches.format('retained_rows.partition_id')} AND {only_kind(only)}"
            " AND NOT EXISTS (SELECT 1 FROM spared x WHERE x.partition_id = retained_rows.partition_id AND x.kind = 'scored')"
        )
        with self._verdicts.changing(self._runs_set_free(options) if only is None else (), options):
            pruned = 0
            for dataset in ROW_DATASETS:
                pruned += self._departures.add_rows(dataset, "retained_rows", "retained", where, "'pruned'")
            self._run(f"DELETE FROM retained_rows WHERE {where}")
            sides = (matches.format(side) for side in ("chosen_partition", "rejected_partition"))
            pruned += self._departures.move_pairs(
                f"retained IS NOT NULL AND {only_kind(only, 'retained')} AND ({' OR '.join(sides)}) AND NOT EXISTS"
                " (SELECT 1 FROM spared x WHERE x.partition_id IN (pairs.chosen_partition, pairs.rejected_partition))",
                "'pruned'",
            )
            files = 0
            if only is None:
                files = self._forget_absent_files(spared)
                pruned += self._rows_without_evidence()
        self._unstage("spared", "matching")
        return Pruned(pruned, files)

    def _runs_set_free(self, options: Options) -> list[str]:
        """Return the runs that an absent verdict forbids and that present rows name, or pairs: others are not judged again."""
        codes = forbidding_codes(options, *ROW_DATASETS)
        forbidden = runs_of("retained_rows", f"n.kind = 'absent' AND n.category IN ({codes})")
        rests = (
            "SELECT m.run_id FROM files f CROSS JOIN malformed_runs m ON m.digest = f.rest_digest"
            " WHERE f.state = 'absent' AND f.rest_category IS NOT NULL"
        )
        return self._column(
            f"SELECT r.run_id FROM ({forbidden} UNION {rests}) r"
            " WHERE EXISTS (SELECT 1 FROM scored_rows s WHERE s.run_id = r.run_id)"
            " OR EXISTS (SELECT 1 FROM pairs p WHERE p.chosen_run_id = r.run_id)"
            " OR EXISTS (SELECT 1 FROM pairs p WHERE p.rejected_run_id = r.run_id)"
        )

    def _forget_absent_files(self, spared: Mapping[FileKey, FileRecord]) -> int:
        """Forget absent files; rows that stand on their evidence are judged without it. Return how many files."""
        forgotten = 0
        matching = set(self._column("SELECT partition_id FROM matching"))
        self._inputs.forget_files()
        for key, record in list(self._inputs.files().items()):
            if record.present or key in spared or record.partition_id not in matching:
                continue
            if record.kind.value == "evidence":
                self._evidence.drop(record)
                # Rows that leave without this evidence count as pruned.
                self._run(
                    f"INSERT INTO rejudge_rows SELECT walk, 0, {EVIDENCE_PRUNED} FROM scored_rows s WHERE {HAS_OUTCOME}"
                    f" AND {record.holds('walk')} AND evidence_found = 0"
                    f" ON CONFLICT (walk) DO UPDATE SET evidence_changed = {EVIDENCE_PRUNED}"
                )
            self._inputs.forget_file(record)
            forgotten += 1
        self._inputs.forget_files()
        return forgotten

    def _rows_without_evidence(self) -> int:
        """Return how many exported rows will be judged without the evidence that was given up."""
        return self._number(
            "SELECT coalesce(sum((s.rag = 0) + (s.sft = 0)), 0) FROM rejudge_rows q CROSS JOIN scored_rows s USING (walk)"
            f" WHERE q.evidence_changed = {EVIDENCE_PRUNED} AND s.evidence_found = 0"
        )
