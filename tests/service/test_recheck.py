"""Files whose facts do not show a change: each is hashed again, soon after it was taken in and then from time to time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distilld.core.line_facts import LINES_END
from distilld.core.model import Dataset, InputKind, OperatorError, StatFacts, Trigger
from distilld.engine import file_reading, index_context, ingest, mend, one_pass, work_off
from distilld.files.boot import boot_id
from distilld.inspection.verify import verify
from distilld.lake import scan as scanning
from distilld.service import recheck
from distilld.service.recheck import LONGEST_PAUSE_SECONDS, SCRUB_REST, Recheck
from distilld.store import inputs, walk_order
from tests.support.builders import jsonl
from tests.support.history_lake import A, B, C, HistoryLake, history_lake, run

SECOND = 10**9
HOUR = 3600 * SECOND
OLD = 1_777_000_000 * SECOND


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[HistoryLake]:
    """A lake of which two partitions were taken in."""
    with history_lake(tmp_path) as made:
        made.both(A, run("a"))
        made.both(B, run("b"))
        made.go()
        yield made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Our clocks, which stand still until a test moves them; reading and hashing take no time."""
    hands = SimpleNamespace(now=1000 * SECOND)
    monkeypatch.setattr(recheck, "monotonic", lambda: hands.now / 1e9)
    monkeypatch.setattr(recheck, "monotonic_ns", lambda: hands.now)
    monkeypatch.setattr(recheck, "time_ns", lambda: OLD + hands.now)
    monkeypatch.setattr(index_context, "monotonic_ns", lambda: hands.now)
    times = SimpleNamespace(monotonic_ns=lambda: hands.now, time_ns=lambda: OLD + hands.now)
    monkeypatch.setattr(inputs, "time", times)
    for module in (ingest, work_off):
        monkeypatch.setattr(module, "monotonic_ns", lambda: hands.now)
        monkeypatch.setattr(module, "time", times)
    for module in (mend, one_pass):
        monkeypatch.setattr(module, "time", times)
    return hands


@pytest.fixture
def whole_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files lie on a server that stamps whole seconds, by a clock that is ten seconds behind."""

    def stamped(facts: StatFacts) -> StatFacts:
        late = OLD // SECOND * SECOND - 10 * SECOND
        return facts._replace(mtime_ns=late, ctime_ns=late)

    scan, opened = scanning.scan, scanning.open_partition

    def scanned(root: Path) -> Any:
        found = scan(root)
        files = tuple(file._replace(stat=stamped(file.stat)) for file in found.files)
        return scanning.Scan(files, *(getattr(found, name) for name in list(found.__slots__)[1:]))

    class Opened:
        def __init__(self, *where: Any) -> None:
            self._open = opened(*where)

        def __enter__(self) -> tuple[int, StatFacts]:
            descriptor, facts = self._open.__enter__()
            return descriptor, stamped(facts)

        def __exit__(self, *why: Any) -> Any:
            return self._open.__exit__(*why)

    monkeypatch.setattr(scanning, "scan", scanned)
    for module in (file_reading, recheck):
        monkeypatch.setattr(module, "open_partition", Opened)
    monkeypatch.setattr(StatFacts, "of", classmethod(lambda cls, status: stamped(real_facts(status))))


def real_facts(status: Any) -> StatFacts:
    """The facts that a stat tells."""
    return StatFacts(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def reject(lake: HistoryLake, partition: str) -> None:
    """Reject what was accepted, at the same length and in the same file."""
    with lake.scored_path(partition).open("r+b") as file:
        content = file.read().replace(b'"accepted"', b'"rejected"')
        file.seek(0)
        file.write(content)


def hide(lake: HistoryLake) -> None:
    """Have the files' present facts be those that are recorded, as behind a write through a mapped page."""
    with lake.engine.store.transaction():
        for record in lake.engine.inputs.files().values():
            path = lake.root / scanning.tree_path(record.kind, record.path)
            record.facts = StatFacts.of(path.stat())
            lake.engine.inputs.write_file(record)


def looks(lake: HistoryLake) -> list[tuple[Any, ...]]:
    """Since when each file is unsure."""
    return lake.ask("SELECT unsure_since_ns FROM files ORDER BY 1")


def settle(again: Recheck) -> float:
    """Step after step until a pause; returns how long it is."""
    while not (pause := again.step()):
        pass
    return pause


def test_rejections_within_a_second_of_a_late_clock_are_not_missed(tmp_path: Path, whole_seconds: None) -> None:
    """The story: four of four rejections of the same length, in the same second of a file server's clock that was ten
    seconds behind, were missed for good: the clock said that the files had long been at rest.
    """
    with history_lake(tmp_path) as lake:
        lake.both(A, run("a"))
        lake.go()
        assert lake.exported(Dataset.RAG) == {"a"}
        reject(lake, A)
        lake.go()
        assert lake.exported(Dataset.RAG) == set()


def test_file_is_read_again_until_its_facts_prove_its_bytes(tmp_path: Path, clock: SimpleNamespace) -> None:
    """Two seconds after our first look at its facts, by our clock; then it is not read any more."""
    with history_lake(tmp_path) as lake:
        lake.both(A, run("a"))
        size = sum(path.stat().st_size for path in lake.paths(A, "both"))
        read = []
        for _ in range(2):
            read.append(lake.go().bytes_read)
            clock.now += 2 * SECOND - 1
        read.append(lake.go().bytes_read)
        assert read[1:] == [size, size]
        clock.now += 100 * SECOND
        assert lake.go().bytes_read == 0


def test_another_boot_proves_nothing(lake: HistoryLake) -> None:
    """Monotonic times of two starts of the machine cannot be compared: every file is hashed once more."""
    lake.engine.store.connection.execute("UPDATE files SET unsure_since_ns = NULL")
    lake.restart()
    assert lake.go().bytes_read == 0
    lake.engine.store.remember("boot_id", "another")
    lake.restart()
    assert lake.go().bytes_read > 0
    assert lake.engine.store.recall("boot_id") == boot_id()


def test_run_once_hashes_what_is_overdue(lake: HistoryLake) -> None:
    """The story: a rejection through a mapped page left size and times as they were, and was never found."""
    reject(lake, A)
    hide(lake)
    lake.engine.store.connection.execute("UPDATE files SET unsure_since_ns = NULL")
    lake.restart(scrub_hours=0)
    lake.go()
    assert lake.exported(Dataset.RAG) == {"a", "b"}
    lake.engine.store.connection.execute("UPDATE files SET hashed_at_ns = hashed_at_ns - ?", (2 * HOUR,))
    lake.restart(scrub_hours=3)
    lake.go()
    assert lake.exported(Dataset.RAG) == {"a", "b"}
    lake.restart(scrub_hours=1)
    lake.go()
    assert lake.exported(Dataset.RAG) == {"b"}


def test_clock_that_was_set_back_delays_no_scrub_for_good(lake: HistoryLake) -> None:
    """The story: files were taken in while the clock was a year ahead, and no scrub came to them for a year."""
    lake.engine.store.connection.execute(
        "UPDATE files SET unsure_since_ns = NULL, hashed_at_ns = hashed_at_ns + ?", (365 * 24 * HOUR,)
    )
    lake.restart(scrub_hours=3)
    lake.go()
    lake.engine.store.connection.execute("UPDATE files SET hashed_at_ns = hashed_at_ns - ?", (2 * HOUR,))
    reject(lake, A)
    hide(lake)
    lake.restart(scrub_hours=1)
    lake.go()
    assert lake.exported(Dataset.RAG) == {"b"}


def test_daemon_proves_new_files_once_two_seconds_have_passed(lake: HistoryLake, clock: SimpleNamespace) -> None:
    """Behind new work, with no pass, and then no more; a scan takes their facts as they are meanwhile."""
    lake.engine.store.connection.execute("UPDATE files SET unsure_since_ns = ?", (clock.now,))
    again = Recheck(lake.engine)
    assert settle(again) == 2
    assert looks(lake) == [(clock.now,)] * 4
    assert lake.go(Trigger.WATCH).bytes_read == 0
    clock.now += 2 * SECOND
    assert settle(again) == LONGEST_PAUSE_SECONDS
    assert looks(lake) == [(None,)] * 4
    assert not again.found


def test_daemon_finds_a_change_that_the_facts_hide(lake: HistoryLake, clock: SimpleNamespace) -> None:
    """The pass that it asks for then reads the files, and no other pass did."""
    reject(lake, A)
    reject(lake, B)
    hide(lake)
    lake.engine.store.connection.execute("UPDATE files SET unsure_since_ns = 0")
    again = Recheck(lake.engine)
    assert lake.go(Trigger.WATCH).bytes_read == 0
    settle(again)
    assert again.found
    lake.go(Trigger.WATCH)
    assert lake.exported(Dataset.RAG) == set()


def test_what_was_hashed_is_not_what_was_taken_in_meanwhile(lake: HistoryLake, clock: SimpleNamespace) -> None:
    """A pass between two slices of a reading may take more of the file in: what the slices say is of the past then."""
    lake.engine.store.connection.execute("UPDATE files SET unsure_since_ns = 0")
    again = Recheck(lake.engine)
    known = lake.engine.inputs.unsure(clock.now)
    with lake.scored_path(A).open("ab") as file:
        file.write(b"{}\n")
    lake.go(Trigger.WATCH)
    with lake.engine.store.transaction():
        assert lake.engine.inputs.note_hashed([(record, False) for record in known])
    doubted = lake.ask("SELECT p.path, kind FROM files JOIN partitions p USING (partition_id) WHERE ctime_ns < 0")
    assert sorted(doubted) == [(A, "evidence"), (B, "evidence"), (B, "scored")]
    again.close()


def test_scrub_is_spread_over_its_time(lake: HistoryLake, clock: SimpleNamespace) -> None:
    """Of four files one comes each quarter of the time, the one that waits longest; none waits longer than the time."""
    lake.engine.store.connection.execute(
        "UPDATE files SET unsure_since_ns = NULL, hashed_at_ns = ?", (OLD + clock.now,)
    )
    lake.restart(scrub_hours=4 / 60)
    again = Recheck(lake.engine)
    hashed = []
    for _ in range(4):
        assert settle(again) == pytest.approx(60)
        clock.now += 60 * SECOND
        assert again.step() == 0  # in no time: the rest after it is a share of that
        hashed.append(lake.ask("SELECT count(*) FROM files WHERE hashed_at_ns = ?", OLD + clock.now)[0][0])
    assert hashed == [1, 1, 1, 1]
    # A daemon that was away for long: all are overdue.
    clock.now += 10 * 60 * SECOND
    settle(again)
    assert lake.ask("SELECT min(hashed_at_ns) FROM files") == [(OLD + clock.now,)]


def test_scrub_takes_two_hundredths_of_a_core(
    lake: HistoryLake, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It rests 49 times as long as it reads, and goes on within a file where it stopped."""
    lake.engine.store.connection.execute("UPDATE files SET unsure_since_ns = NULL, hashed_at_ns = 1")
    lake.restart(scrub_hours=1)
    again = Recheck(lake.engine)
    ticks = iter(range(10**6))
    monkeypatch.setattr(recheck, "monotonic", lambda: clock.now / 1e9 + next(ticks) * recheck.SLICE_SECONDS / 2)
    steps = 0
    while lake.ask("SELECT count(*) FROM files WHERE hashed_at_ns = 1") != [(0,)]:
        assert again.step() >= SCRUB_REST * recheck.SLICE_SECONDS
        steps += 1
    assert steps > 4


def test_unreadable_file_is_doubted_and_the_pass_says_so(lake: HistoryLake, clock: SimpleNamespace) -> None:
    """It is no reason to hash it over and over: the pass that follows tells of it."""
    lake.engine.store.connection.execute("UPDATE files SET unsure_since_ns = 0")
    lake.scored_path(A).unlink()
    again = Recheck(lake.engine)
    settle(again)
    assert again.found
    again.found = False
    settle(again)
    assert not again.found
    assert lake.go(Trigger.WATCH).indexed.changes[0].change == "absent"


def test_store_that_cannot_be_written_leaves_the_files_to_be_hashed_again(
    lake: HistoryLake, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found and could not be recorded is found once more."""
    lake.engine.store.connection.execute("UPDATE files SET unsure_since_ns = 0")
    again = Recheck(lake.engine)
    with monkeypatch.context() as patch:
        patch.setattr(lake.engine.inputs, "note_hashed", refuse)
        with pytest.raises(OperatorError, match="no room"):
            settle(again)
    settle(again)
    assert looks(lake) == [(None,)] * 4


def refuse(_: object) -> bool:
    """What a full disk does."""
    raise OperatorError("no room")


def test_rest_behind_the_last_line_is_hashed_too(lake: HistoryLake, clock: SimpleNamespace) -> None:
    """A last line without its line feed counts as a row: a change of it must not be missed either."""
    lake.scored_path(C).parent.mkdir(parents=True)
    lake.scored_path(C).write_bytes(lake.scored_path(A).read_bytes().rstrip(b"\n").replace(b'"a"', b'"c"'))
    lake.go()
    reject(lake, C)
    hide(lake)
    lake.engine.store.connection.execute("UPDATE files SET unsure_since_ns = 0")
    again = Recheck(lake.engine)
    settle(again)
    assert again.found
    doubted = lake.ask("SELECT p.path, kind FROM files JOIN partitions p USING (partition_id) WHERE ctime_ns < 0")
    assert doubted == [(C, InputKind.SCORED.value)]


def test_places_that_moved_while_a_file_was_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record of the file as it was before took the place of the present one: later rows were stored elsewhere."""
    monkeypatch.setattr(walk_order, "BASE_STEP", 2 * LINES_END)
    with history_lake(tmp_path) as lake:
        lake.both(A, run("a"))
        lake.both(C, run("c"))
        lake.go()
        lake.engine.store.connection.execute("UPDATE files SET unsure_since_ns = 0")
        being_hashed = lake.engine.inputs.unsure(1 << 62)
        assert being_hashed
        lake.both(B.replace("beta", "b1"), run("b1"))
        lake.both(B.replace("beta", "b2"), run("b2"))
        lake.go()
        assert lake.ask("SELECT value FROM counters WHERE name = 'walk_relabels'") == [(1,)]
        with lake.engine.store.transaction():
            assert not lake.engine.inputs.note_hashed([(record, True) for record in being_hashed])
        with lake.scored_path(C).open("ab") as file:
            file.write(jsonl([run("b2", "rejected", provenance__sig_hash="again")]))
        lake.go()
        assert lake.exported(Dataset.RAG) == {"a", "b1", "c"}
        assert not verify(lake.root, lake.state, lake.options, deep=True).faults
