"""verify: it agrees with what is right, and finds each kind of what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import NoReturn

import pytest

from distilld.core.line_facts import CATEGORY_CODES
from distilld.core.model import DATASET_PATHS, EXPORT_PATHS, Category, Dataset, InputKind, Options, Trigger
from distilld.demo.sample_lake import append_rows, rescore_in_place
from distilld.engine.engine import Engine
from distilld.engine.work_off import QueueWorker
from distilld.inspection import oracle_lake
from distilld.inspection.verify import Report, verify
from distilld.publish import committed
from distilld.publish import receipt_files as receipt_module
from distilld.publish.committed import CommittedExport
from distilld.service.stage import run_stage
from distilld.store.connection import Store
from distilld.store.decisions import Decisions
from distilld.store.export_records import ExportRecord
from distilld.store.ledger import Ledger
from tests.support.builders import jsonl
from tests.support.history_lake import A, B, history_lake, run
from tests.support.lake_by_formula import write_bench_lake
from tests.support.limits import limits
from tests.support.sample import SampleLake

LAST = "2026/05/01/last.jsonl"


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[tuple[SampleLake, Engine]]:
    """A lake after a pass and a re-score."""
    sample = SampleLake.write(tmp_path / "lake")
    store = Store.open(sample.root / "state/distilld.db", sample.root)
    engine = Engine(sample.root, store, Options(), limits(batch_rows=40))
    engine.run_pass(Trigger.ONCE)
    rescore_in_place(sample.root)
    engine.run_pass(Trigger.ONCE)
    yield sample, engine
    store.close()


def report_of(sample: SampleLake, *, deep: bool = True) -> Report:
    """What verify says."""
    return verify(sample.root, sample.root / "state/distilld.db", Options(), deep=deep)


def faulty(report: Report) -> set[str]:
    """The names of the checks that found something."""
    return {check.name for check in report.checks if check.faults}


def test_agrees_with_what_the_engine_did(lake: tuple[SampleLake, Engine]) -> None:
    """After any pass nothing is wrong, in depth too, while the writer has the store open."""
    report = report_of(lake[0])
    assert not faulty(report)
    assert len(report.checks) == 12


def edit_row(path: Path) -> None:
    """Change one letter of a row, the size kept."""
    content = path.read_bytes()
    path.write_bytes(content[:-40] + bytes([content[-40] ^ 1]) + content[-39:])


def put_fifo(path: Path) -> None:
    """Put a FIFO in a file's place."""
    path.unlink()
    os.mkfifo(path)


def put_folder(path: Path) -> None:
    """Put a folder in a file's place."""
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", [dataset.value for dataset in Dataset] + ["quarantine_rag", "withdrawals_sft"])
@pytest.mark.parametrize(
    "damage", [edit_row, Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-9]), put_fifo, put_folder]
)
def test_finds_a_damaged_export(lake: tuple[SampleLake, Engine], name: str, damage: Callable[[Path], object]) -> None:
    """An export that was edited, deleted or cut, or that is no file any more, is told by its hash."""
    damage(lake[0].root / EXPORT_PATHS[name])
    report = report_of(lake[0], deep=False)
    assert "hashes of exports" in faulty(report)
    if damage in (edit_row, Path.unlink):
        (told,) = next(check.shown for check in report.checks if check.name == "hashes of exports")
        where = "not what the last commit left in the 524288 bytes from 0 on"
        assert told == f"{EXPORT_PATHS[name]}: is {where if damage is edit_row else 'gone'}"


SFT = EXPORT_PATHS["sft"]
A_ROW = b'{"schema_version":1,"id":"sft-0123456789abcdef"}\n'


def append_from_outside(root: Path) -> None:
    """Put a row behind the committed length of a dataset."""
    with (root / SFT).open("ab") as file:
        file.write(A_ROW)


@pytest.mark.parametrize("deep", [False, True])
def test_finds_rows_behind_the_committed_length(lake: tuple[SampleLake, Engine], deep: bool) -> None:
    """A row that nobody committed is told while no batch is under way: a loader reads it like any other."""
    append_from_outside(lake[0].root)
    (check,) = [each for each in report_of(lake[0], deep=deep).checks if each.faults]
    assert check.shown == (f"{SFT}: {len(A_ROW)} bytes stand behind its committed length",)


def test_finds_rows_in_an_export_that_was_never_written(tmp_path: Path) -> None:
    """Nor may a file stand there that no batch has made."""
    (tmp_path / "state").mkdir()
    Store.open(tmp_path / "state/distilld.db", tmp_path).close()
    (tmp_path / SFT).parent.mkdir(parents=True)
    append_from_outside(tmp_path)
    assert faulty(verify(tmp_path, tmp_path / "state/distilld.db", Options())) == {"hashes of exports"}


def test_append_that_was_cut_off_is_no_fault(lake: tuple[SampleLake, Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a batch that died before its commit wait for recovery; once they are undone, others would be a fault."""
    sample, engine = lake
    append_rows(sample.root)
    monkeypatch.setattr(Ledger, "apply", _die)
    with pytest.raises(_Killed):
        engine.run_pass(Trigger.ONCE)
    report = report_of(sample, deep=False)
    assert not faulty(report)
    assert [each for each in report.changed if each.startswith(f"{SFT}: ")]
    engine.committer.recover()
    assert not report_of(sample, deep=False).changed
    append_from_outside(sample.root)
    assert faulty(report_of(sample, deep=False)) == {"hashes of exports"}


@pytest.mark.parametrize("end", ["under way", "committed", "undone"])
def test_batch_that_begins_after_the_look_at_the_store_is_no_fault(
    lake: tuple[SampleLake, Engine], monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """The rows of a batch that verify's snapshot does not know yet are not taken for somebody else's."""
    sample, engine = lake
    append_rows(sample.root)
    apply = Ledger.apply
    looks: list[CommittedExport] = []

    def opened(root: Path, record: ExportRecord) -> CommittedExport:
        """Look at the first export that there is while the writer has appended to it, but has not committed."""
        if looks or record.name != "sft":
            return CommittedExport(root, record)

        def look(ledger: Ledger, decisions: Decisions) -> None:
            looks.append(CommittedExport(root, record))
            assert looks[0].behind
            if end != "committed":
                raise _Killed
            apply(ledger, decisions)

        monkeypatch.setattr(Ledger, "apply", look)
        with suppress(_Killed):
            engine.run_pass(Trigger.ONCE)
        if end == "undone":
            engine.committer.recover()
        return looks[0]

    monkeypatch.setattr(committed, "CommittedExport", opened)
    report = report_of(sample, deep=False)
    assert looks
    assert not faulty(report)
    assert bool(report.changed) == (end == "under way")


class _Killed(Exception):
    """The writer stops where it is."""


def _die(*_: object, **__: object) -> NoReturn:
    raise _Killed


@pytest.mark.parametrize("deep", [False, True])
def test_memory_does_not_grow_with_the_exports(tmp_path: Path, deep: bool) -> None:
    """What is compared may be larger than the memory: lines are read one by one, and remembered by their digests."""
    write_bench_lake(tmp_path, rows=300, partitions=30, text_bytes=100_000)
    with closing(Store.open(tmp_path / "state/distilld.db", tmp_path)) as store:
        Engine(tmp_path, store, Options(), limits(batch_rows=100)).run_pass(Trigger.ONCE)
    size = sum((tmp_path / path).stat().st_size for path in EXPORT_PATHS.values() if (tmp_path / path).exists())
    tracemalloc.start()
    report = verify(tmp_path, tmp_path / "state/distilld.db", Options(), deep=deep)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not faulty(report)
    # A partition at a time, and the tenth of the rows that stand in pairs, whose texts take four bytes a character.
    assert peak < size


@pytest.mark.parametrize("tree", ["scored", "evidence"])
@pytest.mark.parametrize("mark", [b"", b"\xff\xfe"])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_hole_of_a_terabyte_is_passed_by(tmp_path: Path, tree: str, mark: bytes, end: bytes) -> None:
    """The story: the deep check read each file as a whole, and ``truncate -s 1T x.jsonl`` was too much for it.

    What it says of a line with a hole is what the engine says: its length, its quarantine row, what it forbids.
    """
    with history_lake(tmp_path) as lake:
        lake.both(B, run("b"), run("u"), run("c"))
        (path,) = lake.paths(LAST, tree)
        path.parent.mkdir(parents=True)
        words = '{"category":"rejected","evidence_run_id":"u"}'.encode("utf-16-le") if mark else b""
        with path.open("wb") as file:
            # A hole first, one between words of a line, and one at the end; one that is no longer than a line may be.
            file.write(jsonl([run("x")]) + mark + words)
            file.seek((1 << 40) + len(mark))
            file.write(jsonl([run("b", "rejected")]) + b"{")
            file.seek(1 << 20, os.SEEK_CUR)
            file.write(b"}\n" + jsonl([run("c", "rejected")])[:-1])
            file.truncate((1 << 41) + 1)
            file.seek((1 << 41) + 1)
            file.write(end)
        while lake.go().unfinished:
            pass
        rejected = {"b", "c", *(["u"] if mark else [])} if tree == "scored" else set()
        assert lake.exported(Dataset.RAG) == {"b", "u", "c"} - rejected
        tracemalloc.start()
        report = verify(lake.root, lake.state, lake.options, deep=True)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert not faulty(report)
        assert not report.changed
        assert peak < 100 << 20


@pytest.mark.parametrize("change", [lambda path: path.unlink(missing_ok=True), lambda path: path.write_bytes(b"")])
def test_input_that_changes_meanwhile_is_no_fault(
    lake: tuple[SampleLake, Engine], monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object]
) -> None:
    """The deep check reads the lake as it is now: where a file goes or changes while it does, nothing can be said yet."""
    sample, _ = lake
    changed = sorted((sample.root / "data/evidence").rglob("*.jsonl"))[-1]
    read_file = oracle_lake.read_file

    def read(root: Path, kind: InputKind, path: str) -> list[bytes | int]:
        change(changed)
        return read_file(root, kind, path)

    monkeypatch.setattr(oracle_lake, "read_file", read)
    report = report_of(sample)
    assert not faulty(report)
    assert changed.relative_to(sample.root).as_posix() in report.changed


def test_finds_an_edited_receipt(lake: tuple[SampleLake, Engine]) -> None:
    """A receipt on disk that is not as it was written is told."""
    receipt = sorted((lake[0].root / "reports/distillation").glob("*/receipt.json"))[0]
    receipt.write_bytes(receipt.read_bytes().replace(b'"trigger": "once"', b'"trigger": "twice"'))
    assert faulty(report_of(lake[0], deep=False)) == {"receipt chain"}


def test_finds_a_lost_receipt(lake: tuple[SampleLake, Engine]) -> None:
    """A receipt that is gone is told."""
    shutil.rmtree(sorted((lake[0].root / "reports/distillation").glob("*/receipt.json"))[0].parent)
    assert faulty(report_of(lake[0], deep=False)) == {"receipt chain"}


def test_receipt_that_is_yet_to_be_written_is_no_fault(
    lake: tuple[SampleLake, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a batch's commit and the end of it its receipt is in the store alone, as it is after a kill."""
    sample, engine = lake
    append_rows(sample.root)
    monkeypatch.setattr(receipt_module, "write_receipt", _die)
    with pytest.raises(_Killed):
        engine.run_pass(Trigger.ONCE)
    report = report_of(sample, deep=False)
    assert not faulty(report)
    assert [each for each in report.changed if each.endswith("/receipt.json: is yet to be written")]


@pytest.mark.parametrize("put", [put_fifo, put_folder])
def test_finds_a_receipt_that_is_no_file(lake: tuple[SampleLake, Engine], put: Callable[[Path], None]) -> None:
    """What stands in a receipt's place and is no file is told, and stops nothing."""
    receipt = sorted((lake[0].root / "reports/distillation").glob("*/receipt.json"))[0]
    put(receipt)
    (check,) = [each for each in report_of(lake[0], deep=False).checks if each.faults]
    assert check.shown == (f"{receipt.relative_to(lake[0].root)}: cannot be read: is no regular file",)


def test_finds_an_edited_receipt_of_another_stage(lake: tuple[SampleLake, Engine]) -> None:
    """The chains of other stages are walked as well."""
    sample, _ = lake
    run = run_stage(sample.root, "score_runs", inputs=(), outputs=(), command=("true",), receipts_keep=0)
    assert not faulty(report_of(sample, deep=False))
    with (sample.root / str(run.receipt)).open("ab") as file:
        file.write(b"x\n")
    assert faulty(report_of(sample, deep=False)) == {"receipt chain"}


def test_finds_a_broken_chain(lake: tuple[SampleLake, Engine]) -> None:
    """A receipt that the store lost breaks the chain."""
    lake[1].store.connection.execute("DELETE FROM receipts WHERE batch = 2")
    assert "receipt chain" in faulty(report_of(lake[0], deep=False))


def test_finds_a_miscount(lake: tuple[SampleLake, Engine]) -> None:
    """Totals that do not add up are told."""
    lake[1].store.connection.execute("UPDATE totals SET rows = rows + 1 WHERE dataset = 'sft' AND outcome = 0")
    assert "accounting" in faulty(report_of(lake[0], deep=False))


@pytest.mark.parametrize("name", EXPORT_PATHS)
def test_finds_an_export_with_other_rows_than_its_record_counts(lake: tuple[SampleLake, Engine], name: str) -> None:
    """The story: a row more than the record counts stood in a dataset, and all agreed with the record."""
    store = lake[1].store.connection
    store.execute("UPDATE export_files SET rows = rows + 1 WHERE name = ?", (name,))
    report = report_of(lake[0], deep=False)
    assert faulty(report) == {"accounting"}
    (check,) = (check for check in report.checks if check.name == "accounting")
    assert any(line.startswith(EXPORT_PATHS[name]) and "lines" in line for line in check.shown)


@pytest.mark.parametrize(
    ("dataset", "side", "category"),
    [
        (Dataset.RAG, "source", "rejected"),
        (Dataset.SFT, "source", "needs_human_review"),
        (Dataset.PREFERENCE, "chosen", "rejected"),
        (Dataset.PREFERENCE, "rejected", "accepted"),
    ],
)
def test_finds_a_leak(lake: tuple[SampleLake, Engine], dataset: Dataset, side: str, category: str) -> None:
    """An exported row or side of a pair that a current verdict forbids is told by the firewall's check."""
    sample, engine = lake
    exported = json.loads((sample.root / DATASET_PATHS[dataset]).read_bytes().splitlines()[0])
    engine.store.connection.execute(
        "UPDATE scored_rows SET category = ? WHERE run_id = ?",
        (CATEGORY_CODES[Category(category)], exported[f"{side}_run_id"]),
    )
    report = report_of(sample, deep=False)
    (check,) = (check for check in report.checks if check.name == "firewall")
    assert f"{exported['id']}: the current verdict of its {side} run is {category}" in check.shown


def test_rows_that_are_to_leave_are_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A verdict was indexed, and the batch that takes its run out has not come: told as changed, gone after it."""
    with history_lake(tmp_path) as lake:
        lake.both(A, run("r1"))
        lake.go()
        lake.scored(B, run("r1", "rejected"))
        with monkeypatch.context() as patch:
            patch.setattr(QueueWorker, "run_batch", interrupted)
            with pytest.raises(KeyboardInterrupt):
                lake.engine.run_pass(Trigger.ONCE)
        report = verify(lake.root, lake.state, lake.options)
        assert (report.faults, report.changed) == (0, ["firewall: 2 rows are to leave with the batch that is due"])
        lake.go()
        report = verify(lake.root, lake.state, lake.options)
        assert (report.faults, report.changed) == (0, [])


def interrupted(*_: object, **__: object) -> NoReturn:
    """The process is interrupted here."""
    raise KeyboardInterrupt


def test_deep_finds_what_a_full_pass_would_not_give(lake: tuple[SampleLake, Engine]) -> None:
    """Exports that agree with the store but not with the inputs are told by the deep check alone."""
    sample, _ = lake
    original = Options.rag_allowed
    try:
        Options.rag_allowed = property(lambda _: ())  # type: ignore[assignment, method-assign]
        report = report_of(sample)
    finally:
        Options.rag_allowed = original  # type: ignore[method-assign]
    assert "deep: rag" in faulty(report)
    assert "hashes of exports" not in faulty(report)


def test_input_that_changed_meanwhile_is_no_fault(lake: tuple[SampleLake, Engine]) -> None:
    """Rows that came since the last batch are named as changed inputs, not as faults."""
    append_rows(lake[0].root)
    report = report_of(lake[0])
    assert not faulty(report)
    assert report.changed


def test_kept_rows_are_no_fault(lake: tuple[SampleLake, Engine], tmp_path: Path) -> None:
    """What absent partitions keep is counted as an exception, not told as a fault."""
    sample, engine = lake
    away = sample.root / "data/scored-runs"
    partition = sorted(away.rglob("scrum_reviews.jsonl"))[0]
    partition.rename(tmp_path / "away.jsonl")
    engine.run_pass(Trigger.RESCAN)
    report = report_of(sample)
    assert not faulty(report)
    assert report.kept >= sum(each.rows for each in report.kept_exported) > 0
    assert {each.kind for each in report.kept_exported} == {"absent"}


def test_row_on_absent_evidence_is_no_fault(lake: tuple[SampleLake, Engine], tmp_path: Path) -> None:
    """What stands on absent evidence is counted as an exception, row by row."""
    sample, engine = lake
    partition = sorted((sample.root / "data/evidence").rglob("scrum_reviews.jsonl"))[0]
    partition.rename(tmp_path / "away.jsonl")
    engine.run_pass(Trigger.RESCAN)
    report = report_of(sample)
    assert not faulty(report)
    assert not report.changed
    assert report.kept
    engine.store.connection.execute("UPDATE files SET ctime_ns = -1")
    shutil.copy(tmp_path / "away.jsonl", partition)
    assert report_of(sample).changed


_FIRST = "WHERE retained_id = (SELECT min(retained_id) FROM retained_rows WHERE"
_REJECTED = "(SELECT run_id FROM scored_rows WHERE category = 3 AND run_id IS NOT NULL)"
_FAULTS = {
    "a held row": (f"UPDATE retained_rows SET sft = NULL {_FIRST} sft <> 0)", "deep: quarantine of sft", "extra"),
    "an exported row": (f"UPDATE retained_rows SET rag = NULL {_FIRST} rag = 0)", "deep: rag", "extra"),
    "a line": (f"UPDATE retained_rows SET sft_line = x'00' {_FIRST} sft <> 0)", "deep: quarantine of sft", "missing"),
    "a pair": ("DELETE FROM pairs WHERE retained IS NOT NULL AND outcome = 0", "deep: preference", "extra"),
    "its end": (f"UPDATE retained_rows SET run_id = {_REJECTED} {_FIRST} rag = 0)", "deep: rag", "extra"),
}


@pytest.mark.parametrize("fault", _FAULTS)
def test_deep_names_each_row_beside_what_is_kept(lake: tuple[SampleLake, Engine], tmp_path: Path, fault: str) -> None:
    """A row too many or too few is named, however many stand by way of exception; they once covered for one another."""
    sample, engine = lake
    for partition in sorted((sample.root / "data/scored-runs").rglob("*.jsonl"))[:2]:
        partition.rename(tmp_path / partition.name)
    engine.run_pass(Trigger.RESCAN)
    assert not faulty(report_of(sample))
    wrong, check, word = _FAULTS[fault]
    assert engine.store.connection.execute(wrong).rowcount > 0
    (found,) = [each for each in report_of(sample).checks if each.name == check]
    assert found.faults
    assert any(each.startswith(f"{word}: ") for each in found.shown)


def test_anchor_tells_of_a_chain_that_was_rewritten(lake: tuple[SampleLake, Engine]) -> None:
    """The newest receipts of a stage were removed, and the chain that was left agreed with itself."""
    root = lake[0].root
    for _ in range(2):
        run_stage(root, "score_runs", inputs=(), outputs=(), command=("true",), receipts_keep=0)
    heads = receipt_module.stage_heads(root)
    known = [lake[1].receipts.last_receipt_sha256(), heads["score_runs"]]
    for anchor in known:
        assert not faulty(verify(root, root / "state/distilld.db", Options(), anchor=anchor))
    newest = max(path for path in (root / "reports/distillation").iterdir() if path.name.endswith("-score_runs"))
    shutil.rmtree(newest)
    assert not faulty(verify(root, root / "state/distilld.db", Options()))
    assert faulty(verify(root, root / "state/distilld.db", Options(), anchor=known[1])) == {"anchor"}
