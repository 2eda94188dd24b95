"""The words of the domain, the closed lists, and what the options allow."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import fields, replace
from enum import StrEnum
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest

from distilld.core import model
from distilld.core.model import (
    DATASET_PATHS,
    EXPORT_PATHS,
    RULES_VERSION,
    SFT_NEVER,
    Category,
    Cause,
    Committed,
    Dataset,
    DistilldError,
    InputChanged,
    InputKind,
    OnDelete,
    OperatorError,
    Options,
    ProgramError,
    Reason,
    RowRef,
    StatFacts,
    Trigger,
    UnreadableError,
    UsageError,
    Verdict,
    WriterBusy,
)
from distilld.core.remedies import remedy_of

CLOSED: dict[type[StrEnum], str] = {
    Category: "accepted partially_accepted rejected needs_human_review",
    Dataset: "rag sft preference",
    InputKind: "scored evidence",
    OnDelete: "keep withdraw",
    Trigger: "startup watch rescan once rebuild reload recovery prune compact",
    Reason: (
        "missing_provenance missing_source_run_id empty_content schema_violation unsafe_sft_category "
        "unsafe_rag_category invalid_preference_pairing hallucinated_file_path duplicate_id self_pairing "
        "category_disallowed too_many_exports"
    ),
    Cause: "pruned revoked rescored row_removed evidence_changed displaced options_changed lost undone",
}


@pytest.mark.parametrize(("kind", "names"), CLOSED.items(), ids=[kind.__name__ for kind in CLOSED])
def test_the_closed_lists_are_those_of_the_contract(kind: type[StrEnum], names: str) -> None:
    """Each closed list has these names, in this order, and no other."""
    assert [member.value for member in kind] == names.split()


def test_the_first_eleven_reasons_are_those_of_the_older_exporters() -> None:
    """The seeds' taxonomy has eleven; a reason that is ours alone comes behind them."""
    assert [*Reason][11:] == [Reason.TOO_MANY_EXPORTS]


def test_sft_never_is_retained() -> None:
    """SFT_NEVER is exactly rejected and needs_human_review, and offers no way to change it."""
    assert frozenset({Category.REJECTED, Category.NEEDS_HUMAN_REVIEW}) == SFT_NEVER
    assert type(SFT_NEVER) is frozenset
    assert "SFT_NEVER" not in {one.name.upper() for one in fields(Options)}


def test_no_option_touches_sft_never() -> None:
    """By no combination of flags may a category of SFT_NEVER ship to SFT, and both always revoke."""
    flags = [one.name for one in fields(Options) if isinstance(one.default, bool)]
    assert len(flags) >= 4
    for values in product([False, True], repeat=len(flags)):
        chosen: dict[str, Any] = dict(zip(flags, values, strict=True))
        options = Options(**chosen)
        assert not SFT_NEVER & set(options.sft_allowed)
        assert all(options.forbids(Dataset.SFT, category) for category in SFT_NEVER)
        assert Category.REJECTED not in options.rag_allowed
        assert options.forbids(Dataset.RAG, Category.REJECTED)


@pytest.mark.parametrize("review", [False, True])
@pytest.mark.parametrize("partial", [False, True])
def test_what_ships_where(partial: bool, review: bool) -> None:
    """include_review opens RAG alone, include_partial SFT alone, and messages name the categories in this order."""
    options = Options(include_partial=partial, include_review=review)
    assert ",".join(options.rag_allowed) == "accepted,partially_accepted" + ",needs_human_review" * review
    assert ",".join(options.sft_allowed) == "accepted" + ",partially_accepted" * partial


def test_a_category_that_may_ship_does_not_revoke() -> None:
    """What a dataset may take never forbids a run there; what it may not take for its verdict does."""
    for review in (False, True):
        options = Options(include_review=review)
        for category in Category:
            assert options.forbids(Dataset.RAG, category) is (category not in options.rag_allowed)
            assert options.forbids(Dataset.SFT, category) is (category in SFT_NEVER)


def test_the_defaults() -> None:
    """The options' defaults are those of the contract."""
    assert Options().as_json() == {
        "include_partial": False,
        "include_review": False,
        "revoke": True,
        "on_delete": "keep",
        "check_source_files": False,
        "source_files_root": "",
        "missing_source_file": "",
        "max_line_bytes": 8388608,
        "max_exports_per_run": 1000,
        "rules_version": RULES_VERSION,
    }


OTHERS: dict[str, Any] = {
    "include_partial": True,
    "include_review": True,
    "revoke": False,
    "on_delete": OnDelete.WITHDRAW,
    "check_source_files": True,
    "source_files_root": "/srv/code",
    "missing_source_file": "<none>",
    "max_line_bytes": 4096,
    "max_exports_per_run": 0,
    "rules_version": RULES_VERSION + 1,
}


def test_every_option_has_its_digest() -> None:
    """A change of any one option changes the digest, and equal options have equal digests."""
    assert [*OTHERS] == [one.name for one in fields(Options)]
    digests = {replace(Options(), **{name: value}).sha256 for name, value in OTHERS.items()} | {Options().sha256}
    assert len(digests) == len(OTHERS) + 1
    assert replace(Options(), include_partial=True).sha256 == Options(include_partial=True).sha256


def test_the_digest_is_pinned() -> None:
    """The digest of the default options is the same in every release that does not change the rules.

    It stands in receipts and in the store: where it changes, every row of every lake is judged anew.
    """
    assert int(RULES_VERSION) == 3
    text = (
        "check_source_files=False\ninclude_partial=False\ninclude_review=False\n"
        "max_exports_per_run=1000\nmax_line_bytes=8388608\n"
        "missing_source_file=''\non_delete='keep'\nrevoke=True\nrules_version=3\nsource_files_root=''"
    )
    assert Options().sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_a_root_that_is_no_utf8_has_a_digest() -> None:
    """A folder name with bytes that are no UTF-8 can stand in the options."""
    assert Options(source_files_root="/srv/\udcff").sha256 != Options(source_files_root="/srv/\udcfe").sha256


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (RowRef("a/b/c/d.jsonl", 0), "line"),
        (Verdict(Category.REJECTED, RowRef("a/b/c/d.jsonl", 0)), "category"),
        (Options(), "revoke"),
        (Committed(1, 2, ""), "size"),
    ],
    ids=["RowRef", "Verdict", "Options", "Committed"],
)
def test_values_are_retained(value: Any, name: str) -> None:
    """What crosses a module border can be neither changed nor given new fields, and equal values hash alike."""
    with pytest.raises(AttributeError):
        setattr(value, name, None)
    assert not hasattr(value, "__dict__")
    assert hash(copy.deepcopy(value)) == hash(value)


def test_the_exports_are_the_nine_files_of_the_contract() -> None:
    """Three datasets, three quarantine files and three withdrawal logs stand where loaders look for them."""
    assert {str(dataset): path for dataset, path in DATASET_PATHS.items()} == {
        "rag": "exports/rag/playbooks.jsonl",
        "sft": "exports/sft/instruction_response.jsonl",
        "preference": "exports/preference/chosen_rejected.jsonl",
    }
    others = {
        f"{kind}_{name}": f"exports/{kind}/{name}.jsonl" for kind in ("quarantine", "withdrawals") for name in Dataset
    }
    assert {str(dataset): path for dataset, path in DATASET_PATHS.items()} | others == EXPORT_PATHS


def test_a_file_state_is_inode_size_and_times() -> None:
    """Two looks saw the same file where device, inode, size and both times agree, and doubted facts are those of no file."""
    status = SimpleNamespace(st_dev=1, st_ino=2, st_size=3, st_mtime_ns=4, st_ctime_ns=5, st_mode=6)
    facts = StatFacts.of(status)
    assert facts == StatFacts(device=1, inode=2, size=3, mtime_ns=4, ctime_ns=5)
    assert facts.doubted() != facts


@pytest.mark.parametrize("name", ["device", "inode", "mtime_ns", "ctime_ns"])
@pytest.mark.parametrize("number", [-(1 << 70) - 1, -(1 << 63), -1, 0, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 80])
def test_facts_of_a_file_fit_the_store(name: str, number: int) -> None:
    """The store holds signed 64-bit integers, and a negative change time is a mark that no stat may give."""
    status = {"st_dev": 1, "st_ino": 2, "st_size": 3, "st_mtime_ns": 4, "st_ctime_ns": 5}
    own = {"device": "st_dev", "inode": "st_ino"}.get(name, f"st_{name}")
    facts, next_facts = (StatFacts.of(SimpleNamespace(**{**status, own: each})) for each in (number, number + 1))
    assert all(-(1 << 63) <= each < 1 << 63 for each in facts)
    assert facts != next_facts
    assert facts.ctime_ns >= 0
    assert facts != facts.doubted()
    if name == "mtime_ns" and -(1 << 63) <= number < 1 << 63:
        assert facts.mtime_ns == number


def test_errors_carry_what_their_reader_needs() -> None:
    """Each error says who must act, with its fields, and a hint where there is one."""
    assert OperatorError("disk full", hint="free some space").hint == "free some space"
    assert UsageError("wrong").hint == ""
    busy = WriterBusy("another distilld writes here", pid=4711)
    assert (busy.pid, busy.hint) == (4711, "stop it, or wait until it is done")
    assert isinstance(busy, OperatorError)
    changed = InputChanged("data/scored-runs/a/b/c/d.jsonl")
    assert changed.path == "data/scored-runs/a/b/c/d.jsonl"
    assert "changed while it was read" in str(changed)
    unreadable = UnreadableError("data/evidence/a/b/c/d.jsonl", PermissionError(13, "Permission denied"))
    assert (unreadable.path, unreadable.hint) == (
        "data/evidence/a/b/c/d.jsonl",
        remedy_of(PermissionError(13, "")),
    )
    assert str(unreadable) == "cannot read data/evidence/a/b/c/d.jsonl: Permission denied"
    assert str(UnreadableError("x", OSError("odd"))) == "cannot read x: odd"
    for kind in (OperatorError, UsageError, WriterBusy, InputChanged, ProgramError):
        assert issubclass(kind, DistilldError)


def test_no_error_is_left_out() -> None:
    """Every error of the module stands below one base, so that nothing else needs to be caught."""
    found = [one for one in vars(model).values() if isinstance(one, type) and issubclass(one, Exception)]
    assert all(issubclass(one, DistilldError) for one in found)
