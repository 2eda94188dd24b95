"""A batch that fails before its COMMIT is undone, whatever the reason, and nothing else starts meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import pytest

from distilld.core.model import EXPORT_PATHS, OperatorError, ProgramError, Trigger
from distilld.publish.commit import Committer
from distilld.publish.reading import ExportWriteError
from distilld.publish.receipt_files import ReceiptWriteError
from tests.fault.test_failing_calls import ENOSPC
from tests.support.calls import Call, calls
from tests.support.committed import committed_and_whole, outcome
from tests.support.histories import APPEND, NINE, History, Inputs, Lake, run

Prepare = Callable[[History], Lake]


@pytest.mark.parametrize("history", [APPEND, NINE], ids=History.__str__)
def test_a_batch_that_fails_a_check_is_undone(
    prepare: Prepare, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The accounting is checked inside the transaction: what does not add up is never committed, and never stands."""
    lake = prepare(history)
    before = outcome(lake.root)
    real = Committer._checks
    monkeypatch.setattr(Committer, "_checks", lambda *given: {**real(*given), "rag_rows_accounted": False})
    with lake.opened() as engine:
        batch = engine.receipts.last_batch()
        with pytest.raises(ProgramError, match="fails its checks: rag_rows_accounted"):
            engine.run_pass(Trigger.ONCE)
        assert engine.committer.recover()
        assert engine.receipts.last_batch() == batch
        assert outcome(lake.root) == before
        committed_and_whole(lake.root)
        monkeypatch.undo()
        assert engine.run_pass(Trigger.ONCE).changed
        committed_and_whole(lake.root)


@pytest.mark.parametrize("owed", ["a receipt that is not written", "receipts that are kept no longer"])
def test_the_exports_are_whole_whatever_is_wrong_with_the_reports(
    prepare: Prepare, owed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recovery undoes what was half written before it turns to receipts.

    The story: it turned to receipts first, and where ``reports`` could not be written to, rows that were never
    committed stood in the datasets until somebody mended that.
    """
    lake = prepare(APPEND)
    lake.start()
    before = {name: read(lake, name) for name in EXPORT_PATHS}
    inputs = Inputs(lake.root / "data")
    inputs.append(inputs.scored("2027/01/01/x.jsonl"), run("x", "x", "accepted"))
    reports, away = lake.root / "reports", lake.root / "reports-away"
    with lake.opened() as engine:
        with monkeypatch.context() as patch:
            patch.setattr(Committer, "_transact", refuse)
            with pytest.raises(OperatorError, match="no room"):
                engine.run_pass(Trigger.ONCE)
        assert {name: read(lake, name) for name in EXPORT_PATHS} != before
        if owed == "a receipt that is not written":
            engine.store.connection.execute("UPDATE receipts SET written = 0")
        else:
            engine.committer.receipts_keep = 1
        reports.rename(away)
        reports.write_text("in the place of the folder")
        with pytest.raises(ReceiptWriteError):
            engine.committer.recover()
        assert {name: read(lake, name) for name in EXPORT_PATHS} == before
        assert engine.export_records.intents() == []
        assert engine.committer.needs_recovery()
        reports.unlink()
        away.rename(reports)
        engine.run_pass(Trigger.ONCE)
    committed_and_whole(lake.root)


def read(lake: Lake, name: str) -> bytes | None:
    """The bytes of an export."""
    path = lake.root / EXPORT_PATHS[name]
    return path.read_bytes() if path.exists() else None


def refuse(*_: object) -> NoReturn:
    """What a full disk does."""
    raise OperatorError("no room")


@pytest.mark.parametrize("history", [APPEND, NINE], ids=History.__str__)
def test_a_pass_recovers_before_it_does_anything_else(prepare: Prepare, history: History) -> None:
    """A caller who goes on after a failure without recovering harms nobody.

    The story: the intents of the failed batch were still there, the next batch's could not be recorded beside them,
    and what was raised was an IntegrityError of SQLite's.
    """
    lake = prepare(history)
    failing = True

    def fail(call: Call) -> None:
        if failing and call.name == "os.fsync" and "exports" in call.place:
            raise ENOSPC()

    with calls(fail), lake.opened() as engine:
        for _ in range(2):
            with pytest.raises(ExportWriteError, match="No space left on device"):
                engine.run_pass(Trigger.ONCE)
        failing = False
        engine.run_pass(Trigger.ONCE)
    committed_and_whole(lake.root)
    found = outcome(lake.root)
    lake.reset()
    lake.start()
    assert found == outcome(lake.root)
