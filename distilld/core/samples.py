"""The outputs: the strict rows of the datasets and of quarantine, and their exact bytes (SPEC 3.1 to 3.8).

The models are a second check after the gates, and the source of ``distilld schema``. They check, without coercion,
the object that is serialized, so a loader reads exactly the checked values.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, Final, Literal, cast, get_args

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from distilld.core.json_text import WHITESPACE
from distilld.core.model import SFT_NEVER, Category, Dataset, Reason, RowRef

SCHEMA_VERSION: Final = 1
UNSTAMPED: Final = "-"
"""The placeholder for a sample's two times until its batch sets them."""
_BETWEEN: Final = b'-","provenance":'

NotBlank = Annotated[str, Field(pattern=f"[^{WHITESPACE}]")]
NotEmpty = Annotated[str, Field(min_length=1)]

RagCategory = Literal["accepted", "partially_accepted", "needs_human_review"]
SftCategory = Literal["accepted", "partially_accepted"]


class Strict(BaseModel):
    """The base of models that allow no other keys and convert no value."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Provenance(Strict):
    """Where the scored row came from; ``recorded_at`` is the time of the batch that wrote the sample."""

    source_file: NotEmpty
    line_offset: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None
    sig_hash: NotEmpty
    recorded_at: NotEmpty


class RagSample(Strict):
    """One passage for retrieval."""

    schema_version: Literal[1]
    id: NotBlank
    title: NotBlank
    content: NotBlank
    tags: list[str]
    source_run_id: NotBlank
    success_score: RagCategory
    source_category: RagCategory
    embedding_text: NotBlank
    created_at: NotEmpty
    provenance: Provenance


class SftSample(Strict):
    """One instruction, its context and the accepted response; no category of SFT_NEVER is valid here."""

    schema_version: Literal[1]
    id: NotBlank
    instruction: NotBlank
    context: str
    response: NotBlank
    source_run_id: NotBlank
    quality_score: SftCategory
    created_at: NotEmpty
    provenance: Provenance


class PreferenceSample(Strict):
    """Two answers to one task, the better one chosen; that the two differ is checked in :func:`faults_of`."""

    schema_version: Literal[1]
    id: NotBlank
    prompt: NotBlank
    chosen: NotBlank
    rejected: NotBlank
    reason: NotBlank
    chosen_run_id: NotBlank
    rejected_run_id: NotBlank
    created_at: NotEmpty
    provenance: Provenance


class Location(Strict):
    """The place of the quarantined row: its partition below ``data/scored-runs`` and its line."""

    partition: NotEmpty
    line_offset: Annotated[int, Field(ge=0)]


class QuarantineRow(Strict):
    """One row that is not exported. ``source_provenance`` is missing if the row has none."""

    exporter: Literal["rag", "sft", "preference"]
    reason: Reason
    source_record: dict[str, Any]
    errors: list[str]
    recorded_at: NotEmpty
    source_provenance: Any = None
    location: Location


SAMPLES: Final[dict[Dataset, type[Strict]]] = {
    Dataset.RAG: RagSample,
    Dataset.SFT: SftSample,
    Dataset.PREFERENCE: PreferenceSample,
}

assert not set(get_args(SftCategory)) & {category.value for category in SFT_NEVER}  # noqa: S101  a second check
assert Category.REJECTED.value not in get_args(RagCategory)  # noqa: S101

_FAULTS: Final = {
    "missing": "is missing",
    "string_type": "must be a string",
    "string_pattern_mismatch": "must not be blank",
    "string_too_short": "must not be empty",
    "literal_error": "is not one of the allowed values",
    "extra_forbidden": "is not a key of this dataset",
}


def _typed_dict(model: type[BaseModel]) -> Any:
    """Return the same rules for a dictionary: making an instance of the model would take twice as long."""
    fields: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        kind: Any = _typed_dict(Provenance) if field.annotation is Provenance else field.annotation
        fields[name] = Annotated[kind, *field.metadata] if field.metadata else kind
    rules: Any = cast("Any", TypedDict)(model.__name__, fields)
    rules.__pydantic_config__ = model.model_config
    return rules


_NAMED: Final = {
    Dataset.RAG: b',"source_run_id":%(one)b,"success_score":%(other)b,"source_category":%(other)b,',
    Dataset.SFT: b',"source_run_id":%(one)b,"quality_score":%(other)b,',
    Dataset.PREFERENCE: b',"chosen_run_id":%(one)b,"rejected_run_id":%(other)b,',
}
_VALIDATORS: Final = {dataset: TypeAdapter(_typed_dict(model)).validator for dataset, model in SAMPLES.items()}


def faults_of(dataset: Dataset, sample: dict[str, Any]) -> tuple[str, ...]:
    """Return the schema faults of a finished row, one text per fault; a text contains no value of the row."""
    validator = _VALIDATORS[dataset]
    if not validator.isinstance_python(sample):
        try:
            validator.validate_python(sample)
        except ValidationError as error:
            return tuple(
                f"{'.'.join(map(str, fault['loc']))}: {_FAULTS.get(fault['type'], fault['type'])}"
                for fault in error.errors(include_url=False, include_context=False, include_input=False)
            )
    if dataset is Dataset.PREFERENCE:
        return _pair_faults(sample)
    return ()


def _pair_faults(sample: dict[str, Any]) -> tuple[str, ...]:
    same = ((("chosen_run_id", "rejected_run_id")), ("chosen", "rejected"))
    return tuple(f"{one}: must differ from {other}" for one, other in same if sample[one] == sample[other])


def sample_parts(sample: dict[str, Any]) -> tuple[bytes, bytes, bytes]:
    """Return the bytes of an unstamped row's line around its two times, line feed included.

    ``created_at`` and ``provenance`` are a row's last two keys; ``recorded_at`` is the last key of its provenance.
    """
    # No text of the row can contain what is searched for, because a JSON string escapes each quote.
    before, _, behind = orjson.dumps(sample).rpartition(_BETWEEN)
    return before, b'","provenance":' + behind.removesuffix(b'-"}}'), b'"}}\n'


def sample_signs(dataset: Dataset, row_id: str, one: str | None, other: str | None) -> tuple[bytes, bytes]:
    """Return two byte strings that identify a line: its start with the id, and its run and category (or its two runs).

    No text of the row can contain these bytes, because a JSON string escapes each quote.
    """
    named = {b"one": orjson.dumps(one), b"other": orjson.dumps(other)}
    return b'{"schema_version":1,"id":"%b",' % row_id.encode(), _NAMED[dataset] % named


@lru_cache(maxsize=256)
def _before_record(dataset: Dataset, reason: Reason) -> bytes:
    return b'{"exporter":"%b","reason":"%b","source_record":' % (dataset.text.encode(), reason.text.encode())


@lru_cache(maxsize=256)
def _errors_json(errors: tuple[str, ...]) -> bytes:
    return orjson.dumps(errors)


@lru_cache(maxsize=16)
def _partition_json(partition: str) -> bytes:
    return orjson.dumps(partition)


def quarantine_parts(
    dataset: Dataset, reason: Reason, record: bytes, errors: tuple[str, ...], provenance: bytes | None, at: RowRef
) -> tuple[bytes, bytes]:
    """Return the bytes of a quarantine row's line around its time; ``record`` and ``provenance`` are JSON texts."""
    partition, line = at
    return (
        b'%b%b,"errors":%b,"recorded_at":"' % (_before_record(dataset, reason), record, _errors_json(errors)),
        b'"%b,"location":{"partition":%b,"line_offset":%d}}\n'
        % (b"" if provenance is None else b',"source_provenance":' + provenance, _partition_json(partition), line),
    )
