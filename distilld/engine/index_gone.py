"""Index files that are gone: retain what they gave, or drop it (SPEC 3, 'Absent partitions')."""

from __future__ import annotations

from collections.abc import Sequence

from distilld.core.model import InputKind, OnDelete
from distilld.engine.index_context import IndexContext
from distilld.engine.index_evidence import EvidenceFiles
from distilld.engine.index_scored import ScoredFiles
from distilld.store.absent_files import AbsentFiles
from distilld.store.inputs import FileRecord
from distilld.store.moved import forget_unnamed_evidence


class GoneFiles:
    """Takes files that are gone out of the present ones, inside the caller's transactions."""

    def __init__(self, context: IndexContext, scored: ScoredFiles, evidence: EvidenceFiles) -> None:
        self._context = context
        self._scored = scored
        self._evidence = evidence
        self._absent = AbsentFiles(context.store, context.inputs)

    def take(self, gone: Sequence[FileRecord], dropped: Sequence[FileRecord]) -> None:
        """Retain files that are ``gone``, or drop them too if the options say so; drop what was retained of others."""
        withdraws = self._context.options.on_delete is OnDelete.WITHDRAW
        # Scored files first: if their evidence is gone too, only the rows count.
        for record in sorted(gone, key=lambda record: record.kind is InputKind.EVIDENCE):
            self._context.note_gone(record)
            if withdraws:
                self._drop(record)
            elif record.kind is InputKind.SCORED:
                self._absent.retain_scored(record, self._context.options)
            else:
                self._absent.lose_evidence(record)
                record.state = "absent"
                self._context.inputs.write_file(record)
        for record in dropped:
            if record.kind is InputKind.SCORED:
                self._absent.make_scored_live(record, self._context.options)
            self._context.note_gone(record)
            self._drop(record)
        forget_unnamed_evidence(self._context.store, {record.partition_id for record in gone})

    def _drop(self, record: FileRecord) -> None:
        (self._scored if record.kind is InputKind.SCORED else self._evidence).drop(record)
        self._context.inputs.forget_file(record)
