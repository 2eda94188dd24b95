"""Reading the exports of one committed batch, whatever a writer does meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from distilld.core.model import EXPORT_PATHS
from distilld.inspection.verify import verify
from distilld.publish import committed, exports
from distilld.publish.commit import Committer
from distilld.publish.committed import (
    ATTEMPTS,
    BatchMovedError,
    CommittedBatch,
    ExportDamagedError,
    RecoveryPendingError,
    at_one_batch,
    placed_lines,
)
from tests.support.history_lake import A, B, HistoryLake, history_lake, run


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HistoryLake]:
    """A lake with a batch."""
    monkeypatch.setattr(committed, "_PAUSE_SECONDS", 0)
    with history_lake(tmp_path) as lake:
        lake.both(A, run("a1"), run("a2"))
        lake.go()
        yield lake


def rag(lake: HistoryLake) -> bytes:
    """The RAG rows of one committed batch."""
    return at_one_batch(lake.root, lake.state, lambda batch: b"".join(batch.exports["rag"].lines()))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_white_space_around_rows_is_no_part_of_them(size: int) -> None:
    """A withdrawn row may leave spaces behind: rows are found whatever stands around them, each where its line begins."""
    content = b'{"a":1}\n   \n  {"a":2} \t\r\n{"a":3}\n          {"a":4}'
    blocks = [content[at : at + size] for at in range(0, len(content), size)]
    found = list(placed_lines(iter(blocks)))
    assert [row for _, row in found] == [b'{"a":%d}\n' % number for number in (1, 2, 3, 4)]
    assert all(content[start:].split(b"\n")[0].strip() == row[:-1] for start, row in found)


def test_what_stands_behind_the_committed_length_is_not_read(lake: HistoryLake) -> None:
    """A row in the making ends no reader."""
    content = lake.content("rag")
    with (lake.root / EXPORT_PATHS["rag"]).open("ab") as file:
        file.write(b'{"schema')
    assert rag(lake) == content


def test_reads_anew_where_a_batch_was_committed_meanwhile(lake: HistoryLake) -> None:
    """A reader that meets bytes of a later batch takes the later batch as a whole."""
    looks = 0

    def look(batch: CommittedBatch) -> tuple[str | None, bytes]:
        nonlocal looks
        looks += 1
        if looks == 1:
            lake.both(B, run("b1"))
            lake.go()
            raise BatchMovedError
        return batch.batch and batch.batch.batch_id, b"".join(batch.exports["rag"].lines())

    batch_id, found = at_one_batch(lake.root, lake.state, look)
    assert found == lake.content("rag")
    assert batch_id == lake.ask("SELECT max(batch_id) FROM batches")[0][0]


def test_row_that_is_overwritten_in_place_beside_a_reader_is_noticed(lake: HistoryLake) -> None:
    """A file whose bytes change under the reader gives an end that says so, never a row that is half of two."""
    path = lake.root / EXPORT_PATHS["rag"]
    looks = 0

    def look(batch: CommittedBatch) -> None:
        nonlocal looks
        looks += 1
        with path.open("r+b") as file:
            file.write(b" " * 20)
        list(batch.exports["rag"].lines())

    with pytest.raises(ExportDamagedError, match=r"playbooks\.jsonl is not what the last commit left"):
        at_one_batch(lake.root, lake.state, look)
    assert looks == 1


def test_writer_that_never_rests_ends_in_one_clear_error(lake: HistoryLake) -> None:
    """After a few tries the reader says that it is too busy here."""
    looks = 0

    def look(_: CommittedBatch) -> None:
        nonlocal looks
        looks += 1
        lake.both(B, *(run(f"b{number}") for number in range(looks)))
        lake.go()
        raise BatchMovedError

    with pytest.raises(BatchMovedError, match="whenever the exports were read"):
        at_one_batch(lake.root, lake.state, look)
    assert looks == ATTEMPTS


def test_version_that_waits_to_be_put_in_place_is_read(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that was killed behind its COMMIT is read from the files that wait, without a writer."""

    def die(_: Committer) -> None:
        raise KeyboardInterrupt

    before = rag(lake)
    lake.scored(A, run("a1", "rejected"), run("a2"))
    with monkeypatch.context() as patch:
        patch.setattr(Committer, "_install", die)
        with pytest.raises(KeyboardInterrupt):
            lake.go()
    assert lake.content("rag") == before
    found = rag(lake)
    assert found != before
    lake.restart()
    lake.go()
    assert lake.content("rag") == found


@pytest.fixture
def unfinished(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> HistoryLake:
    """A lake whose writer was killed behind a COMMIT, before it overwrote a row in place."""

    def die(committer: Committer) -> None:
        committer._pins.let_in()  # as the system does for a killed process
        raise KeyboardInterrupt

    lake.both(A, *(run(f"a{number}") for number in range(50)))
    lake.go()
    lake.scored(B, run("a1", "rejected"))
    with monkeypatch.context() as patch:
        patch.setattr(exports, "LEAST_BYTES", 0)
        patch.setattr(Committer, "finish", die)
        with pytest.raises(KeyboardInterrupt):
            lake.go()
    assert lake.ask("SELECT count(*) > 0 FROM overwrites WHERE name = 'rag'") == [(1,)]
    lake.stop()
    return lake


def test_unfinished_batch_is_named_with_what_completes_it(unfinished: HistoryLake) -> None:
    """The story: readers were told to try again when it is quieter, though no writer ran and only a run helps."""
    with pytest.raises(RecoveryPendingError, match="not completed") as raised:
        rag(unfinished)
    assert "run --once" in raised.value.hint
    with pytest.raises(RecoveryPendingError):
        verify(unfinished.root, unfinished.state, unfinished.options)
    unfinished.go()
    assert b'"a1"' not in rag(unfinished)


def test_reads_again_where_a_recovery_ended_meanwhile(unfinished: HistoryLake) -> None:
    """No batch was committed then, but the bytes are other ones: it is no damage, and nothing to give up for."""
    looks = 0

    def look(batch: CommittedBatch) -> bytes:
        nonlocal looks
        looks += 1
        try:
            return b"".join(batch.exports["rag"].lines())
        except BatchMovedError:
            unfinished.engine.committer.recover()
            raise

    assert b'"a1"' not in at_one_batch(unfinished.root, unfinished.state, look)
    assert looks == 2


@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda path: os.truncate(path, 9), lambda path: path.write_bytes(b"x" * 9)]
)
def test_damaged_export_is_named(lake: HistoryLake, damage: object) -> None:
    """Where no batch came, what does not match is damage, and the message says what to do."""
    assert callable(damage)
    damage(lake.root / EXPORT_PATHS["rag"])
    with pytest.raises(ExportDamagedError, match=r"exports/rag/playbooks\.jsonl is ") as raised:
        rag(lake)
    assert "run --once" in raised.value.hint
