"""A rejected row leaves a dataset in place: what readers see, what stops it, and what brings a file back into shape."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distilld.config.load import load
from distilld.core.model import DATASET_PATHS, EXPORT_PATHS, Dataset, Trigger
from distilld.inspection.explain import explain
from distilld.inspection.verify import verify
from distilld.publish import exports as exports_module
from distilld.publish import live_files, overwrite
from distilld.publish.committed import at_one_batch
from distilld.publish.exports import Exports
from distilld.publish.pins import Pins, pinned
from tests.support.committed import committed_and_whole, digest_by_segments
from tests.support.history_lake import A, B, C, HistoryLake, given, history_lake, run

RUNS = [f"r{number:02d}" for number in range(40)]
RAG = EXPORT_PATHS["rag"]


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HistoryLake]:
    """Two partitions whose runs all ship; rows leave in place, small as the files are."""
    monkeypatch.setattr(exports_module, "LEAST_BYTES", 0)
    monkeypatch.setattr(live_files, "SEGMENT_BYTES", 4096)
    with history_lake(tmp_path) as made:
        made.both(A, *map(run, RUNS[:20]))
        made.both(B, *map(run, RUNS[20:]))
        made.go()
        yield made


def reject(lake: HistoryLake, *runs: str) -> None:
    """Score runs again, as rejected."""
    path = lake.scored_path(C)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        for each in runs:
            file.write(json.dumps(run(each, "rejected", provenance__sig_hash="again")).encode() + b"\n")


def inode(lake: HistoryLake, name: str = "rag") -> int:
    """Which file stands in an export's place."""
    return (lake.root / EXPORT_PATHS[name]).stat().st_ino


@pytest.mark.parametrize("gone", [["r00"], ["r39"], ["r07", "r08"], ["r00", "r20", "r38", "r39"]])
def test_rejected_rows_leave_the_file_that_they_stood_in(lake: HistoryLake, gone: list[str]) -> None:
    """First, last, or between others: the rest is as it was, byte for byte, and each line is one row."""
    before, files = lake.content("rag"), {name: inode(lake, name) for name in ("rag", "sft")}
    reject(lake, *gone)
    receipt = lake.go().batches[0].receipt
    assert lake.exported("rag") == lake.exported("sft") == set(RUNS) - set(gone)
    assert {name: inode(lake, name) for name in files} == files
    after = lake.content("rag")
    rest = [line for line in before.splitlines() if json.loads(line)["source_run_id"] not in gone]
    assert [line.lstrip(b" ") for line in after.splitlines()] == rest
    (output,) = (each for each in receipt["outputs"] if each["path"] == RAG)
    assert (output["withdrawn"], output["rewritten"], output["bytes"]) == (len(gone), False, len(after))
    assert output["sha256"] == digest_by_segments(after, output["segment_bytes"])
    committed_and_whole(lake.root)
    assert not verify(lake.root, lake.state, lake.options, deep=True).faults


def test_another_process_reads_only_what_it_touches(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a start the digests of the store are taken for the file as long as its stat facts are as they were."""
    lake.both("2026/05/01/more.jsonl", *(run(f"m{number}") for number in range(80)))
    lake.go()
    lake.restart()
    read = 0
    real = os.pread

    def counted(descriptor: int, length: int, offset: int) -> bytes:
        nonlocal read
        if os.fstat(descriptor).st_ino == inode(lake):
            read += length
        return real(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", counted)
    before = inode(lake)
    reject(lake, "r02")
    lake.go()
    assert inode(lake) == before
    assert 0 < read < 30_000 < len(lake.content("rag"))
    committed_and_whole(lake.root)


def test_held_row_leaves_its_quarantine_in_place(lake: HistoryLake) -> None:
    """A row that is accepted in the end ships, and its line leaves the quarantine file."""
    lake.scored(C, *(run(f"h{number}") for number in range(30)))
    lake.go()
    before = inode(lake, "quarantine_rag")
    lake.evidence(C, given("h3"))
    lake.go()
    assert "h3" in lake.exported("rag")
    assert "h3" not in lake.quarantined("rag")
    assert inode(lake, "quarantine_rag") == before
    committed_and_whole(lake.root)
    # The row behind it, spaces before it now, is found by the digest of its line.
    settings = load(flags={"root": lake.root, "state": lake.state}, environ={}, config_file=None, cwd=lake.root)
    assert explain(settings, "h4").rows[0].fates[0].errors == (
        "evidence_run_id=h4 not found in matching evidence partition",
    )


def test_replaced_row_never_stands_beside_its_old_one(lake: HistoryLake) -> None:
    """New content under the same id comes with a new file: whoever has the old one open sees the old row alone."""
    before = inode(lake)
    lake.evidence(A, *(given(each, "other words" if each == "r03" else None) for each in RUNS[:20]))
    lake.go()
    assert inode(lake) != before
    assert lake.causes("rag") == ["evidence_changed+"]
    assert b"\n " not in lake.content("rag")


def test_pinned_batch_stays_as_it_is(lake: HistoryLake) -> None:
    """Whoever pins a batch keeps the file that was opened; the row leaves all the same, and nobody waits."""
    before = inode(lake)
    with pinned(lake.root), pinned(lake.root), (lake.root / RAG).open("rb") as file:
        content = lake.content("rag")
        reject(lake, "r05")
        lake.go()
        assert "r05" not in lake.exported("rag")
        assert file.read() == content
    assert inode(lake) != before
    before = inode(lake)
    reject(lake, "r06")
    lake.go()
    assert inode(lake) == before, "a pin that is gone stops nothing"


def test_reader_does_not_wait_for_ever_for_a_lock_that_is_not_the_writers(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may list exports/ can lock it. The story: changes, snapshot and verify hung until that program let go."""
    monkeypatch.setattr("distilld.publish.pins.PATIENCE_SECONDS", 0.1)
    foreign = Pins(lake.root)
    assert foreign.keep_out()
    reject(lake, "r05")
    lake.go()
    seen = at_one_batch(lake.root, lake.state, lambda batch: b"".join(batch.exports["rag"].lines()))
    assert b'"r04"' in seen
    assert b'"r05"' not in seen
    foreign.let_in()


def test_writer_lets_readers_in_when_a_batch_is_done(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can pin a batch that is being overwritten; afterwards, and after a failure, anybody can."""
    seen = []
    real = Exports.overwrite

    def looked_at(self: Exports, *arguments: Any) -> Any:
        seen.append(Pins(lake.root).keep_out())
        return real(self, *arguments)

    monkeypatch.setattr(Exports, "overwrite", looked_at)
    reject(lake, "r05")
    lake.go()
    assert seen == [False, False]
    other = Pins(lake.root)
    assert other.keep_out()
    other.let_in()
    reject(lake, "r06")
    monkeypatch.setattr(type(lake.engine.committer), "_transact", _interrupted)
    with pytest.raises(KeyboardInterrupt):
        lake.go()
    assert other.keep_out()
    other.let_in()


def test_plan_of_an_undone_batch_is_forgotten(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that only overwrites records no intent, so nothing must be recovered before the next batch appends."""
    lake.scored("2026/04/30/single.jsonl", run("single"))
    lake.go()
    lake.scored(C, *(run(f"h{number}") for number in range(30)))
    lake.go()
    lake.scored("2026/04/30/single.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(type(lake.engine.committer), "_transact", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            lake.go()
    assert not lake.engine.committer.needs_recovery()
    lake.scored("2026/04/30/single.jsonl", run("single"), run("more"))
    lake.go()
    assert {"single", "more", "h0"} <= lake.quarantined("rag").keys()
    committed_and_whole(lake.root)


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", [b"Answer of r06", b"Answer of r31"], ids=["same segment", "another segment"])
def test_file_that_was_edited_behind_the_commit_is_restored(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch, where: bytes
) -> None:
    """An edit between COMMIT and the overwriting is set aside and undone, and the rejected row is gone."""
    real = Exports.overwrite

    def edited(self: Exports, name: str, *arguments: Any) -> Any:
        if name == "rag":
            content = lake.content("rag")
            assert where in content
            (lake.root / RAG).write_bytes(content.replace(where, where.upper()))
        return real(self, name, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Exports, "overwrite", edited)
        reject(lake, "r05")
        lake.go()
    lake.go()
    assert lake.exported("rag") == set(RUNS) - {"r05"}
    assert [path.name for path in (lake.root / "exports/.set-aside").iterdir()]
    committed_and_whole(lake.root)
    assert not verify(lake.root, lake.state, lake.options, deep=True).faults


@pytest.mark.parametrize("gone", ["r07", "r39"], ids=["middle", "last"])
@pytest.mark.parametrize("grows", [False, True], ids=["shrinks", "grows"])
def test_new_mode_between_plan_and_commit_keeps_no_row(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch, gone: str, *, grows: bool
) -> None:
    """The file was hashed again then, and the digest of its old content was taken for that of the planned one."""
    real = Exports.plan

    def plan(self: Exports, name: str, *arguments: Any, **options: Any) -> Any:
        planned = real(self, name, *arguments, **options)
        os.chmod(lake.root / EXPORT_PATHS[name], 0o600 if planned is None else 0o604)
        return planned

    monkeypatch.setattr(Exports, "plan", plan)
    reject(lake, gone)
    if grows:
        lake.both("2026/05/01/new.jsonl", run("new"))
    lake.go()
    assert lake.exported("rag") == lake.exported("sft") == set(RUNS) - {gone} | ({"new"} if grows else set())
    committed_and_whole(lake.root)
    assert not verify(lake.root, lake.state, lake.options, deep=True).faults


def damaged(lake: HistoryLake) -> None:
    """Edit a row of a file that has spaces in it."""
    content = lake.content("rag")
    assert b"\n " in content
    (lake.root / RAG).write_bytes(content.replace(b"Answer of r30", b"ANSWER of r30"))


@pytest.mark.parametrize("mishap", [damaged, HistoryLake.lose_store], ids=["restore", "take over"])
def test_spaces_do_not_get_in_the_way(lake: HistoryLake, mishap: Callable[[HistoryLake], None]) -> None:
    """A file with spaces is restored, and taken over without a store, as any other; each row keeps its bytes."""
    reject(lake, "r05", "r20")
    lake.go()
    before = {line.lstrip(b" ") for line in lake.content("rag").splitlines()}
    mishap(lake)
    lake.go()
    assert before == set(lake.content("rag").splitlines())
    assert lake.exported("rag") == lake.exported("sft") == set(RUNS) - {"r05", "r20"}


@pytest.mark.parametrize("trigger", [Trigger.COMPACT, Trigger.REBUILD])
def test_files_are_those_of_a_fresh_pass(lake: HistoryLake, tmp_path: Path, trigger: Trigger) -> None:
    """Without their spaces, and in walk order, files equal those of one full pass, timestamps aside."""
    lake.both("2026/04/01/early.jsonl", *map(run, ("e1", "e2")))
    lake.go()
    reject(lake, "r05", "r20", "r39")
    lake.go()
    lake.go(trigger)
    with history_lake(tmp_path / "fresh") as fresh:
        for tree in ("scored-runs", "evidence"):
            for path in (lake.root / "data" / tree).rglob("*.jsonl"):
                copy = fresh.root / path.relative_to(lake.root)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
        fresh.go()
        for name in EXPORT_PATHS:
            if not name.startswith("withdrawals_"):
                assert _untimed(lake, name) == _untimed(fresh, name)
    committed_and_whole(lake.root)


def _untimed(lake: HistoryLake, name: str) -> list[bytes]:
    return [line.replace(b"2026-04-24T", b"T").split(b'"recorded_at":"2026-04-2')[0] for line in _stampless(lake, name)]


def _stampless(lake: HistoryLake, name: str) -> list[bytes]:
    content = lake.content(name)
    for (stamp,) in lake.ask("SELECT recorded_at FROM batches"):
        content = content.replace(stamp.encode(), b"TIME")
    return content.splitlines(keepends=True)


def of_version_0_1(lake: HistoryLake) -> None:
    """Leave the store as version 0.1 would have: one digest over all bytes, and nothing known of the inside."""
    import hashlib

    store = lake.engine.store.connection
    for name, content in lake.files().items():
        store.execute(
            "UPDATE export_files SET segment_bytes = NULL, sha256 = ? WHERE name = ?",
            (hashlib.sha256(content).hexdigest(), name),
        )
    store.execute("DELETE FROM export_segments")
    lake.stop()


def test_store_of_an_older_version_learns_its_segments_once(lake: HistoryLake) -> None:
    """The first start reads each file, holds it against its old digest, and rows leave in place from then on."""
    of_version_0_1(lake)
    lake.go()
    committed_and_whole(lake.root)
    before = inode(lake)
    reject(lake, "r05")
    lake.go()
    assert inode(lake) == before
    committed_and_whole(lake.root)


def test_damage_beside_an_older_version_is_restored(lake: HistoryLake) -> None:
    """A file whose old digest does not fit is set aside and restored, not taken for good."""
    of_version_0_1(lake)
    content = lake.content("rag").replace(b"Answer of r30", b"ANSWER of r30")
    facts = os.stat(lake.root / RAG)
    (lake.root / RAG).write_bytes(content)
    os.utime(lake.root / RAG, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    lake.go()
    assert b"ANSWER" not in lake.content("rag")
    committed_and_whole(lake.root)


_LOAD = """
import json, sys
kind, path = sys.argv[1:]
if kind == "datasets":
    from datasets import load_dataset
    ids = [row["id"] for row in load_dataset("json", data_files=path, split="train", streaming=True)]
elif kind == "pandas":
    import pandas
    ids = list(pandas.read_json(path, lines=True)["id"])
elif kind == "pyarrow":
    import pyarrow.json
    ids = pyarrow.json.read_json(path)["id"].to_pylist()
elif kind == "polars":
    import polars
    ids = polars.read_ndjson(path)["id"].to_list()
else:
    import duckdb
    ids = [row[0] for row in duckdb.sql(f"SELECT id FROM read_json('{path}', format='newline_delimited')").fetchall()]
print(json.dumps(ids))
"""


@pytest.mark.parametrize("kind", ["datasets", "pandas", "pyarrow", "polars", "duckdb"])
def test_loaders_read_the_rows_that_are_left(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    """Whole partitions are withdrawn, first and last rows too; each loader reads exactly what stands there."""
    if kind in ("polars", "duckdb"):
        pytest.importorskip(kind)
    monkeypatch.setattr(overwrite, "MOST_SPACE_SHARE", 9)
    monkeypatch.setattr(live_files, "SEGMENT_BYTES", 1 << 19)
    lake.restart()
    reject(lake, *RUNS[:20], "r33", "r39")
    lake.go()
    assert lake.content("rag").startswith(b" ")
    for dataset in (Dataset.RAG, Dataset.SFT):
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
        done = subprocess.run(
            [sys.executable, "-c", _LOAD, kind, str(lake.root / DATASET_PATHS[dataset])],
            capture_output=True, text=True, check=False, env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        ids = json.loads(done.stdout.splitlines()[-1])
        assert ids == [row["id"] for row in lake.rows(dataset)]
        assert len(ids) == 18
