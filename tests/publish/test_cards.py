"""The dataset cards: when they are written, and when they are left alone."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from distilld.core.export_cards import export_cards
from distilld.core.model import CARD, CARD_MARKER
from distilld.core.remedies import BY_ERRNO
from distilld.files.durable import replace_file
from distilld.publish import cards
from distilld.publish.lasting import Lasting
from tests.support.command import bring, distilld, put
from tests.support.history_lake import A, B, HistoryLake, history_lake, run


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[HistoryLake]:
    """A lake that has not been run yet, with rows for all three datasets."""
    with history_lake(tmp_path) as lake:
        lake.both(A, run("a1", task_id="t"), run("a2", "rejected", task_id="t"))
        yield lake


def texts(root: Path) -> dict[str, str]:
    """The cards that stand below a root."""
    return {folder: (root / folder / CARD).read_text() for folder in export_cards() if (root / folder / CARD).exists()}


def test_card_comes_with_the_first_file_of_its_folder(lake: HistoryLake) -> None:
    """Each folder gets its card in the batch that makes its first file, and no folder is made for a card."""
    lake.go()
    told = dict(export_cards())
    del told["exports/withdrawals"]
    assert texts(lake.root) == told
    assert not (lake.root / "exports/withdrawals").exists()
    lake.both(A, run("a1", "rejected"))
    lake.go()
    assert texts(lake.root) == export_cards()


def test_card_is_written_again_at_a_start_and_not_otherwise(lake: HistoryLake) -> None:
    """A card that is missing, or tells types of another release, is right again after a start; a good one is not touched."""
    lake.go()
    rag, sft = lake.root / "exports/rag" / CARD, lake.root / "exports/sft" / CARD
    rag.unlink()
    sft.write_text(f"types of old\n{CARD_MARKER}\n")
    other = lake.root / "exports/preference" / CARD
    before = other.stat()
    lake.restart()
    lake.go()
    assert rag.read_text() == export_cards()["exports/rag"]
    assert sft.read_text() == export_cards()["exports/sft"]
    assert (other.stat().st_ino, other.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("kind", ["text", "folder", "link"])
def test_card_of_somebody_else_is_left_alone(lake: HistoryLake, kind: str) -> None:
    """A README.md without our marker line, or that is no file, stays as it is, and status names it."""
    path = lake.root / "exports/rag" / CARD
    path.parent.mkdir(parents=True)
    if kind == "text":
        path.write_text("# Ours\n")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/etc/hostname")
    lake.go()
    lake.both(B, run("b1"))
    lake.go()
    assert not path.is_file() or path.is_symlink() or path.read_text() == "# Ours\n"
    lake.stop()
    told = distilld("status", "--root", lake.root, cwd=lake.root)
    assert "exports/rag/README.md is not distilld's" in told.out
    assert "exports/sft/README.md" not in told.out


def test_card_that_cannot_be_written_stops_no_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system refuses, the batch is committed all the same, and the log says which card is missing."""
    put(tmp_path / "exports/rag/playbooks.jsonl")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cards, "replace_file", refuse)
    with capture_logs() as logs:
        cards.write_cards(tmp_path, Lasting())
    told = [(each["event"], each["path"], each["problem"]) for each in logs]
    assert ("card_not_written", "exports/rag/README.md", "No space left on device") in told


def test_card_that_cannot_be_written_is_told_once(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The story: on a full disk every try to recover told it of every card, so the log grew with the time."""
    lake.go()
    (lake.root / "exports/rag" / CARD).unlink()
    works, problems = replace_file, [errno.ENOSPC, errno.ENOSPC, errno.EIO, 0, errno.EIO, errno.EIO]
    with capture_logs() as logs, monkeypatch.context() as patched:
        for code in problems:

            def write(path: Path, content: bytes, code: int = code) -> None:
                if code:
                    raise OSError(code, os.strerror(code))
                works(path, content)

            patched.setattr(cards, "replace_file", write)
            lake.engine.committer.recover()
            (lake.root / "exports/rag" / CARD).unlink(missing_ok=True)
    told = [each["problem"] for each in logs if each["event"] == "card_not_written"]
    assert told == [os.strerror(code) for code in (errno.ENOSPC, errno.EIO, errno.EIO)]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_folder_that_cannot_be_looked_at_stops_no_card_of_another(
    lake: HistoryLake, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """The story: the system's error at a look below exports/ passed through, and ended the daemon."""
    lake.go()
    for card in (lake.root / "exports").glob(f"*/{CARD}"):
        card.unlink()
    look = os.stat

    def stat(path: Any, **rest: Any) -> os.stat_result:
        if "exports/sft/" in os.fspath(path):
            raise OSError(code, os.strerror(code), str(path))
        return look(path, **rest)

    with capture_logs() as lines, monkeypatch.context() as patched:
        patched.setattr(os, "stat", stat)
        cards.write_cards(lake.root, Lasting())
    assert set(texts(lake.root)) == set(export_cards()) - {"exports/sft", "exports/withdrawals"}
    (told,) = [line for line in lines if line["event"] == "card_not_written"]
    assert (told["path"], told["hint"]) == (f"exports/sft/{CARD}", BY_ERRNO[code])


def test_dry_run_writes_no_card(tmp_path: Path) -> None:
    """A dry run changes nothing below the root, cards included."""
    with history_lake(tmp_path) as lake:
        lake.both(A, run("a1"))
        lake.stop()
        bring(lake.root)
        (lake.root / "exports/rag" / CARD).unlink()
        assert distilld("run", "--once", "--dry-run", "--root", lake.root, cwd=lake.root).code == 0
        assert not (lake.root / "exports/rag" / CARD).exists()
