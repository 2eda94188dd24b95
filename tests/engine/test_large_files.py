"""Files that are larger than what anybody would wait for: they hold up nothing else."""

from __future__ import annotations

import codecs
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from distilld.core.model import Dataset, InputKind, UnreadableError
from distilld.engine import file_reading, index, index_context, index_turns, ingest
from distilld.inspection.verify import verify
from distilld.lake import lines, scan
from distilld.service.run_once import GRACE_SECONDS, bring_up_to_date
from tests.support.builders import jsonl
from tests.support.history_lake import A, B, C, HistoryLake, believe_facts, given, history_lake, run

TERABYTE = 1 << 40
MALFORMED = "schema_violation"


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[HistoryLake]:
    """A lake of one run that ships."""
    with history_lake(tmp_path) as made:
        made.both(B, run("b"))
        made.go()
        assert made.exported(Dataset.RAG) == {"b"}
        yield made


def hollow(path: Path, behind: bytes = b"", size: int = TERABYTE) -> None:
    """Make a file that takes no room but for what stands behind its hole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(size)
        file.write(behind)


@pytest.mark.parametrize("tree", ["scored", "evidence", "both"])
def test_terabyte_of_nothing_delays_no_rejection(lake: HistoryLake, tree: str) -> None:
    """The story: ``truncate -s 1T x.jsonl`` costs nothing on the disk, and was hashed as one line before anything was judged.

    It is read up to the line limit, and its hole is passed by.
    """
    for path in lake.paths(A, tree):
        hollow(path)
    lake.scored(B, run("b", "rejected"))
    results = [lake.go()]
    assert lake.exported(Dataset.RAG) == set()
    while results[-1].unfinished:
        results.append(lake.go())
    assert sum(result.bytes_read for result in results) < 3 * (lake.options.max_line_bytes + lines.BLOCK_BYTES)
    assert {size for (size,) in lake.ask("SELECT tail_bytes FROM files WHERE tail = 'pending'")} == {TERABYTE}


def test_lines_behind_a_hole_are_read(lake: HistoryLake) -> None:
    """A line that a hole makes too long is malformed; a rejection in it, and in lines behind it, counts all the same."""
    hidden = jsonl([run("b", "rejected")])
    hollow(lake.scored_path(C), hidden + jsonl([run("c")]))
    lake.evidence(C, given("c"))
    lake.go()
    assert lake.exported(Dataset.RAG) == {"c"}
    assert sorted(lake.quarantined(Dataset.RAG).values()) == [MALFORMED, "unsafe_rag_category"]
    # What was consumed is proven at each look, and grows like any other file.
    with lake.scored_path(C).open("ab") as file:
        file.write(jsonl([run("c", "rejected")]))
    result = lake.go()
    assert lake.exported(Dataset.RAG) == set()
    assert result.bytes_read < 10 * (lake.options.max_line_bytes + lines.BLOCK_BYTES)


@pytest.mark.parametrize("before", [b"{ }", b"{}"], ids=["even", "odd"])
def test_hole_in_utf16_text_keeps_its_alignment(lake: HistoryLake, before: bytes) -> None:
    """A character takes two bytes: behind a hole of an odd length, each would be read from its second byte on."""
    lake.both(B, run("bär"))
    lake.scored(C, before)
    lake.go()
    words = '{"evidence_run_id":"bär","category":"rejected"}'.encode("utf-16-le") + b"\n"
    with lake.scored_path(C).open("ab") as file:
        file.write(codecs.BOM_UTF16_LE)
        file.truncate(len(before) + 1 + (20 << 20))
        file.write(words)
    lake.go()
    assert lake.exported(Dataset.RAG) == set()
    assert not [each for each in verify(lake.root, lake.state, lake.options, deep=True).checks if each.faults]


def test_run_of_nuls_within_a_line_has_one_digest(lake: HistoryLake) -> None:
    """A line that is too long is read again when it is judged, in other pieces than before: it is the same line."""
    lake.scored(A, b"a" * 10 + bytes(300_000) + b"b" * lake.options.max_line_bytes)
    with lake.scored_path(A).open("ab") as file:
        file.write(b"\n")
    result = lake.go()
    assert not result.changed_inputs
    assert list(lake.quarantined(Dataset.RAG).values()) == [MALFORMED]


def test_hole_that_was_filled_with_zeros_is_no_change(lake: HistoryLake) -> None:
    """What is a hole and what is NULs on the disk is the file system's matter: the content has one hash."""
    size = 20 << 20
    hollow(lake.scored_path(A), jsonl([run("a")]), size)
    lake.evidence(A, given("a"))
    lake.go()
    lake.scored_path(A).write_bytes(bytes(size) + jsonl([run("a")]))
    assert [change.change for change in lake.go().indexed.changes] == []
    content = bytearray(lake.scored_path(A).read_bytes())
    content[size // 2] = 1
    lake.scored_path(A).write_bytes(content)
    assert [change.change for change in lake.go().indexed.changes] == ["rewritten"]


def large_evidence_beside_a_rejection(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large evidence comes for two partitions that are known, and a rejection in a third one."""
    believe_facts(monkeypatch)
    monkeypatch.setattr(index_turns, "TURN_BYTES", 2000)
    lake.scored(A, run("a"))
    lake.scored(C, run("c"))
    lake.go()
    for partition, run_id in ((A, "a"), (C, "c")):
        lake.evidence(partition, given(run_id, "long" * 1000))
    lake.scored(B, run("b", "rejected"))


def test_large_evidence_has_its_turn_behind_all_others(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """What else there is to do comes first, and then the turn of the large files, also where others never end."""
    large_evidence_beside_a_rejection(lake, monkeypatch)
    assert lake.go().indexed.postponed == [(InputKind.EVIDENCE, A), (InputKind.EVIDENCE, C)]
    assert lake.exported(Dataset.RAG) == set()
    lake.scored(B, run("b", "accepted"))
    result = lake.go()
    assert (result.indexed.postponed, result.unfinished) == ([(InputKind.EVIDENCE, C)], True)
    assert lake.exported(Dataset.RAG) == {"a", "b"}
    assert not lake.go().unfinished
    assert lake.exported(Dataset.RAG) == {"a", "b", "c"}


def test_run_goes_on_until_every_large_file_had_its_turn(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """It neither pauses nor gives up before."""
    large_evidence_beside_a_rejection(lake, monkeypatch)
    report = bring_up_to_date(
        lake.engine, pause=lambda _: pytest.fail("a pause"), clock=iter(range(0, 10**6, 1000)).__next__
    )
    assert lake.exported(Dataset.RAG) == {"a", "c"}
    assert report.not_read == ()


@pytest.mark.parametrize("turn", [2000, 1 << 30])
@pytest.mark.parametrize("tree", ["scored", "evidence"])
def test_run_reads_a_rewritten_file_that_takes_longer_than_it_waits(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch, tree: str, turn: int
) -> None:
    """The story: the file was hashed for a minute, and then to be looked at again a second later: time was up, each time."""
    in_turns(monkeypatch)
    monkeypatch.setattr(index_turns, "TURN_BYTES", turn)
    lake.both(A, *map(run, RUNS))
    go_on(lake)
    (path,) = lake.paths(A, tree)
    path.write_bytes(path.read_bytes().replace(b"r00", b"x00"))
    lake.restart(settle_seconds=1)
    now, read = [0.0], lines._read_block

    def slowly(*args: Any) -> bytes:
        now[0] += GRACE_SECONDS
        return read(*args)

    def pause(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(lines, "_read_block", slowly)
    monkeypatch.setattr(ingest, "monotonic_ns", lambda: round(now[0] * 1e9))
    assert bring_up_to_date(lake.engine, pause=pause, clock=lambda: now[0]).not_read == ()
    assert lake.exported(Dataset.RAG) == {"b", *RUNS[1:]}


def test_large_evidence_that_is_rewritten_again_and_again_ends_with_the_run(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two such files had their turns one after the other, and a run never ended."""
    large_evidence_beside_a_rejection(lake, monkeypatch)
    looks, now, real = iter(range(30)), [0.0], lake.engine.ingest.scan

    def rewritten_before() -> Any:
        for partition, run_id in ((A, "a"), (C, "c")):
            lake.evidence(partition, given(run_id, f"{next(looks):02}" * 1000))
        return real()

    def pause(seconds: float) -> None:
        now[0] += max(seconds, GRACE_SECONDS / 3)

    monkeypatch.setattr(lake.engine.ingest, "scan", rewritten_before)
    report = bring_up_to_date(lake.engine, pause=pause, clock=lambda: now[0])
    assert now[0] >= GRACE_SECONDS
    assert report.not_read == tuple(f"data/evidence/{each} is still being written" for each in (A, C))


def test_run_names_large_evidence_that_grows_for_longer_than_it_waits(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It read the file again and again, never to its end: the report named nothing that was not read."""
    in_turns(monkeypatch)
    lake.both(A, *map(run, RUNS))
    lake.go()
    now, real = [0.0], lake.engine.ingest.scan

    def appended_before() -> Any:
        now[0] += 1
        with lake.evidence_path(A).open("ab") as file:
            file.write(jsonl([given("r00", str(now))]))
        return real()

    monkeypatch.setattr(lake.engine.ingest, "scan", appended_before)
    report = bring_up_to_date(lake.engine, pause=lambda _: None, clock=lambda: now[0])
    assert report.not_read == (f"data/evidence/{A} is still being written",)


def test_large_evidence_that_cannot_be_read_has_one_turn(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two such files had their turns one after the other, and a run never ended."""
    large_evidence_beside_a_rejection(lake, monkeypatch)
    real = scan.open_partition

    def refusing(root: Path, kind: InputKind, path: str) -> Any:
        if (kind, path) in ((InputKind.EVIDENCE, A), (InputKind.EVIDENCE, C)):
            raise UnreadableError(path, PermissionError(13, "Permission denied"))
        return real(root, kind, path)

    monkeypatch.setattr(index, "READ_WHOLE_BYTES", 0)
    monkeypatch.setattr(file_reading, "open_partition", refusing)
    looks = iter(range(10))
    monkeypatch.setattr(
        lake.engine.ingest, "index", lambda *a, real=lake.engine.ingest.index, **k: (next(looks), real(*a, **k))[1]
    )
    report = bring_up_to_date(lake.engine, pause=lambda _: None)
    assert len(report.not_read) == 2
    assert lake.exported(Dataset.RAG) == set()


def test_large_evidence_that_comes_with_its_rows_is_read_at_once(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows would be quarantined, or withdrawn where they moved, only to come back in the next pass."""
    monkeypatch.setattr(index_turns, "TURN_BYTES", 2000)
    lake.scored(A, run("a"))
    lake.evidence(A, given("a", "long" * 1000))
    lake.scored(C, run("c"))
    assert lake.go().indexed.postponed == []
    assert lake.exported(Dataset.RAG) == {"a", "b"}
    for tree in ("scored_path", "evidence_path"):
        getattr(lake, tree)(A).rename(getattr(lake, tree)(A).with_name("renamed.jsonl"))
    assert lake.go().indexed.postponed == []
    assert lake.causes(Dataset.RAG) == []


RUNS = tuple(f"r{number:02}" for number in range(40))
LONG = "long" * 40


def in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evidence of more than 2,000 bytes is large, and a few rows are read in a pass."""
    believe_facts(monkeypatch)
    monkeypatch.setattr(index_turns, "TURN_BYTES", 2000)
    monkeypatch.setattr(lines, "BLOCK_BYTES", 700)


def go_on(lake: HistoryLake) -> int:
    """Pass until nothing is left; return how many passes it took."""
    for passes in range(1, 200):
        if not lake.go().unfinished:
            return passes
    raise AssertionError("a pass is always due")


def test_large_evidence_is_read_in_turns_and_counts_as_a_whole(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass reads a part of it; a rejection beside it applies at once, and its rows are judged when all is read."""
    in_turns(monkeypatch)
    lake.scored(A, *map(run, RUNS))
    lake.go()
    lake.evidence(A, *(given(each, LONG) for each in RUNS))
    size = lake.evidence_path(A).stat().st_size
    results = [lake.go()]
    assert results[0].bytes_read < 2000 + 2 * 700
    results[0].looked_at_ns += 10**10
    assert results[0].lag_seconds >= 10
    lake.scored(B, run("b", "rejected"))
    results.append(lake.go())
    while lake.exported(Dataset.RAG) == set():
        assert results[-1].unfinished
        results.append(lake.go())
    assert lake.exported(Dataset.RAG) == set(RUNS)
    assert size // 2800 <= len(results) <= size // 2000 + 1
    assert not results[-1].unfinished
    assert [change.change for change in results[-1].indexed.changes] == ["new"]
    assert lake.go().bytes_read == 0


@pytest.mark.parametrize("how", ["replaced", "appended"])
def test_file_that_always_changes_takes_no_turn_from_another(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The file that had the last turn comes last."""
    in_turns(monkeypatch)
    lake.scored(A, *map(run, RUNS))
    lake.scored(C, *(run(f"c{each}") for each in RUNS))
    lake.go()
    rows = [given(each, LONG) for each in RUNS]
    lake.evidence(A, *rows)
    lake.evidence(C, *(given(f"c{each}", LONG) for each in RUNS))
    for _ in range(40):
        lake.go()
        if how == "replaced":
            path = lake.evidence_path(A)
            path.with_suffix(".new").write_bytes(path.read_bytes())
            os.replace(path.with_suffix(".new"), path)
        else:
            with lake.evidence_path(A).open("ab") as file:
                file.write(jsonl(rows))
    assert {f"c{each}" for each in RUNS} <= lake.exported(Dataset.RAG)


@pytest.mark.parametrize("larger", [False, True])
def test_file_that_is_rewritten_between_two_turns_is_not_taken_for_one_file(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch, larger: bool
) -> None:
    """The first half of what it was and the second half of what it is would lack runs that both have.

    A file that is larger than it was may have grown; whether it did shows once all was read.
    """
    in_turns(monkeypatch)
    lake.both(A, *map(run, RUNS))
    go_on(lake)
    rows = [given(each) for each in RUNS]
    for times, order in enumerate((rows[1:] + rows[:1], rows[::-1]), 1):
        size = lake.evidence_path(A).stat().st_size
        lake.evidence(A, *order, *[given("more")] * (times * larger))
        assert (lake.evidence_path(A).stat().st_size > size) == larger
        for _ in range(12):
            assert lake.go().unfinished
    go_on(lake)
    assert lake.causes(Dataset.RAG) == []
    assert not verify(lake.root, lake.state, lake.options, deep=True).faults


@pytest.mark.parametrize("kind", InputKind)
def test_file_that_is_rewritten_while_it_is_read_is_not_taken_for_one_file(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch, kind: InputKind
) -> None:
    """The same within one pass, of a file that is read block by block without turns."""
    believe_facts(monkeypatch)
    monkeypatch.setattr(lines, "BLOCK_BYTES", 700)
    monkeypatch.setattr(index, "READ_WHOLE_BYTES", 0)
    lake.both(A, *map(run, RUNS))
    lake.go()
    write, row = (lake.scored, run) if kind is InputKind.SCORED else (lake.evidence, given)
    rows = [row(each) for each in RUNS]
    starts: list[int] = []
    real = lines._read_block

    def rewritten_before(descriptor: int, start: int, *more: Any) -> bytes:
        starts.append(start)
        # Its prefix was compared, and it is read from its start.
        if starts[-3:] == [0, 700, 1400] and starts.count(0) == 2:
            write(A, *rows[::-1], row("more"))
        return real(descriptor, start, *more)

    monkeypatch.setattr(lines, "_read_block", rewritten_before)
    write(A, *rows[1:], *rows[:1])
    assert lake.go().indexed.unsettled == [(kind, A)]
    assert lake.exported(Dataset.RAG) == {"b", *RUNS}
    go_on(lake)
    assert lake.causes(Dataset.RAG) == []
    assert not verify(lake.root, lake.state, lake.options, deep=True).faults


@pytest.mark.parametrize("unread", [0, 1 << 62])
@pytest.mark.parametrize("kind", InputKind)
def test_new_file_that_is_rewritten_while_it_is_read_as_a_whole_is_not_taken_for_one_file(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch, kind: InputKind, unread: int
) -> None:
    """Both contents have the evidence of each run, or reject the run; what was read of the two had not."""
    monkeypatch.setattr(lines, "BLOCK_BYTES", 700)
    monkeypatch.setattr(index, "LEAVE_FROM", unread)
    if kind is InputKind.SCORED:
        write, rows = lake.scored, [run(each) for each in RUNS] + [run("b", "rejected")]
        lake.evidence(C, *map(given, RUNS))
    else:
        write, rows = lake.evidence, [given(each) for each in RUNS]
        lake.scored(C, *map(run, RUNS))
    write(C, *rows)
    real, left = lines._read_block, [1]

    def rewritten_before(descriptor: int, start: int, length: int, shown: str) -> bytes:
        if start == 700 and left and shown == scan.tree_path(kind, C):
            left.pop()
            write(C, *rows[::-1])
        return real(descriptor, start, length, shown)

    monkeypatch.setattr(lines, "_read_block", rewritten_before)
    lake.go()
    assert not left
    assert lake.exported(Dataset.RAG) == (set(RUNS) if kind is InputKind.SCORED else {"b", *RUNS})
    go_on(lake)
    assert not verify(lake.root, lake.state, lake.options, deep=True).faults


@pytest.mark.parametrize("unread", [0, 1 << 62])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("how", ["refused", "rewritten", "stopped"])
def test_rows_wait_for_the_rest_of_their_file(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch, how: str, known: bool, unread: int
) -> None:
    """What is read last may forbid what is read first: rows of a part of a file are not exported, nor are their pairs."""
    monkeypatch.setattr(lines, "BLOCK_BYTES", 700)
    monkeypatch.setattr(index, "LEAVE_FROM", unread)
    monkeypatch.setattr(index, "READ_WHOLE_BYTES", 0)
    monkeypatch.setattr(index_context, "ROWS_PER_TRANSACTION", 1)
    before = [run("a0")] if known else []
    pair = [run("x", task_id="t"), run("y", "rejected", task_id="t")]
    between, last = [run(each) for each in RUNS[:6]], run("x", "rejected", task_id="t")
    if known:
        lake.both(C, *before)
        lake.go()
    lake.both(C, *before, *pair, *between)
    lake.scored(C, *before, *pair, *between, last)
    size, real, times, at = lake.scored_path(C).stat().st_size, lines._read_block, [0], [0]

    def fails(descriptor: int, start: int, length: int, shown: str) -> bytes:
        if shown != scan.tree_path(InputKind.SCORED, C):
            return real(descriptor, start, length, shown)
        at[0], was = start, at[0]
        if how == "rewritten" and was < 1400 <= start:
            # Both contents reject the run, now before what is read next, then behind it.
            times[0] += 1
            lake.scored(C, *before, *pair, *([last, *between] if times[0] % 2 else [*between, last]))
        elif how == "refused" and start + length >= size:
            raise UnreadableError(shown, OSError(5, "Input/output error"))
        elif how == "stopped" and start + length >= size and not times[0]:
            times[0] += 1
            raise KeyboardInterrupt
        return real(descriptor, start, length, shown)

    with monkeypatch.context() as patch:
        patch.setattr(lines, "_read_block", fails)
        if how == "stopped":
            with pytest.raises(KeyboardInterrupt):
                lake.go()
            lake.scored(C, *before, *pair, last, *between)
            lake.restart(settle_seconds=60)
        result = lake.go()
    assert result.unreadable if how == "refused" else result.unfinished
    assert lake.exported(Dataset.RAG) == lake.exported(Dataset.SFT) == ({"b", "a0"} if known else {"b"})
    assert lake.exported(Dataset.PREFERENCE) == set()
    lake.restart(settle_seconds=0)
    go_on(lake)
    assert set(RUNS[:6]) <= lake.exported(Dataset.RAG)
    assert not {"x", "y"} & lake.exported(Dataset.RAG)
    assert not verify(lake.root, lake.state, lake.options, deep=True).faults


@pytest.mark.usefixtures("look_after_each_batch")
def test_look_in_a_long_pass_forgets_no_large_file(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its hash is overdue, as that of its rows, which such a look does not ask; but the pass had begun to read it."""
    in_turns(monkeypatch)
    lake.both(A, *map(run, RUNS))
    go_on(lake)
    lake.restart(scrub_hours=1e-9)
    lake.scored(B, run("b", "rejected"))
    result = lake.go()
    assert result.batches
    assert result.bytes_read < sum(path.stat().st_size for path in lake.paths(A, "both"))
    assert result.indexed.postponed == [(InputKind.EVIDENCE, A)]


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("before", ["nothing", "known", "away"])
@pytest.mark.parametrize(
    "change",
    ["appended", "torn", "rewritten", "shorter", "replaced", "gone", "gone and back", "rows", "rejected", "failed",
     "undone", "restarted", "prune", "options"],
)  # fmt: skip
def test_what_happens_between_two_turns(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch, change: str, before: str, passes: int
) -> None:
    """Whatever it is, in the end the lake is as a full pass would make it, and all else was done in the meantime."""
    in_turns(monkeypatch)
    path = lake.evidence_path(A)
    path.parent.mkdir(parents=True)
    if change != "rows":
        lake.scored(A, *map(run, RUNS))
        lake.go()
    if before != "nothing":
        lake.evidence(A, *(given(each, LONG) for each in RUNS[:30]))
        path.write_bytes(path.read_bytes().removesuffix(b"\n"))
        go_on(lake)
    if before == "away":
        lake.move_away(path)
        go_on(lake)
        lake.bring_back(path)
    with path.open("ab") as file:
        file.write(b"\n" * (before != "nothing") + jsonl([given(each, LONG) for each in RUNS[20:]]))
    for _ in range(passes):
        assert lake.go().unfinished
    match change:
        case "appended":
            with path.open("ab") as file:
                file.write(jsonl([given(RUNS[3], model_role="extractor")]))
        case "torn":
            with path.open("ab") as file:
                file.write(jsonl([given(RUNS[3], model_role="extractor")])[:-1])
        case "rewritten":
            lake.evidence(A, *(given(each, LONG[::-1]) for each in RUNS))
        case "shorter":
            lake.evidence(A, given(RUNS[0]))
        case "replaced":
            os.rename(path, path.with_suffix(".old"))
            lake.evidence(A, *(given(each, LONG[::-1]) for each in reversed(RUNS)))
            path.with_suffix(".old").unlink()
        case "gone":
            lake.move_away(path)
        case "gone and back":
            lake.move_away(path)
            lake.go()
            lake.bring_back(path)
        case "rows":
            lake.scored(A, *map(run, RUNS))
        case "rejected":
            lake.scored(B, *(run(each, "rejected") for each in RUNS))
        case "failed":
            fail_once(lake, monkeypatch, index_turns, "_read_on", full)
        case "undone":
            fail_once(lake, monkeypatch, index_context.IndexContext, "transactions", undone)
        case "restarted":
            lake.restart()
        case "prune":
            lake.prune()
        case "options":
            lake.restart(replace(lake.options, max_line_bytes=10_000))
    go_on(lake)
    assert not verify(lake.root, lake.state, lake.options, deep=True).faults
    if change == "rewritten":
        assert all(LONG[::-1] in row["content"] for row in lake.rows(Dataset.RAG) if row["source_run_id"] != "b")
    assert lake.go().bytes_read == 0


def test_file_that_was_away_in_the_middle_of_a_pass_is_read_from_its_start(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows wait for it as absent evidence by then, which only a reading of a file that returned gives them."""
    in_turns(monkeypatch)
    path = lake.evidence_path(A)
    lake.scored(A, *map(run, RUNS))
    lake.evidence(A, *(given(each, LONG) for each in RUNS))
    go_on(lake)
    with path.open("ab") as file:
        file.write(jsonl([given(RUNS[3], LONG[::-1])]))
    assert lake.go().unfinished
    looking_again = lake.engine.ingest.indexer(lake.engine.ingest.scan(), lake.engine.new_pool(), None)
    folder, away = path.parent, lake.root / "away"
    os.rename(folder, away)  # as an unmounted folder does, it leaves the facts of the file as they are
    looking_again.take(lake.engine.ingest.scan())
    os.rename(away, folder)
    go_on(lake)
    assert lake.exported(Dataset.RAG) == {*RUNS, "b"}
    assert lake.ask("SELECT count(*) FROM scored_rows WHERE evidence_found = 0") == [(0,)]
    assert not verify(lake.root, lake.state, lake.options, deep=True).faults


def fail_once(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch, of: object, method: str, failing: Callable[..., object]
) -> None:
    """Let a pass fail within a function of the indexing."""
    with monkeypatch.context() as patch:
        patch.setattr(of, method, failing)
        with pytest.raises(sqlite3.OperationalError):
            lake.go()


def full(*_: object) -> NoReturn:
    """Fail while a large file is read."""
    raise sqlite3.OperationalError("database or disk is full")


@contextmanager
def undone(context: index_context.IndexContext) -> Iterator[None]:
    """Fail at the end of a turn's transaction."""
    connection = context.store.connection
    connection.execute("BEGIN IMMEDIATE")
    yield
    connection.execute("ROLLBACK")
    full()


def test_failed_pass_closes_the_file_that_is_read_in_turns(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """While passes fail for a full disk, a file that is deleted to make room would take it as long as it is open."""
    in_turns(monkeypatch)
    lake.scored(A, *map(run, RUNS))
    lake.go()
    lake.evidence(A, *(given(each, LONG) for each in RUNS))
    assert lake.go().unfinished
    path = lake.evidence_path(A)
    assert path in opened()
    with monkeypatch.context() as patch:
        patch.setattr(lake.engine.ingest, "scan", lambda: pytest.fail("no room"))
        with pytest.raises(pytest.fail.Exception):
            lake.go()
    assert path not in opened()


def opened() -> set[Path]:
    """The files that this process has open."""
    return {Path(os.readlink(each)) for each in Path("/proc/self/fd").iterdir() if os.path.lexists(each)}


@pytest.mark.parametrize("change", ["new", "appended", "rewritten", "evidence"])
def test_every_block_gives_a_sign_of_life(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """The story: one long line was hashed for longer than the watchdog waits, and the service was killed in a loop."""
    monkeypatch.setattr("distilld.engine.index.READ_WHOLE_BYTES", 0)
    monkeypatch.setattr(lines, "BLOCK_BYTES", 1000)
    line = b'{"text":"' + b"x" * 200_000 + b'"}\n'
    path = lake.evidence_path(B) if change == "evidence" else lake.scored_path(A)
    path.parent.mkdir(parents=True, exist_ok=True)
    if change in ("appended", "rewritten"):
        path.write_bytes(line)
        lake.go()
    with path.open("wb" if change == "rewritten" else "ab") as file:
        file.write(line if change != "rewritten" else line.replace(b"x", b"y"))
    pulses = 0

    def pulse() -> None:
        nonlocal pulses
        pulses += 1

    lake.engine.pulse = pulse
    read = lake.go().indexed.bytes_read
    assert read > 190_000
    assert pulses > read / 1000


def test_a_sparse_file_is_no_larger_for_its_owner(tmp_path: Path) -> None:
    """The files of these tests take no room: else they would test nothing."""
    path = tmp_path / "hollow"
    hollow(path)
    assert os.stat(path).st_blocks * 512 < 1 << 20


def test_no_scrub_reads_a_hole(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashing again what was consumed passes by the holes, too."""
    hollow(lake.scored_path(C), b"\n")
    lake.go()
    reads: list[int] = []
    real = os.pread

    def noted(descriptor: int, length: int, offset: int) -> Any:
        reads.append(length)
        return real(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", noted)
    lake.go()
    assert 0 < sum(reads) < 10 * lines.BLOCK_BYTES


def test_counts_of_a_file_whose_reading_was_cut_off_are_whole(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between two blocks lost the malformed lines before it, in the store and in the receipt."""
    monkeypatch.setattr(index, "READ_WHOLE_BYTES", 0)
    monkeypatch.setattr(index_context, "ROWS_PER_TRANSACTION", 1)
    monkeypatch.setattr("distilld.lake.lines.BLOCK_BYTES", 64)
    path = lake.scored_path(C)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"no JSON\n" * 40 + jsonl([run("c")]))
    known = "SELECT indexed_lines, malformed_lines FROM files JOIN partitions USING (partition_id) WHERE path = ?"

    def cut_off() -> None:
        if any(lines > 0 for lines, _ in lake.ask(known, C)):
            raise KeyboardInterrupt

    lake.engine.pulse = cut_off
    with pytest.raises(KeyboardInterrupt):
        lake.go()
    lake.stop()
    assert [0 < lines < 41 for lines, _ in lake.ask(known, C)] == [True]
    receipt = lake.go().batches[-1].receipt
    (read,) = (each for each in receipt["inputs"] if each["path"].endswith(C))
    assert (read["change"], read["from_offset"], read["lines"], read["malformed_lines"]) == ("new", 0, 41, 40)
    assert lake.ask(known, C) == [(41, 40)]
