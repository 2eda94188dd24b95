"""The quick answer to 'is all as recorded?' is the one that comparing every file gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from structlog.testing import capture_logs

from distilld.core.model import Dataset, InputKind, OperatorError, StatFacts, UnreadableError
from distilld.core.plan import FileKey, compare
from distilld.engine import file_reading
from distilld.engine.ingest import Ingest
from distilld.inspection.verify import verify
from distilld.lake import scan as scanning
from distilld.store.connection import Store
from distilld.store.inputs import FileRecord, Inputs
from distilld.store.queries import Views
from distilld.store.walk_order import place_partitions
from distilld.store.work import Work
from tests.support.history_lake import A, B, C, given, history_lake, run

Facts = dict[FileKey, StatFacts]
AT_REST = StatFacts(1, 2, 3, 4, 5)
HASHED_NS = 1000
SCORED, EVIDENCE = (InputKind.SCORED, "2026/01/01/a.jsonl"), (InputKind.EVIDENCE, "2026/01/01/a.jsonl")
OTHER = (InputKind.SCORED, "2026/01/02/b.jsonl")
RECORDED: Facts = {SCORED: AT_REST, EVIDENCE: AT_REST._replace(inode=20), OTHER: AT_REST._replace(inode=30)}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store."""
    with closing(Store.open(tmp_path / "distilld.db", tmp_path)) as made:
        yield made


def record(store: Store, facts: Facts, *, absent: FileKey | None = None, looks: dict[str, int] | None = None) -> None:
    """Record files as they were read; of the last one how far its facts prove its bytes."""
    inputs = Inputs(store)
    with store.transaction():
        places = place_partitions(store, [path for _, path in facts])
        for (kind, path), each in facts.items():
            state = "absent" if (kind, path) == absent else "present"
            sure: dict[str, Any] = {
                "unsure_since_ns": None,
                "hashed_at_ns": HASHED_NS,
                **((looks or {}) if path == OTHER[1] else {}),
            }
            inputs.write_file(FileRecord(*places[path], path, kind, state, each, **sure))


def answers(store: Store, seen: Facts) -> tuple[bool, bool]:
    """The quick answer of one who has just opened the store, and the one of a comparison."""
    plan = compare(seen, Inputs(store).files(), is_doubtful=lambda record: record.is_doubtful(HASHED_NS - 1))
    files = [(kind, path, facts) for (kind, path), facts in seen.items()]
    quick = Inputs(store).all_as_recorded(files, hashed_since_ns=HASHED_NS - 1)
    return quick, plan == ((), ())


def with_facts(**changes: int) -> Callable[[Facts], Facts]:
    """One file is seen with other facts."""
    return lambda facts: {**facts, EVIDENCE: facts[EVIDENCE]._replace(**changes)}


def test_unchanged(store: Store) -> None:
    """Files that are as they were read are found so."""
    record(store, RECORDED)
    assert answers(store, RECORDED) == (True, True)


@pytest.mark.parametrize(
    "change",
    [
        *(with_facts(**{name: 9}) for name in ("device", "inode", "size", "mtime_ns", "ctime_ns")),
        lambda facts: {key: facts[key] for key in (SCORED, OTHER)},
        lambda facts: {**facts, (InputKind.EVIDENCE, OTHER[1]): AT_REST},
        lambda facts: {SCORED: facts[SCORED], EVIDENCE: facts[EVIDENCE], (InputKind.EVIDENCE, OTHER[1]): facts[OTHER]},
        lambda facts: {**facts, SCORED: facts[EVIDENCE], EVIDENCE: facts[SCORED]},
        lambda _: {},
    ],
    ids=["device", "inode", "size", "mtime", "ctime", "gone", "new", "moved to the other tree", "swapped", "all gone"],
)
def test_every_change_is_noticed(store: Store, change: Callable[[Facts], Facts]) -> None:
    """Whatever differs, the quick answer is no, and so is the long one."""
    record(store, RECORDED)
    assert answers(store, change(RECORDED)) == (False, False)


@pytest.mark.parametrize("looks", [{"unsure_since_ns": 5}, {"hashed_at_ns": HASHED_NS - 1}], ids=["unsure", "overdue"])
def test_file_whose_facts_prove_nothing_is_read_again(store: Store, looks: dict[str, int]) -> None:
    """Facts under which the bytes may change unseen prove nothing; nor do those of a file that is due for a scrub."""
    record(store, RECORDED, looks=looks)
    assert answers(store, RECORDED) == (False, False)


def test_file_that_returned(store: Store) -> None:
    """A file that was absent and stands there again is read, whatever its facts."""
    record(store, RECORDED, absent=OTHER)
    assert answers(store, RECORDED) == (False, False)
    assert answers(store, {key: RECORDED[key] for key in (SCORED, EVIDENCE)}) == (True, True)


def test_records_at_hand_are_asked(store: Store) -> None:
    """One who has read the records says so rather than read them again."""
    record(store, RECORDED)
    inputs = Inputs(store)
    inputs.files()
    assert not inputs.all_as_recorded([(kind, path, facts) for (kind, path), facts in RECORDED.items()])


def test_file_that_is_owed_a_reading_is_read_though_nothing_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be read when the line limit changed is read at the next start, whatever its facts say."""
    with history_lake(tmp_path) as lake:
        lake.scored(A, run("a"))
        lake.evidence(A, given("a", "long" * 1000))
        lake.go()
        assert lake.exported(Dataset.RAG) == {"a"}
        # As if the files had been read long after the first look at them.
        lake.engine.store.connection.execute("UPDATE files SET unsure_since_ns = NULL")
        lake.restart(replace(lake.options, max_line_bytes=2000))

        def refuse(_root: Path, _kind: InputKind, path: str) -> NoReturn:
            raise UnreadableError(path, OSError(5, "Input/output error"))

        with monkeypatch.context() as patch:
            patch.setattr(file_reading, "open_partition", refuse)
            lake.go()
        lake.restart(lake.options)
        lake.go()
        assert lake.quarantined(Dataset.RAG) == {"a": "missing_source_run_id"}


@pytest.mark.parametrize("change", [{"include_partial": True}, {"max_line_bytes": 5000}])
def test_options_that_were_taken_back_are_no_change_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    """Other options, cut off before their first batch, and then the old ones again: one pass over all settles that.

    The story: they were being taken up for ever, and where the line limit was another one each pass read the whole lake.
    """
    with history_lake(tmp_path) as lake:
        before = lake.options
        lake.both(A, run("a"), run("b", "partially_accepted"))
        lake.go()
        exports = lake.files()
        lake.restart(replace(before, **change))
        with monkeypatch.context() as patch:
            patch.setattr(Ingest, "index", refuse_to_write)
            with pytest.raises(OperatorError, match="no room"):
                lake.go()
        lake.restart(before)
        lake.go()
        # As if the files had been read long after the first look at them.
        lake.engine.store.connection.execute("UPDATE files SET unsure_since_ns = NULL")
        lake.restart()
        with capture_logs() as logs:
            assert lake.go().indexed.bytes_read == 0
        assert logs == []
        assert lake.engine.store.recall("options_in_hand") is None
        assert lake.files() == exports


def refuse_to_write(*_: object, **__: object) -> NoReturn:
    """What a full disk does."""
    raise OperatorError("no room")


def test_file_that_was_left_alone_is_read_whatever_its_facts_say(tmp_path: Path) -> None:
    """A file whose facts lie was left until it is still; the look in the middle of the pass believed them for good."""
    with history_lake(tmp_path) as lake:
        lake.both(A, run("a"))
        lake.go()
        assert lake.exported(Dataset.RAG) == {"a"}
        lake.scored(A, run("a", "rejected"))
        with lake.engine.store.transaction():
            record = lake.engine.inputs.files()[InputKind.SCORED, A]
            record.facts, record.unsure_since_ns = StatFacts.of(lake.scored_path(A).stat()), None
            lake.engine.inputs.write_file(record)
        lake.go()
        assert lake.exported(Dataset.RAG) == {"a"}, "the facts are believed"
        lake.engine.ingest._left = [(InputKind.SCORED, A)]
        lake.go()
        assert lake.exported(Dataset.RAG) == set()


def test_facts_beyond_the_store_stop_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system may give 64-bit inodes and a time after the year 2262: such a file is read like any other."""
    facts_of = StatFacts.of

    def odd(status: Any) -> StatFacts:
        names = ("st_dev", "st_ino", "st_mtime_ns", "st_ctime_ns")
        return facts_of(
            SimpleNamespace(st_size=status.st_size, **{name: getattr(status, name) + (1 << 63) for name in names})
        )

    with history_lake(tmp_path) as lake:
        lake.both(A, run("a"), run("b"))
        lake.go()
        monkeypatch.setattr(StatFacts, "of", odd)
        lake.both(B, run("c"))
        lake.scored(C, run("a", "rejected"))
        result = lake.go()
        assert not result.problems
        assert lake.exported(Dataset.RAG) == {"b", "c"}
        assert not lake.go().changed


def test_sizes_beyond_the_store_in_all_stop_nothing(tmp_path: Path) -> None:
    """Two sparse files may have more bytes in all than the store can add up."""
    with history_lake(tmp_path) as lake:
        lake.both(A, run("a"))
        lake.both(B, run("b"))
        lake.go()
        store = lake.engine.store
        store.connection.execute(f"UPDATE files SET size_bytes = {1 << 62}, indexed_bytes = {1 << 62}")
        assert Work(store).bytes_waiting() == 0
        assert [each.size_bytes for each in Views(store).trees()] == [(1 << 63) - 1] * 2


@pytest.mark.parametrize("with_more", [False, True])
def test_evidence_whose_unterminated_end_is_torn_is_gone(tmp_path: Path, with_more: bool) -> None:
    """The end was a whole object, and counted as a line; of the same bytes before it, or more, no line is left there."""
    with history_lake(tmp_path) as lake:
        lake.scored(A, run("a"), run("b"))
        lake.evidence(A, given("a"), given("b"))
        path = lake.evidence_path(A)
        path.write_bytes(path.read_bytes().removesuffix(b"\n"))
        lake.go()
        assert lake.exported(Dataset.RAG) == {"a", "b"}
        path.write_bytes(path.read_bytes().removesuffix(b"}") + b" " + b" " * with_more)
        lake.go()
        assert lake.exported(Dataset.RAG) == {"a"}
        assert not verify(lake.root, lake.state, lake.options, deep=True).faults


def test_new_file_that_is_gone_before_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A producer's temporary name was seen and is gone: nothing is known of it, and the next look settles that."""
    real = scanning.scan
    with history_lake(tmp_path) as lake:
        lake.both(A, run("a"))
        lake.scored(B, run("b"))

        def scan(root: Path) -> scanning.Scan:
            found = real(root)
            lake.scored_path(B).unlink(missing_ok=True)
            return found

        monkeypatch.setattr(scanning, "scan", scan)
        assert lake.go().unfinished
        assert lake.exported(Dataset.RAG) == {"a"}
        assert not lake.go().unfinished
