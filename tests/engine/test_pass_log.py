"""What a batch tells of its inputs in the log: what is out of the ordinary, once, by path and count, and no text of a row."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from structlog.testing import capture_logs

from distilld import logs
from distilld.config.load import load
from distilld.core.model import OperatorError
from distilld.engine import pass_log
from distilld.inspection.status import look
from distilld.publish import receipt_files as receipt
from distilld.publish.exports import Exports
from distilld.publish.receipt_files import ReceiptWriteError
from distilld.store import connection as stores
from distilld.store import migrations
from distilld.store.connection import Store
from distilld.store.open_writer import opened_store
from tests.support.builders import jsonl
from tests.support.history_lake import A, B, HistoryLake, given, history_lake, run


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[HistoryLake]:
    """A lake of two partitions that has seen one pass."""
    with history_lake(tmp_path) as made:
        made.both(A, run("a"))
        made.both(B, run("b"))
        made.go()
        yield made


def told(lake: HistoryLake, *names: str) -> list[dict[str, Any]]:
    """The lines of these events that a pass logs, without the batch's id, which all of them must have."""
    with capture_logs() as lines:
        lake.go()
    found = [dict(line) for line in lines if line["event"] in names]
    assert all(line["event"] in logs.EVENTS for line in lines)
    return found


def scored_path(partition: str) -> str:
    """A scored file as the log names it."""
    return f"data/scored-runs/{partition}"


def test_partition_that_goes_and_comes_back(lake: HistoryLake) -> None:
    """Files that are gone are a warning that says whether their rows stay; that they are back is told too."""
    names = ("partition_absent", "partition_returned")
    path = lake.scored_path(A)
    lake.move_away(path)
    (line,) = told(lake, *names)
    assert line == {
        "event": "partition_absent", "log_level": "warning", "files": 1, "paths": [scored_path(A)], "rows_kept": True,
    }  # fmt: skip
    assert told(lake, *names) == []
    lake.bring_back(path)
    (line,) = told(lake, *names)
    assert (line["event"], line["log_level"], line["paths"]) == ("partition_returned", "info", [scored_path(A)])


def test_partition_that_is_rewritten(lake: HistoryLake) -> None:
    """A file that is other than before is named; one that only grew is not."""
    lake.scored_path(A).unlink()
    lake.scored(A, run("a", "rejected"))
    with lake.scored_path(B).open("ab") as file:
        file.write(jsonl([run("c")]))
    (line,) = told(lake, "partition_rewritten")
    assert (line["files"], line["paths"]) == (1, [scored_path(A)])


def test_malformed_evidence(lake: HistoryLake) -> None:
    """Evidence lines that hold no run are counted when they come, and the first is named; nothing of their text is."""
    lake.evidence(A, given("c"), b"secret, no JSON", b"[]")
    (line,) = told(lake, "malformed_evidence")
    assert (line["log_level"], line["lines"]) == ("warning", 2)
    assert (line["path"], line["first_line"]) == (f"data/evidence/{A}", 1)
    assert "secret" not in str(line)
    lake.evidence(A, given("d"))
    assert told(lake, "malformed_evidence") == []


def test_tail_that_waits_is_told_once(lake: HistoryLake) -> None:
    """A last line that is not finished is named when it is first met, not at each batch that finds it there."""
    with lake.scored_path(A).open("ab") as file:
        file.write(b'{"torn":')
    lake.both(B, run("c"))
    (line,) = told(lake, "pending_tail")
    assert (line["log_level"], line["path"], line["bytes"]) == ("info", scored_path(A), 8)
    lake.both(B, run("d"))
    assert told(lake, "pending_tail") == []


def test_batch_tells_its_beginning_and_its_receipt(lake: HistoryLake) -> None:
    """At the level debug, a batch tells when its writing begins, and where its receipt stands."""
    lake.both(A, run("c"))
    begun, written = told(lake, "batch_started", "receipt_written")
    assert (begun["event"], begun["sequence"]) == ("batch_started", 2)
    assert (lake.root / written["path"]).exists()
    assert begun["log_level"] == written["log_level"] == "debug"


def test_receipt_that_a_crash_left_unwritten(lake: HistoryLake) -> None:
    """Recovery names the receipt that it writes in the place of the process that was cut off."""
    lake.engine.store.connection.execute("UPDATE receipts SET written = 0")
    with capture_logs() as lines:
        lake.restart()
        assert lake.engine.receipts.unwritten_receipts() == []
    (line,) = [line for line in lines if line["event"] == "receipt_repaired"]
    assert (lake.root / line["path"]).exists()


def failing(lake: HistoryLake) -> list[dict[str, Any]]:
    """What a pass that fails, and the recovery after it, tell of batches and receipts."""
    with capture_logs() as lines:
        with pytest.raises(OperatorError):
            lake.go()
        lake.engine.committer.recover()
    return [dict(line) for line in lines if line["event"].startswith(("batch_", "receipt_"))]


def refuse(*_: object, **__: object) -> NoReturn:
    """A full disk."""
    raise ReceiptWriteError("a file", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


def test_batch_whose_receipt_cannot_be_written(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that is committed is told as one, whatever follows; recovery tells that it wrote the receipt.

    The story: reports/ was full, and the log said that the batch was undone, which stood in datasets and store.
    """
    lake.both(A, run("c"))
    written = receipt.write_receipt

    def refuse_once(*_: object, **__: object) -> None:
        monkeypatch.setattr(receipt, "write_receipt", written)
        refuse()

    monkeypatch.setattr(receipt, "write_receipt", refuse_once)
    begun, told, repaired = failing(lake)
    assert [begun["event"], told["event"], repaired["event"]] == [
        "batch_started",
        "batch_committed",
        "receipt_repaired",
    ]
    assert begun["sequence"] == told["sequence"] == 2
    assert repaired["batch_id"] == lake.engine.receipts.last_batch().batch_id  # type: ignore[union-attr]
    assert lake.exported("rag") == {"b", "c"}


def test_page_that_cannot_be_written_is_told_once(lake: HistoryLake) -> None:
    """The story: every batch told of the folder in place of the page, as long as it stood there."""
    page = lake.root / receipt.LATEST
    found = []
    for number, in_the_way in enumerate((True, True, False, True)):
        if page.is_file():
            page.unlink()
        if in_the_way:
            page.mkdir(exist_ok=True)
        elif page.is_dir():
            page.rmdir()
        lake.both(A, run(f"c{number}"))
        found.append(len(told(lake, "page_not_written")))
    assert found == [1, 0, 0, 1]


def test_batch_that_is_undone(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that fails before its commit is told as undone, and as nothing else."""
    lake.both(A, run("c"))
    with monkeypatch.context() as patch:
        patch.setattr(Exports, "rewrite", refuse)
        lines = failing(lake)
    assert [line["event"] for line in lines] == ["batch_started", "batch_undone"]
    assert lake.exported("rag") == {"a", "b"}


def test_store_of_an_older_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is brought to this version's form says so, once; a new one does not."""

    def m999_later(_: object) -> None:
        """Changes nothing."""

    path = tmp_path / "distilld.db"
    with capture_logs() as lines:
        with opened_store(path, tmp_path):
            pass
        assert lines == []
        monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, m999_later))
        monkeypatch.setattr(stores, "_OURS", {each.__name__ for each in migrations.MIGRATIONS})
        with opened_store(path, tmp_path):
            pass
        Store.open(path, tmp_path).close()
    assert [(line["event"], line["path"]) for line in lines] == [("store_migrated", str(path))]


def test_log_of_a_pass_is_bounded_whatever_a_producer_does(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty thousand FIFOs once filled the log with a line each; now the first few are named, and all are counted."""
    monkeypatch.setattr(pass_log, "LINES_A_PASS", 3)
    for number in range(9):
        os.mkfifo(lake.scored_path(A).with_name(f"fifo-{number}.jsonl"))
    for number in range(5):
        lake.evidence(f"2026/05/01/{number}.jsonl", b"no JSON")
    lines = told(lake, "file_unreadable", "malformed_evidence", "lines_left_out")
    assert [line.get("of", line["event"]) for line in lines] == [
        *["malformed_evidence"] * 3, *["file_unreadable"] * 3, "malformed_evidence", "file_unreadable",
    ]  # fmt: skip
    assert [line["lines"] for line in lines if "of" in line] == [2, 6]
    assert told(lake, "file_unreadable", "lines_left_out") == []


def test_what_is_no_partition_is_told_once_and_counted_by_status(lake: HistoryLake) -> None:
    """One line for each kind, and none at the next pass, however many there are by then."""
    lake.both(A, run("a"))
    for name in ("b.ndjson", "c.ndjson"):
        lake.scored_path(A).with_name(name).write_bytes(b"{}")
    (line,) = told(lake, "not_a_partition")
    assert (line["log_level"], line["kind"], line["entries"]) == ("warning", ".ndjson", 2)
    assert line["example"] == scored_path(A).replace("alpha.jsonl", "b.ndjson")
    lake.scored_path(A).with_name("a.ndjson").write_bytes(b"{}")
    assert told(lake, "not_a_partition") == []
    settings = load(flags={"root": lake.root}, environ={}, config_file=None, cwd=lake.root)
    lake.stop()
    assert [(each.kind, each.entries) for each in look(settings).strays] == [(".ndjson", 3)]
