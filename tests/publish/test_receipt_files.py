"""A batch's receipt: a link in a chain that shows what was lost or edited, and a page for people."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distilld.core.model import Dataset, Trigger
from distilld.files import durable
from distilld.files.git import GitState, git_state
from distilld.publish.receipt_files import (
    ReceiptWriteError,
    latest_page,
    receipt_bytes,
    receipt_path,
    remove_receipts,
    sha256_of,
    write_receipt,
)
from tests.support.histories import NINE, Inputs, Lake, run

BATCH = "20260427T035740.123Z"
REPORTS = "reports/distillation"


def facts(**changes: Any) -> dict[str, Any]:
    """What a batch tells of itself."""
    per = {"rows": 5, "quarantine_rows": 2, "appended": 3, "withdrawn": 1, "by_reason": {"empty_content": 2}}
    return {
        "batch_id": BATCH,
        "sequence": 7,
        "trigger": "once",
        "started_at": "2026-04-27T03:57:40.123Z",
        "ended_at": "2026-04-27T03:57:40.456Z",
        "duration_ms": 333,
        "inputs": [
            {"path": "data/scored-runs/2026/04/27/x.jsonl", "change": "appended", "lines": 3, "malformed_lines": 1}
        ],
        "record_counts": {"per_exporter": {dataset.value: per for dataset in Dataset}},
        "validation_pass": True,
        "warnings": [],
        "errors": [],
        "previous_receipt_sha256": None,
    } | changes


class TestWriting:
    """Files that people and programs read."""

    def test_a_receipt_and_the_page_are_written(self, tmp_path: Path) -> None:
        """The receipt byte for byte, the page about it, with modes that keep others out."""
        content = receipt_bytes(facts())
        write_receipt(tmp_path, BATCH, content)
        file = tmp_path / receipt_path(BATCH)
        assert file.read_bytes() == content
        assert BATCH in (tmp_path / REPORTS / "latest.md").read_text()
        for path in (file, tmp_path / REPORTS / "latest.md"):
            assert stat.S_IMODE(path.stat().st_mode) & 0o137 == 0
        for folder in (file.parent, file.parents[1], file.parents[2]):
            assert stat.S_IMODE(folder.stat().st_mode) & 0o027 == 0

    def test_writing_it_again_gives_the_same(self, tmp_path: Path) -> None:
        """Recovery writes what was not known to be written; nothing else is left beside it."""
        for _ in range(2):
            write_receipt(tmp_path, BATCH, receipt_bytes(facts()))
        assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["latest.md", "receipt.json"]

    def test_a_temporary_file_of_a_killed_process_is_in_nobody_s_way(self, tmp_path: Path) -> None:
        """Not even where it is a link: that is removed, not followed."""
        folder = tmp_path / REPORTS / BATCH
        folder.mkdir(parents=True)
        (tmp_path / "victim").write_text("precious")
        (folder / ".receipt.json.tmp").symlink_to(tmp_path / "victim")
        (tmp_path / REPORTS / ".latest.md.tmp").write_text("half a pa")
        write_receipt(tmp_path, BATCH, receipt_bytes(facts()))
        assert (tmp_path / "victim").read_text() == "precious"
        assert list(tmp_path.rglob(".*.tmp")) == []

    def test_each_folder_that_is_made_is_made_to_last(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The story: the folder of the first receipt was synced, those above it were not; a power cut took all of
        ``reports`` away after the store had noted the receipt as written."""
        synced: list[Path] = []
        monkeypatch.setattr(durable, "sync_folder", synced.append)
        write_receipt(tmp_path, BATCH, receipt_bytes(facts()))
        below = [tmp_path, *(tmp_path / part for part in ("reports", REPORTS, f"{REPORTS}/{BATCH}"))]
        assert set(synced) == set(below)

    @pytest.mark.parametrize("name", ["latest.md", ".latest.md.tmp"])
    def test_a_folder_in_the_place_of_the_page_stops_nothing(self, tmp_path: Path, name: str) -> None:
        """The receipt is written; the page is not, and why is returned. The folder stays, for it is not ours.

        The story: the page could not be written, so no later batch was done, nor any row withdrawn.
        """
        in_the_way = tmp_path / REPORTS / name
        in_the_way.mkdir(parents=True)
        (in_the_way / "note.txt").touch()
        assert write_receipt(tmp_path, BATCH, receipt_bytes(facts())) == "a folder stands in its place"
        assert (tmp_path / receipt_path(BATCH)).exists()
        assert (in_the_way / "note.txt").exists()

    @pytest.mark.parametrize("name", ["mkdir", "open", "write", "fsync", "rename"])
    def test_what_the_system_refuses_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        """Each call that fails names the file, with its number."""

        def refuse(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, name, refuse)
        with pytest.raises(ReceiptWriteError, match=r"cannot write reports/.*: No space left on device") as raised:
            write_receipt(tmp_path, BATCH, receipt_bytes(facts()))
        assert raised.value.errno == 28
        assert raised.value.hint

    def test_the_form_of_a_receipt(self) -> None:
        """Indented JSON that ends in a line feed and begins with its own version and the program's."""
        content = receipt_bytes(facts())
        assert content.endswith(b"}\n")
        assert list(json.loads(content))[:2] == ["schema_version", "distilld_version"]
        assert sha256_of(content) == hashlib.sha256(content).hexdigest()


class TestRemoving:
    """Receipts beyond those that are kept."""

    def test_a_receipt_goes_with_its_folder(self, tmp_path: Path) -> None:
        """And what was removed before is no fault."""
        write_receipt(tmp_path, BATCH, receipt_bytes(facts()))
        for _ in range(2):
            remove_receipts(tmp_path, [BATCH])
            assert [path.name for path in (tmp_path / REPORTS).iterdir()] == ["latest.md"]

    def test_nothing_there_is_nothing_to_do(self, tmp_path: Path) -> None:
        """Not even a folder."""
        remove_receipts(tmp_path, [BATCH])
        assert list(tmp_path.iterdir()) == []

    def test_a_file_of_somebody_else_s_stays(self, tmp_path: Path) -> None:
        """The story: a note that an operator put beside a receipt made its removal fail, and with it each batch."""
        write_receipt(tmp_path, BATCH, receipt_bytes(facts()))
        note = tmp_path / REPORTS / BATCH / "note.txt"
        note.write_text("looked odd")
        remove_receipts(tmp_path, [BATCH])
        assert list(note.parent.iterdir()) == [note]

    def test_what_took_its_place_stays(self, tmp_path: Path) -> None:
        """The story: an operator moved an old receipt to an archive and left a link. It was removed from the archive, the
        link could not be, and no later batch was done, nor any row withdrawn."""
        archive = tmp_path / "archive"
        archive.mkdir()
        (archive / "receipt.json").write_text("{}")
        reports = tmp_path / REPORTS
        reports.mkdir(parents=True)
        (reports / "1").symlink_to(archive)
        (reports / "2").write_text("of somebody else")
        (reports / "3" / "receipt.json").mkdir(parents=True)
        write_receipt(tmp_path, BATCH, receipt_bytes(facts()))
        before = sorted(tmp_path.rglob("*"))
        remove_receipts(tmp_path, ["1", "2", "3", BATCH])
        gone = {reports / BATCH, reports / BATCH / "receipt.json"}
        assert sorted(tmp_path.rglob("*")) == [path for path in before if path not in gone]

    def test_what_the_system_refuses_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A receipt that cannot be removed is an error for operators."""
        write_receipt(tmp_path, BATCH, receipt_bytes(facts()))

        def refuse(*_: object, **__: object) -> None:
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr(os, "unlink", refuse)
        with pytest.raises(ReceiptWriteError, match="Read-only"):
            remove_receipts(tmp_path, [BATCH])


class TestPage:
    """``latest.md``, which is shown by programs that take Markdown and HTML seriously."""

    def test_it_tells_what_came_and_what_stands(self) -> None:
        """Counts, reasons, inputs; a failed check stands out."""
        page = latest_page(facts())
        assert "| rag | 5 | 2 | 3 | 1 |" in page
        assert "| sft | empty_content | 2 |" in page
        assert "| data/scored-runs/2026/04/27/x.jsonl | appended | 3 | 1 |" in page
        assert "All its checks passed." in page
        assert "**A check failed.**" in latest_page(facts(validation_pass=False))

    def test_it_is_of_the_run(self) -> None:
        """The story: a run of two batches added 23,425 rows, and the page of its last batch said that it added none."""
        done = {"appended": 23, "withdrawn": 4, "by_cause": {"revoked": 3, "row_removed": 1}}
        run = {"run_id": "first", "batches": 2, "started_at": "2026-04-27T03:57:00.000Z", "withdrawn_runs": ["a|b"]}
        page = latest_page(facts(run={**run, "datasets": {dataset.value: done for dataset in Dataset}}))
        assert "Run `first` of 2 batches" in page
        assert "| rag | 5 | 2 | 23 | 4 |" in page
        assert "| rag | revoked | 3 |" in page
        assert r"Runs, the first few: a\|b" in page

    def test_warnings_and_errors_have_their_own_lists(self) -> None:
        """Only where there are some."""
        page = latest_page(facts(warnings=["first", "second"], errors=["third"]))
        assert "## Warnings\n\n- first\n- second\n" in page
        assert "## Errors\n\n- third\n" in page
        assert "## Warnings" not in latest_page(facts())

    def test_fifty_inputs_are_shown(self) -> None:
        """And how many there are besides."""
        one = facts()["inputs"][0]
        page = latest_page(facts(inputs=[one] * 53))
        assert page.count("| data/scored-runs/") == 50
        assert "... and 3 more; the receipt names all." in page
        assert "None." in latest_page(facts(inputs=[]))

    @pytest.mark.parametrize(
        ("path", "shown"),
        [
            ("a|b", r"a\|b"),
            ("a\\|b", r"a\\\|b"),
            ("a`b", r"a\`b"),
            ("<img src=x>", "&lt;img src=x>"),
            ("&lt;b>", "&amp;lt;b>"),
            ("[x](http://evil)", r"\[x\](http://evil)"),
            ("![x](http://evil)", r"!\[x\](http://evil)"),
            ("**bold**", r"\*\*bold\*\*"),
            ("a\nb\x1b[31m\x7f\u2028", r"a\\x0ab\\x1b\[31m\\x7f\\x2028"),
            ("écrit 😀", "écrit 😀"),
        ],
    )
    def test_no_name_breaks_out_of_its_cell(self, path: str, shown: str) -> None:
        """A path or a message ends no cell and no line, and becomes no link, picture or tag.

        The story: a backslash before a bar undid the escape of the bar, and a picture's address was fetched.
        """
        page = latest_page(facts(inputs=[{**facts()["inputs"][0], "path": path}], warnings=[path]))
        assert f"\n| {shown} | appended | 3 | 1 |\n" in page
        assert f"\n- {shown}\n" in page


class TestChain:
    """Each receipt names the one before it."""

    @pytest.fixture
    def lake(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
        """A lake after one batch, with more to come."""
        monkeypatch.setattr("distilld.engine.lake_context.git_state", lambda _: GitState())
        return Lake(NINE, tmp_path)

    def grow(self, lake: Lake, batches: int, receipts_keep: int = 0) -> None:
        """Some batches, one row each."""
        inputs = Inputs(lake.root / "data")
        for _ in range(batches):
            number = sum(1 for _ in (lake.root / REPORTS).iterdir())
            inputs.append(inputs.scored("2027/01/01/x.jsonl"), run(f"x{number}", f"x{number}", "accepted"))
            with lake.opened() as engine:
                engine.committer.receipts_keep = receipts_keep
                engine.run_pass(Trigger.WATCH)

    def on_disk(self, lake: Lake) -> list[bytes]:
        """The receipts, oldest first: ids sort by time."""
        folders = sorted(path for path in (lake.root / REPORTS).iterdir() if path.is_dir())
        return [(folder / "receipt.json").read_bytes() for folder in folders]

    def test_it_begins_with_nothing_and_goes_on(self, lake: Lake) -> None:
        """The first receipt names none; each other one names the sha256 of the file before."""
        self.grow(lake, 4)
        found = self.on_disk(lake)
        assert len(found) == 5
        named = [json.loads(content)["previous_receipt_sha256"] for content in found]
        assert named == [None, *map(sha256_of, found[:-1])]
        assert [json.loads(content)["sequence"] for content in found] == [1, 2, 3, 4, 5]

    def test_the_store_says_the_same_of_the_work(self, lake: Lake) -> None:
        """A batch's line in the store has its receipt's figures; it once left out what was read to index the lines."""
        self.grow(lake, 2)
        work = [json.loads(content)["work"] for content in self.on_disk(lake)]
        with lake.opened() as engine:
            kept = list(engine.store.connection.execute("SELECT rows_judged, bytes_read FROM batches ORDER BY batch"))
        assert kept == [(each["rows_judged"], each["bytes_read"]) for each in work]
        assert all(each["bytes_read"] for each in work)

    def test_only_the_newest_stay_and_the_chain_has_an_anchor(self, lake: Lake) -> None:
        """The last one removed leaves its id and its sha256 in the store."""
        self.grow(lake, 5)
        last_removed = self.on_disk(lake)[3]
        self.grow(lake, 1, receipts_keep=3)
        found = self.on_disk(lake)
        assert len(found) == 3
        with lake.opened() as engine:
            anchor = engine.store.recall("receipt_anchor_sha256")
            assert engine.store.recall("receipt_anchor_id") == json.loads(last_removed)["batch_id"]
            assert len(engine.receipts.sha256s()) == 3
            # The batches themselves are not forgotten.
            assert engine.store.connection.execute("SELECT count(*) FROM batches").fetchone() == (7,)
        assert json.loads(found[0])["previous_receipt_sha256"] == anchor == sha256_of(last_removed)

    def test_an_edited_receipt_shows(self, lake: Lake) -> None:
        """The next one names another digest."""
        self.grow(lake, 1)
        first, second = self.on_disk(lake)
        edited = first.replace(b'"validation_pass": true', b'"validation_pass": false')
        assert sha256_of(edited) != json.loads(second)["previous_receipt_sha256"] == sha256_of(first)

    def test_a_run_that_finds_nothing_writes_none(self, lake: Lake) -> None:
        """Up to date is not an event."""
        self.grow(lake, 1)
        before = {path: path.stat().st_mtime_ns for path in lake.root.rglob("*") if path.suffix in (".json", ".md")}
        with lake.opened() as engine:
            assert not engine.run_pass(Trigger.ONCE).changed
        after = {path: path.stat().st_mtime_ns for path in lake.root.rglob("*") if path.suffix in (".json", ".md")}
        assert after == before

    def test_ids_sort_by_time_even_if_the_clock_steps_back(self, lake: Lake) -> None:
        """A batch is a millisecond later than the last one at least."""
        times: list[Callable[[], int]] = [lambda: 2_000_000_000_000_000_000, lambda: 1_000_000_000_000_000_000]
        inputs = Inputs(lake.root / "data")
        ids = []
        for clock in times:
            with lake.opened() as engine:
                engine.committer._clock = clock
                inputs.append(inputs.scored("2027/01/01/x.jsonl"), run("x", "x", "accepted"))
                ids += [batch.identity.batch_id for batch in engine.run_pass(Trigger.ONCE).batches]
        assert ids == ["20330518T033320.000Z", "20330518T033320.001Z"]


class TestGit:
    """The state of the checkout that the root is."""

    def git(self, folder: Path, *words: str) -> str:
        """Run git without anybody's configuration."""
        hidden = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null", "HOME": str(folder)}
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=trunk"]
        done = subprocess.run(
            ["git", "-C", str(folder), *who, *words],
            env={**os.environ, **hidden}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.strip()

    def test_a_root_that_is_no_checkout_has_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """All three are null; the same where there is no git."""
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
        assert git_state(tmp_path) == GitState(None, None, None)
        monkeypatch.setenv("PATH", "")
        assert git_state(tmp_path) == GitState(None, None, None)

    def test_a_checkout_tells_commit_branch_and_changes(self, tmp_path: Path) -> None:
        """Files that git does not track do not make it dirty."""
        (tmp_path / "kept").write_text("")
        self.git(tmp_path, "init", "-q")
        self.git(tmp_path, "add", "kept")
        self.git(tmp_path, "commit", "-q", "-m", "first")
        sha = self.git(tmp_path, "rev-parse", "HEAD")
        (tmp_path / "untracked").write_text("")
        assert git_state(tmp_path) == GitState(sha, "trunk", dirty=False)
        (tmp_path / "kept").write_text("changed")
        assert git_state(tmp_path) == GitState(sha, "trunk", dirty=True)
