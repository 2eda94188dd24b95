"""The contamination firewall: the gates, one ordered table per dataset (SPEC 3.1 to 3.3).

Only this module has the rule of each reason. A gate checks one case and returns the texts for the quarantine row if
the case fails, else nothing; the first gate that a case fails decides. Tests switch single gates off to prove that
each is needed, so the tables are read at every call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from distilld.core.json_text import is_blank, template_text, trim
from distilld.core.model import SFT_NEVER, Category, Dataset, Options, Reason
from distilld.core.records import EvidenceRecord, ScoredRun

Texts = tuple[str, ...]
MissingFiles = Callable[[Sequence[Any]], Texts]
"""Returns the ``source_files`` of an evidence row that do not exist below the root of the path check (SPEC 3.5)."""

RESPONSE_ROLES: Final = frozenset({"executor", "reviewer", "applier"})
"""The model roles whose text answers an instruction; other roles extract."""


class RowCase(NamedTuple):
    """One scored row as the gates of RAG and SFT see it.

    ``verdict`` is the category of the run's current verdict for the dataset; ``id_taken``: an earlier row has the same
    id; ``missing_files`` is None if the path check is off; ``over_limit``: earlier rows of the run have as many other
    exports as ``max_exports_per_run`` allows.
    """

    scored: ScoredRun
    evidence: EvidenceRecord | None
    verdict: Category | None
    id_taken: bool
    options: Options
    missing_files: MissingFiles | None
    over_limit: bool = False


class PairSide(NamedTuple):
    """One side of a preference pair, with the current verdict for its run; ``over_limit`` as in :class:`RowCase`."""

    scored: ScoredRun
    evidence: EvidenceRecord
    verdict: Category | None
    over_limit: bool = False


class PairCase(NamedTuple):
    """Two rows of one task as the gates of the preference dataset see them."""

    chosen: PairSide
    rejected: PairSide
    id_taken: bool
    options: Options
    missing_files: MissingFiles | None


class RowGate(NamedTuple):
    """A gate of RAG or SFT; ``with_provenance`` says whether the quarantine row quotes the row's provenance."""

    name: str
    reason: Reason
    check: Callable[[RowCase], Texts]
    with_provenance: bool = True


class PairGate(NamedTuple):
    """A gate of the preference dataset."""

    name: str
    reason: Reason
    check: Callable[[PairCase], Texts]


def revoking(dataset: Dataset, verdict: Category | None, options: Options) -> bool:
    """Return whether the current verdict revokes the run's rows in ``dataset`` (SPEC 3.4); acceptance never does."""
    if verdict is None or verdict is Category.ACCEPTED:
        return False
    return options.revoke and options.forbids(dataset, verdict)


def _category_text(case: RowCase) -> str:
    value = case.scored.value
    return template_text(value["category"]) if "category" in value else template_text()


@lru_cache(maxsize=8)
def _allowed_text(allowed: tuple[Category, ...]) -> str:
    return ",".join(allowed)


# RAG


def _rag_provenance(case: RowCase) -> Texts:
    complete = case.scored.sig_hash and case.scored.source_file
    return () if complete else ("scored_run.provenance missing or incomplete",)


def _run_id(case: RowCase) -> Texts:
    return () if case.scored.run_id else ("evidence_run_id missing",)


def _rag_category(case: RowCase) -> Texts:
    allowed = case.options.rag_allowed
    if case.scored.category in allowed:
        return ()
    return (f"category={_category_text(case)} not in [{_allowed_text(allowed)}]",)


def _rag_revoked(case: RowCase) -> Texts:
    return _revoked(case) if revoking(Dataset.RAG, case.verdict, case.options) else ()


def _revoked(case: RowCase) -> Texts:
    return (f"run revoked: the verdict in force is {case.verdict}",)


def _over_limit(case: RowCase) -> Texts:
    return (_too_many(case.options),) if case.over_limit else ()


def _too_many(options: Options) -> str:
    return f"more than {options.max_exports_per_run} exports of one run"


def _rag_evidence(case: RowCase) -> Texts:
    if case.evidence is not None:
        return ()
    return (f"evidence_run_id={case.scored.run_id} not found in matching evidence partition",)


def _rag_content(case: RowCase) -> Texts:
    text = case.evidence.text if case.evidence else None
    return ("evidence.text is empty/missing — RAG needs content",) if text is None or is_blank(text) else ()


def _duplicate(case: RowCase) -> Texts:
    return ("id is already held by an earlier row",) if case.id_taken else ()


def _files(case: RowCase) -> Texts:
    return _missing(case.evidence, case.missing_files)


def _missing(evidence: EvidenceRecord | None, missing_files: MissingFiles | None) -> Texts:
    if missing_files is None or evidence is None or evidence.source_files is None:
        return ()
    return tuple(f"source file does not exist: {name}" for name in missing_files(evidence.source_files))


RAG_GATES: tuple[RowGate, ...] = (
    RowGate("provenance", Reason.MISSING_PROVENANCE, _rag_provenance, with_provenance=False),
    RowGate("run_id", Reason.MISSING_SOURCE_RUN_ID, _run_id),
    RowGate("category", Reason.CATEGORY_DISALLOWED, _rag_category),
    RowGate("revoked", Reason.UNSAFE_RAG_CATEGORY, _rag_revoked),
    RowGate("over_limit", Reason.TOO_MANY_EXPORTS, _over_limit),
    RowGate("evidence", Reason.MISSING_SOURCE_RUN_ID, _rag_evidence),
    RowGate("content", Reason.EMPTY_CONTENT, _rag_content),
    RowGate("duplicate", Reason.DUPLICATE_ID, _duplicate),
    RowGate("source_files", Reason.HALLUCINATED_FILE_PATH, _files),
)
"""Gates 2 to 10 of SPEC 3.1; gate 1 (malformed) runs before a case exists, 11 (schema) after the row is built."""


# SFT


def _sft_never(case: RowCase) -> Texts:
    if case.scored.category not in SFT_NEVER:
        return ()
    return (f"category={_category_text(case)} forbidden in SFT (spec non-negotiable)",)


def _sft_category(case: RowCase) -> Texts:
    allowed = case.options.sft_allowed
    if case.scored.category in allowed:
        return ()
    flag = template_text(case.options.include_partial)
    return (f"category={_category_text(case)} not in [{_allowed_text(allowed)}] (--include-partial={flag})",)


def _sft_provenance(case: RowCase) -> Texts:
    return () if case.scored.sig_hash else ("provenance missing",)


def _sft_revoked(case: RowCase) -> Texts:
    return _revoked(case) if revoking(Dataset.SFT, case.verdict, case.options) else ()


def _sft_evidence(case: RowCase) -> Texts:
    return () if case.evidence is not None else (f"evidence_run_id={case.scored.run_id} not found",)


NO_SHAPE: Final = "evidence has no instruction→response shape (extraction-class or empty text)"


def _sft_shape(case: RowCase) -> Texts:
    evidence = case.evidence
    if evidence and evidence.model_role in RESPONSE_ROLES and evidence.text and not is_blank(evidence.text):
        return ()
    return (NO_SHAPE,)


SFT_GATES: tuple[RowGate, ...] = (
    RowGate("never", Reason.UNSAFE_SFT_CATEGORY, _sft_never),
    RowGate("category", Reason.CATEGORY_DISALLOWED, _sft_category),
    RowGate("provenance", Reason.MISSING_PROVENANCE, _sft_provenance, with_provenance=False),
    RowGate("run_id", Reason.MISSING_SOURCE_RUN_ID, _run_id),
    RowGate("revoked", Reason.UNSAFE_SFT_CATEGORY, _sft_revoked),
    RowGate("over_limit", Reason.TOO_MANY_EXPORTS, _over_limit),
    RowGate("evidence", Reason.MISSING_SOURCE_RUN_ID, _sft_evidence),
    RowGate("duplicate", Reason.DUPLICATE_ID, _duplicate),
    RowGate("shape", Reason.MISSING_SOURCE_RUN_ID, _sft_shape),
    RowGate("source_files", Reason.HALLUCINATED_FILE_PATH, _files),
)
"""Gates 2 to 11 of SPEC 3.2; gate 1 (malformed) runs before a case exists, 12 (schema) after the row is built."""


# Preference


def _same_run(case: PairCase) -> Texts:
    return ("same run_id — self-pairing",) if case.chosen.scored.run_id == case.rejected.scored.run_id else ()


def _no_text(case: PairCase) -> Texts:
    blank = any(is_blank(side.evidence.text or "") for side in (case.chosen, case.rejected))
    return ("empty text in chosen or rejected",) if blank else ()


def _same_text(case: PairCase) -> Texts:
    same = trim(case.chosen.evidence.text or "") == trim(case.rejected.evidence.text or "")
    return ("chosen and rejected texts identical",) if same else ()


def _overruled(case: PairCase) -> Texts:
    if not case.options.revoke:
        return ()
    sides = (("chosen", case.chosen), ("rejected", case.rejected))
    return tuple(
        f"{name}: category {side.scored.category} is not that of its run's verdict in force"
        for name, side in sides
        if side.verdict is not side.scored.category
    )


def _pair_over_limit(case: PairCase) -> Texts:
    sides = (("chosen", case.chosen), ("rejected", case.rejected))
    return tuple(f"{name}: {_too_many(case.options)}" for name, side in sides if side.over_limit)


def _pair_provenance(case: PairCase) -> Texts:
    return () if case.chosen.scored.sig_hash else ("provenance missing",)


def _pair_duplicate(case: PairCase) -> Texts:
    return ("id is already held by an earlier pair",) if case.id_taken else ()


def _pair_files(case: PairCase) -> Texts:
    sides = (case.chosen, case.rejected)
    return tuple(text for side in sides for text in _missing(side.evidence, case.missing_files))


PREFERENCE_GATES: tuple[PairGate, ...] = (
    PairGate("same_run", Reason.INVALID_PREFERENCE_PAIRING, _same_run),
    # Before the text gates: the texts of such a pair are not read.
    PairGate("over_limit", Reason.TOO_MANY_EXPORTS, _pair_over_limit),
    PairGate("no_text", Reason.INVALID_PREFERENCE_PAIRING, _no_text),
    PairGate("same_text", Reason.INVALID_PREFERENCE_PAIRING, _same_text),
    PairGate("overruled", Reason.INVALID_PREFERENCE_PAIRING, _overruled),
    PairGate("provenance", Reason.MISSING_PROVENANCE, _pair_provenance),
    PairGate("source_files", Reason.HALLUCINATED_FILE_PATH, _pair_files),
    PairGate("duplicate", Reason.DUPLICATE_ID, _pair_duplicate),
)
"""All rows of SPEC 3.3's table but the last: the schema is checked after the pair is built."""
