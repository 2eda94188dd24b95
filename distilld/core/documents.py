"""The models of the other files for ``distilld schema``: the inputs, and what distilld reports.

Inputs are read tolerantly (:mod:`distilld.core.records`): a row that does not match its model is not an error; either
it is quarantined with a reason, or the field counts as absent.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from distilld.core.model import Category, Cause, InputKind, Trigger
from distilld.core.samples import NotBlank, NotEmpty, Strict


class _Open(BaseModel):
    """The base of models that allow unknown keys."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


class ScoredProvenance(_Open):
    """Where the scorer found the run."""

    source_file: Annotated[NotEmpty, Field(description="Without it RAG quarantines the row.")]
    line_offset: Annotated[int | None, Field(description="Copied to the dataset; null where it is no integer.")] = None
    sig_hash: Annotated[
        NotEmpty, Field(description="With the run id it makes the row's id; without it the row is quarantined.")
    ]
    recorded_at: str | None = None


class ScoredRun(_Open):
    """A line of data/scored-runs/YYYY/MM/DD/NAME.jsonl: what the scorer says of a run."""

    evidence_run_id: Annotated[NotEmpty, Field(description="Names the run, in the mirrored evidence file.")]
    evidence_task_id: Annotated[
        NotEmpty | None, Field(description="Runs of one task make preference pairs; a snapshot never splits a task.")
    ] = None
    category: Annotated[Category, Field(description="The last one of a run, over all files, is its current verdict.")]
    reasons: Annotated[list[str], Field(description="The first one is quoted in the reason of a preference pair.")] = []
    provenance: ScoredProvenance


class RetrievedContext(_Open):
    """What was retrieved for the run; it becomes the context of an SFT row."""

    matrix_corpora: list[str | int | float] | None = None
    pathway_fingerprints_seen: int | float | None = None


class EvidenceMetadata(_Open):
    """What the template of contract analyses names."""

    contractor: str | None = None


class EvidenceProvenance(_Open):
    """The file that the run's answer came from."""

    source_file: Annotated[str, Field(description="Chooses the template of an SFT instruction.")]


class Evidence(_Open):
    """A line of data/evidence/YYYY/MM/DD/NAME.jsonl: the record of a run; the last one of a run in a file counts."""

    run_id: NotEmpty
    task_id: str
    model_role: Annotated[NotEmpty | None, Field(description="SFT takes only executor, reviewer and applier.")] = None
    model_name: NotEmpty | None = None
    text: Annotated[NotBlank, Field(description="The answer; a row without it is quarantined.")]
    source_files: list[str] = []
    retrieved_context: RetrievedContext | None = None
    metadata: EvidenceMetadata | None = None
    provenance: EvidenceProvenance


class VerdictLocation(Strict):
    """The place of a verdict."""

    partition: str
    line_offset: int


class WithdrawalVerdict(Strict):
    """The verdict that took a row out."""

    category: Category
    location: VerdictLocation


class WithdrawalRow(Strict):
    """A line of exports/withdrawals: a row that left a dataset, or was replaced under its id."""

    id: NotBlank
    source_run_id: str | None
    chosen_run_id: str | None
    rejected_run_id: str | None
    cause: Cause
    replaced: bool
    verdict: WithdrawalVerdict | None
    shipped_batch: str | None
    withdrawn_batch: NotEmpty
    withdrawn_at: NotEmpty


class ReceiptGit(Strict):
    """The git checkout that contains the root; all null if there is none."""

    sha: str | None
    branch: str | None
    dirty: bool | None


class ReceiptInput(Strict):
    """An input file that changed since the receipt before."""

    path: str
    kind: InputKind
    change: str
    sha256: str | None
    bytes: int
    from_offset: int
    to_offset: int
    lines: int
    malformed_lines: int


class ReceiptOutput(Strict):
    """An export that the batch wrote, in its state after the batch.

    ``sha256`` is that of the bytes if there are at most ``segment_bytes`` of them, or if that is null. Of a
    longer file it is the sha256 of the sha256s of its segments, each of ``segment_bytes`` but the last.
    """

    path: str
    sha256: str
    segment_bytes: int | None = None
    bytes: int
    rows: int
    appended: int
    withdrawn: int
    adopted: int
    rewritten: bool


class ReceiptDatasetCounts(Strict):
    """One dataset after the batch, and what the batch did to it."""

    rows: int
    quarantine_rows: int
    retained_rows: int
    appended: int
    withdrawn: int
    replaced: int
    quarantined: int
    by_reason: dict[str, int]


class ReceiptCounts(Strict):
    """The rows of a batch."""

    model_config = ConfigDict(populate_by_name=True)

    in_: Annotated[int, Field(alias="in")]
    out: int
    quarantined: int
    withdrawn: int
    by_category: dict[Category, int]
    by_reason: dict[str, int]
    per_exporter: dict[Literal["rag", "sft", "preference"], ReceiptDatasetCounts]


class ReceiptRunCounts(Strict):
    """What a run did to one dataset; a replaced row counts only as appended."""

    appended: int
    withdrawn: int
    by_cause: dict[str, int]


class ReceiptRun(Strict):
    """The run up to this batch: one scan and the batches that followed. The first few withdrawn runs are named."""

    run_id: str
    batches: int
    started_at: str
    datasets: dict[Literal["rag", "sft", "preference"], ReceiptRunCounts]
    withdrawn_runs: list[str]


class ReceiptWork(Strict):
    """What a batch cost."""

    rows_indexed: int
    rows_judged: int
    bytes_read: int
    lag_ms: Annotated[int | None, Field(description="How long the oldest input had waited.")] = None


class ReceiptTail(Strict):
    """A file whose last line is not finished."""

    path: str
    bytes: int


class Receipt(Strict):
    """reports/distillation/BATCH/receipt.json: the record of one batch; each names the sha256 of the one before."""

    schema_version: Literal[1]
    distilld_version: str
    stage: Literal["distill"]
    batch_id: str
    sequence: int
    trigger: Trigger
    started_at: str
    ended_at: str
    duration_ms: int
    recorded_at: str
    options: dict[str, Any]
    options_sha256: str
    git: ReceiptGit
    inputs: list[ReceiptInput]
    outputs: list[ReceiptOutput]
    record_counts: ReceiptCounts
    run: ReceiptRun | None = None
    work: ReceiptWork
    pending_tails: list[ReceiptTail]
    validation_pass: bool
    checks: dict[str, bool]
    warnings: list[str]
    errors: list[str]
    previous_receipt_sha256: str | None
    copies_begin_after: dict[Literal["rag", "sft", "preference"], str] = Field(
        default={}, description="By dataset, the last batch from which a copy cannot go on."
    )


DOCUMENTS: Final[dict[str, type[BaseModel]]] = {
    "withdrawals": WithdrawalRow,
    "scored-run": ScoredRun,
    "evidence": Evidence,
    "receipt": Receipt,
}
"""The models by their name in ``distilld schema``."""
