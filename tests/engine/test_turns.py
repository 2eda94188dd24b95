"""A large file is read in turns: what a verdict elsewhere forbids leaves before it is read to its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distilld.core.model import Dataset, InputKind
from distilld.engine import index, index_file
from distilld.engine.pass_result import PassResult
from distilld.lake import lines
from distilld.service.run_once import bring_up_to_date
from tests.support.builders import jsonl
from tests.support.history_lake import A, B, C, HistoryLake, believe_facts, given, history_lake, run

TURN = 20_000
BLOCK = 1_000
FIRST = "2026/04/26/first.jsonl"
LAST = "2026/05/01/last.jsonl"


def make_turns_short(patch: pytest.MonkeyPatch) -> None:
    """Few bytes make a large file."""
    patch.setattr(index_file, "TURN_BYTES", TURN)
    patch.setattr(index, "READ_WHOLE_BYTES", TURN)
    patch.setattr(lines, "BLOCK_BYTES", BLOCK)


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HistoryLake]:
    """A lake with a run that ships, where few bytes make a large file."""
    believe_facts(monkeypatch)
    make_turns_short(monkeypatch)
    with history_lake(tmp_path) as made:
        made.both(B, run("b"))
        made.go()
        assert made.exported(Dataset.RAG) == {"b"}
        yield made


def padded(*rows: dict[str, Any], times: int = 5) -> bytes:
    """Rows behind others that come to several turns."""
    filler = [run(f"filler-{number}", "rejected", reasons=["x" * 900]) for number in range(times * TURN // 1000)]
    return jsonl([*filler, *rows])


def append(path: Path, content: bytes) -> None:
    """Append to a file, or begin it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(content)


def to_the_end(lake: HistoryLake, between: Callable[[PassResult], object] = lambda _: None) -> list[PassResult]:
    """Passes until nothing is left; something happens between them."""
    results = [lake.go()]
    while results[-1].unfinished:
        between(results[-1])
        results.append(lake.go())
        assert len(results) < 100
    return results


def bytes_read(results: list[PassResult]) -> int:
    """The bytes of inputs that were read for indexing."""
    return sum(result.indexed.bytes_read for result in results)


@pytest.mark.parametrize("tree", ["scored", "evidence", "both"])
@pytest.mark.parametrize("known", [False, True])
def test_rejection_elsewhere_is_out_before_a_large_file_is_read(lake: HistoryLake, tree: str, known: bool) -> None:
    """The story: a file of 100 GB was read to its end, for minutes, while a rejected row stood in a dataset."""
    if known:
        lake.both(C, run("c"))
        lake.go()
    for path in lake.paths(C, tree):
        append(
            path, padded(run("new")) if "scored" in str(path) else jsonl([given(f"e{n}", "x" * 900) for n in range(99)])
        )
    size = sum(path.stat().st_size for path in lake.paths(C, tree))
    first = lake.go()
    assert first.indexed.postponed
    assert first.lag_seconds > 0
    lake.scored(LAST, run("b", "rejected"))
    second = lake.go()
    assert second.indexed.postponed
    assert "b" not in lake.exported(Dataset.RAG) | lake.exported(Dataset.SFT)
    results = [first, second, *to_the_end(lake)]
    # Each turn reads again what stands behind its last line, a block at most, and the last one what is read for good.
    assert bytes_read(results) <= 1.1 * size
    assert sum(result.indexed.rows_indexed for result in results) >= 99
    assert results[-1].lag_seconds == 0
    assert not lake.go().changed


def test_nothing_ships_that_the_rest_of_a_file_may_forbid(lake: HistoryLake) -> None:
    """Rows of the file itself, and of others that come meanwhile, wait until the last verdict of it is read."""
    append(lake.scored_path(C), jsonl([run("c"), run("good")]) + padded(run("c", "rejected"), run("other", "rejected")))
    lake.evidence(C, given("c"), given("good"))

    def come_and_look(_: PassResult) -> None:
        lake.both(A, run("other"), run("fine"))
        assert lake.exported(Dataset.RAG) == lake.exported(Dataset.SFT) == {"b"}

    assert len(to_the_end(lake, come_and_look)) > 3
    assert lake.exported(Dataset.RAG) == {"b", "fine", "good"}
    assert lake.causes(Dataset.RAG) == []


def test_other_rows_ship_while_evidence_is_read(lake: HistoryLake) -> None:
    """Evidence holds no verdict: what it comes to is what an append would be."""
    lake.scored(C, run("first"), run("last"))
    lake.go()
    filler = [given(f"filler-{number}", "x" * 900) for number in range(100)]
    lake.evidence(C, given("first"), *filler, given("last"))
    assert lake.go().indexed.postponed
    lake.both(A, run("other"))
    lake.go()
    assert lake.exported(Dataset.RAG) == {"b", "first", "other"}
    to_the_end(lake)
    assert lake.exported(Dataset.RAG) == {"b", "first", "last", "other"}


def test_rows_whose_evidence_is_half_read_are_not_held(lake: HistoryLake) -> None:
    """They come with it: they would be quarantined, only to ship when it is read."""
    lake.scored(C, run("first"), run("last"))
    lake.evidence(C, *(given(f"filler-{number}", "x" * 900) for number in range(100)), given("first"), given("last"))
    to_the_end(lake, lambda _: lake.quarantined(Dataset.RAG) == {} or pytest.fail("held"))
    assert lake.exported(Dataset.RAG) == {"b", "first", "last"}


def test_partition_that_is_renamed_withdraws_nothing(lake: HistoryLake) -> None:
    """Its rows stand on evidence that is half read under the new name."""
    lake.scored(A, run("a"))
    lake.evidence(A, *(given(f"filler-{number}", "x" * 900) for number in range(100)), given("a"))
    to_the_end(lake)
    stamps = lake.stamps(Dataset.RAG)
    for path in lake.paths(A, "both"):
        path.rename(path.with_name("renamed.jsonl"))
    assert len(to_the_end(lake)) > 2
    assert (lake.stamps(Dataset.RAG), lake.causes(Dataset.RAG)) == (stamps, [])


def test_prefix_of_a_large_file_is_proven_in_turns(lake: HistoryLake) -> None:
    """One row behind a file of 100 GB costs the hash of all of it; that holds up nothing either."""
    append(lake.scored_path(C), padded(run("c")))
    lake.evidence(C, given("c"), given("d"))
    to_the_end(lake)
    size = lake.scored_path(C).stat().st_size
    append(lake.scored_path(C), jsonl([run("d")]))
    first = lake.go()
    assert first.indexed.postponed == [(InputKind.SCORED, C)]
    lake.scored(LAST, run("b", "rejected"))
    second = lake.go()
    assert second.unfinished
    assert lake.exported(Dataset.RAG) == {"c"}
    assert bytes_read([first, second, *to_the_end(lake)]) <= 1.1 * size
    assert lake.exported(Dataset.RAG) == {"c", "d"}


def test_line_longer_than_a_turn_is_read(lake: HistoryLake) -> None:
    """A turn ends behind a line: within one it would begin at the same byte for ever."""
    long = run("long", reasons=["x" * 3 * TURN])
    append(lake.scored_path(C), jsonl([run("c"), long, long, run("d")]))
    lake.evidence(C, given("c"), given("d"), given("long"))
    size = lake.scored_path(C).stat().st_size
    assert bytes_read(to_the_end(lake)) <= 1.1 * size
    assert lake.exported(Dataset.RAG) == {"b", "c", "d", "long"}


def test_killed_process_goes_on_where_it_was(lake: HistoryLake) -> None:
    """What was read is in the store; its bytes are hashed again, in turns, since another process reads on."""
    append(lake.scored_path(C), padded(run("b", "rejected")))
    indexed = []
    results = [lake.go()]
    while results[-1].unfinished:
        lake.stop()
        results.append(lake.go())
        (rows,) = lake.ask("SELECT indexed_lines FROM files WHERE kind = 'scored' ORDER BY indexed_lines DESC LIMIT 1")
        indexed.append(rows[0])
        if len(results) == 4:
            break
    assert 10 < indexed[0] <= indexed[1] <= indexed[2]
    to_the_end(lake)
    assert lake.exported(Dataset.RAG) == set()


def test_file_that_is_rewritten_while_half_read_is_as_it_is_then(lake: HistoryLake) -> None:
    """Its first bytes are other ones than those that were hashed: it is proven once more, and read anew."""
    content = padded(run("c"), run("last"), times=4)
    content = jsonl([run("x")]) + content
    append(lake.scored_path(C), content)
    lake.evidence(C, given("x"), given("c"), given("last"))
    lake.go()
    with lake.scored_path(C).open("r+b") as file:
        file.write(jsonl([run("x")]).replace(b'"accepted"', b'"rejected"'))
    to_the_end(lake)
    assert lake.exported(Dataset.RAG) == {"b", "c", "last"}


def test_evidence_that_is_rewritten_while_half_read_is_taken_in_anew(lake: HistoryLake) -> None:
    """Its first row was judged before the second turn; nobody would read it again."""
    lake.scored(C, run("first"))
    lake.go()
    lake.evidence(C, given("first", "# One"), *(given(f"filler-{number}", "x" * 900) for number in range(100)))
    lake.go()
    assert [row["content"] for row in lake.rows("rag") if row["source_run_id"] == "first"] == ["# One"]
    path = lake.evidence_path(C)
    with path.open("r+b") as file:
        file.write(path.read_bytes()[:2000].replace(b"# One", b"# Two"))
    to_the_end(lake)
    assert [row["content"] for row in lake.rows("rag") if row["source_run_id"] == "first"] == ["# Two"]


def test_turn_that_is_undone_is_read_again(lake: HistoryLake) -> None:
    """What a turn brought may be lost with its transaction; the next one must not go on behind it."""
    append(lake.scored_path(C), jsonl([run("c")]) + padded())
    lake.evidence(C, given("c"))
    lake.evidence(LAST, given("other"))
    lake.engine.pulse = lambda: pytest.fail("cut off") if lake.engine._half_read else None
    with pytest.raises(pytest.fail.Exception):
        lake.go()
    assert lake.engine._half_read
    lake.engine.pulse = lambda: None
    to_the_end(lake)
    assert lake.exported(Dataset.RAG) == {"b", "c"}


@pytest.mark.parametrize("change", ["gone", "replaced", "shorter"])
def test_file_that_goes_while_half_read(lake: HistoryLake, change: str) -> None:
    """What was read of it is what is known of any file that changes so."""
    path = lake.scored_path(C)
    append(path, jsonl([run("x")]) + padded())
    lake.evidence(C, given("x"), given("y"))
    lake.go()
    if change == "gone":
        path.unlink()
    elif change == "replaced":
        other = path.with_name("other")
        other.write_bytes(jsonl([run("y")]) + padded())
        other.rename(path)
    else:
        path.write_bytes(jsonl([run("y")]))
    to_the_end(lake)
    assert lake.exported(Dataset.RAG) == ({"b"} if change == "gone" else {"b", "y"})


def test_file_that_grows_at_each_turn_is_read(lake: HistoryLake) -> None:
    """Turns do not begin anew with each append, and rows ship once all is read that stood there."""
    path = lake.scored_path(C)
    append(path, padded(run("c")))
    lake.evidence(C, given("c"))
    left = list(range(12))

    def grow(_: PassResult) -> None:
        if left:
            append(path, jsonl([run(f"late-{left.pop()}", "rejected")]))

    results = [lake.go()]
    for _ in range(8):
        grow(results[-1])
        results.append(lake.go())
    assert lake.exported(Dataset.RAG) == {"b", "c"}
    to_the_end(lake, grow)
    assert len(lake.ask("SELECT 1 FROM scored_rows WHERE run_id LIKE 'late%'")) >= 9


def test_first_pass_reads_without_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing ships yet, so that no rejection is late."""
    make_turns_short(monkeypatch)
    with history_lake(tmp_path) as lake:
        append(lake.scored_path(C), padded(run("c")))
        lake.evidence(C, given("c"))
        assert not lake.go().unfinished
        assert lake.exported(Dataset.RAG) == {"c"}


def test_rebuild_reads_without_turns(lake: HistoryLake) -> None:
    """One pass reads everything anew and puts the files in order."""
    append(lake.scored_path(C), padded(run("c")))
    lake.evidence(C, given("c"))
    to_the_end(lake)
    assert not lake.engine.rebuild().unfinished
    assert not lake.go().changed


def test_run_goes_on_until_all_is_read(lake: HistoryLake) -> None:
    """One run is enough, whatever the number of turns, and it pauses for none."""
    append(lake.scored_path(C), padded(run("c")))
    lake.evidence(C, given("c"))
    report = bring_up_to_date(
        lake.engine, pause=lambda _: pytest.fail("a pause"), clock=iter(range(0, 10**6, 1000)).__next__
    )
    assert lake.exported(Dataset.RAG) == {"b", "c"}
    assert report.not_read == ()


def test_run_reads_no_file_twice_on_account_of_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Facts that prove nothing yet are looked into once in a run, not at each turn."""
    make_turns_short(monkeypatch)
    with history_lake(tmp_path) as lake:
        lake.both(B, run("b"))
        lake.go()
        for partition in (A, C):
            append(lake.scored_path(partition), padded(run("c")))
        size = sum(path.stat().st_size for path in (tmp_path / "data").rglob("*.jsonl"))
        size = sum(lake.scored_path(each).stat().st_size for each in (A, C))
        assert bytes_read(to_the_end(lake)) <= 1.1 * size


class TestWithheld:
    """While verdicts may be unread only what a verdict forbids leaves, and nothing else changes."""

    @pytest.fixture
    def half_read(self, lake: HistoryLake) -> HistoryLake:
        """A large scored file is on its way."""
        append(lake.scored_path(LAST), padded(times=8))
        return lake

    def test_row_that_is_rejected_in_place_leaves(self, half_read: HistoryLake) -> None:
        """Its line is gone with the row, which is another one now."""
        half_read.scored(B, run("b", "rejected"))
        assert half_read.go().indexed.withholds
        assert half_read.exported(Dataset.RAG) == set()
        to_the_end(half_read)
        assert half_read.causes(Dataset.RAG) == ["revoked"]

    def test_row_that_moves_stays(self, half_read: HistoryLake) -> None:
        """The row that takes its line over is yet to be judged: it would leave, only to come back."""
        stamps = half_read.stamps(Dataset.RAG)
        half_read.both(B)
        half_read.both(A, run("b"))
        assert half_read.go().indexed.withholds
        to_the_end(half_read)
        assert (half_read.exported(Dataset.RAG), half_read.causes(Dataset.RAG)) == ({"b"}, [])
        assert half_read.stamps(Dataset.RAG) == stamps

    def test_row_that_moves_into_the_rest_does_not_vanish(self, lake: HistoryLake) -> None:
        """The tripwire waits until it is known what the rest holds."""
        lake.restart(tripwire_rows=0, tripwire_share=0.0)
        append(lake.scored_path(LAST), padded(run("b"), times=8))
        lake.evidence(LAST, given("b"))
        lake.both(B)
        to_the_end(lake, lambda _: lake.engine.retained.kept_by_tripwire() and pytest.fail("tripped"))
        assert (lake.exported(Dataset.RAG), lake.causes(Dataset.RAG)) == ({"b"}, [])

    def test_pair_leaves_and_none_takes_its_slot(self, lake: HistoryLake) -> None:
        """A pair that takes the slot of one that leaves may be one that the rest forbids."""
        lake.both(A, run("yes", task_id="t"), run("no", "rejected", "t"), run("later", "rejected", "t"))
        lake.both(FIRST, run("first", task_id="t"))
        lake.go()
        assert len(lake.exported(Dataset.PREFERENCE)) == 4
        append(lake.scored_path(LAST), padded(run("extra", "rejected", "t"), times=8))
        lake.evidence(LAST, given("extra"))
        lake.both(C, run("yes", "rejected", "t"))
        assert lake.go().indexed.withholds
        assert lake.exported(Dataset.PREFERENCE) == {"first>no", "first>later"}
        to_the_end(lake)
        assert len(lake.exported(Dataset.PREFERENCE)) == 4

    def test_run_that_is_cleared_waits(self, lake: HistoryLake) -> None:
        """A later verdict that clears it may be followed by one that does not."""
        lake.both(C, run("c", "rejected"), run("d", "rejected"))
        lake.go()
        append(lake.scored_path(LAST), padded(run("c", "rejected"), times=8))
        lake.both(C, run("c", "accepted"), run("d", "accepted"))
        to_the_end(lake, lambda _: lake.exported(Dataset.RAG) == {"b"} or pytest.fail("too early"))
        assert lake.exported(Dataset.RAG) == {"b", "d"}

    def test_row_that_waits_for_an_id_goes_on_waiting(self, lake: HistoryLake) -> None:
        """It is judged when the id comes free, and would ship; its own run may be rejected in the rest."""
        lake.scored(A, run("x|y", provenance__sig_hash="z"), run("x", provenance__sig_hash="y|z"))
        lake.evidence(A, given("x|y"), given("x"))
        lake.go()
        assert lake.exported(Dataset.RAG) == {"b", "x|y"}
        append(lake.scored_path(LAST), padded(run("x", "rejected"), times=8))
        lake.scored(C, run("x|y", "rejected"))
        to_the_end(lake, lambda _: lake.exported(Dataset.RAG) == {"b"} or pytest.fail("too early"))
        assert lake.exported(Dataset.RAG) == {"b"}
        assert lake.causes(Dataset.RAG) == ["revoked"]

    def test_retained_row_leaves_when_it_is_rejected(self, half_read: HistoryLake) -> None:
        """Its partition is absent."""
        half_read.move_away(*half_read.paths(B, "both"))
        half_read.scored(C, run("b", "rejected"))
        assert half_read.go().indexed.withholds
        assert half_read.exported(Dataset.RAG) == set()
        to_the_end(half_read)
