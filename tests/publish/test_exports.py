"""The only writer of exports: appends where the file ends, rewrites beside it, refuses what somebody else changed."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distilld.core.model import EXPORT_PATHS, Committed
from distilld.files import segments
from distilld.lake.lines import digest_of
from distilld.publish import live_files
from distilld.publish.exports import RENAME_ORDER, Exports
from distilld.publish.new_file import Written
from distilld.publish.reading import ROW_ID, ExportReadError, ExportTamperedError, ExportWriteError, lines_of
from tests.support.copied import Copied, long_line

EMPTY = Committed(0, 0, hashlib.sha256().hexdigest())
NAME = "rag"
TEMP = ".playbooks.jsonl.tmp"


def row(number: int) -> bytes:
    """A line of a dataset."""
    return b'{"schema_version":1,"id":"rag-%016x","title":"row %d"}\n' % (number, number)


def rows(*numbers: int) -> bytes:
    """Some lines."""
    return b"".join(map(row, numbers))


def committed(written: Written) -> Committed:
    """What a batch would record of a write."""
    return Committed(written.size, 0, written.sha256)


def digests(*lines: bytes) -> Counter[bytes]:
    """The digests of lines that leave; of none, if nothing does."""
    return Counter(map(digest_of, lines))


def first(exports: Exports, *blocks: bytes) -> Committed:
    """Make the first version of an export."""
    made = committed(exports.rewrite(NAME, EMPTY, TEMP, digests(), blocks))
    assert exports.install(NAME, TEMP, made) is not None
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the export stands."""
    return tmp_path / EXPORT_PATHS[NAME]


@pytest.fixture
def exports(tmp_path: Path) -> Exports:
    """The writer of an empty root."""
    return Exports(tmp_path)


@pytest.fixture
def known(exports: Exports) -> Committed:
    """An export of three rows."""
    return first(exports, rows(1, 2, 3))


class TestAppend:
    """Behind the committed length, and nowhere else."""

    def test_the_first_rows_make_the_file(self, exports: Exports, path: Path) -> None:
        """Size, digest and facts are those of the file, and its folders stand."""
        written = exports.rewrite(NAME, EMPTY, TEMP, digests(), [row(1), row(2)])
        assert not path.exists()
        assert exports.install(NAME, TEMP, committed(written)) is not None
        assert path.read_bytes() == rows(1, 2)
        assert written.size == len(rows(1, 2))
        assert written.sha256 == hashlib.sha256(rows(1, 2)).hexdigest()
        assert (written.facts.inode, written.facts.size) == (path.stat().st_ino, written.size)

    def test_rows_follow_each_other(self, exports: Exports, known: Committed, path: Path) -> None:
        """The digest goes on from the running one, in the same process and in another."""
        now = committed(exports.append(NAME, known, [row(4)]))
        then = committed(Exports(exports._root).append(NAME, now, [row(5)]))
        assert path.read_bytes() == rows(1, 2, 3, 4, 5)
        assert then.sha256 == hashlib.sha256(rows(1, 2, 3, 4, 5)).hexdigest()

    @pytest.mark.parametrize("umask", [0o022, 0o077])
    def test_new_files_are_0640_under_the_umask(self, exports: Exports, path: Path, umask: int) -> None:
        """Nobody else may write, and others not even read."""
        before = os.umask(umask)
        try:
            first(exports, row(1))
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640 & ~umask
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750 & ~umask

    @pytest.mark.parametrize("fresh", [True, False], ids=["first touch", "touched before"])
    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            (rows(1, 2, 3, 4), "bytes and should have"),
            (rows(1, 2), "bytes and should have"),
            (b"", "bytes and should have"),
            (rows(1, 2, 4), "has other bytes than its last commit"),
        ],
        ids=["longer", "shorter", "empty", "edited"],
    )
    def test_a_file_that_is_not_as_committed_is_refused(
        self, exports: Exports, known: Committed, path: Path, fresh: bool, content: bytes, problem: str
    ) -> None:
        """Another length or other bytes: nothing is written."""
        path.write_bytes(content)
        writer = Exports(exports._root) if fresh else exports
        with pytest.raises(ExportTamperedError, match=problem) as raised:
            writer.append(NAME, known, [row(9)])
        assert raised.value.path == EXPORT_PATHS[NAME]
        assert path.read_bytes() == content

    def test_what_is_held_in_memory_does_not_hide_a_batch_that_was_undone(
        self, exports: Exports, known: Committed, path: Path
    ) -> None:
        """The story: the bytes of a batch whose transaction failed stood in the file, and the facts held in memory
        were theirs, so the next append took the file for whole and wrote over them from the older length."""
        exports.append(NAME, known, [row(4)])
        with pytest.raises(ExportTamperedError, match="bytes and should have"):
            exports.append(NAME, known, [row(5)])
        assert path.read_bytes() == rows(1, 2, 3, 4)

    @pytest.mark.parametrize("method", ["append", "rewrite"])
    @pytest.mark.parametrize(
        ("what", "problem"),
        [
            ("gone", "is gone"),
            ("link", "is a link"),
            ("folder", "is a folder"),
            ("fifo", "is no regular file"),
            ("socket", "is no regular file"),
        ],
    )
    def test_only_a_regular_file_is_written_to(
        self, exports: Exports, known: Committed, path: Path, method: str, what: str, problem: str
    ) -> None:
        """A link is not followed, a FIFO not waited for, a missing file not made anew.

        The story: a rewrite called a link a failed write, which was retried for ever instead of being set aside. So did
        any look at a socket, which cannot be opened.
        """
        elsewhere = path.with_name("elsewhere")
        path.rename(elsewhere)
        match what:
            case "link":
                path.symlink_to(elsewhere)
            case "folder":
                path.mkdir()
            case "fifo":
                os.mkfifo(path)
            case "socket":
                os.mknod(path, stat.S_IFSOCK | 0o600)
        write: Callable[[], object] = {
            "append": lambda: exports.append(NAME, known, [row(4)]),
            "rewrite": lambda: exports.rewrite(NAME, known, TEMP, digests(), [row(4)]),
        }[method]
        with pytest.raises(ExportTamperedError, match=problem):
            write()
        assert elsewhere.read_bytes() == rows(1, 2, 3)
        assert not path.with_name(TEMP).exists()

    def test_somebody_who_writes_at_the_same_time_is_noticed(
        self, exports: Exports, known: Committed, path: Path
    ) -> None:
        """The file must have the length that was written."""

        def blocks() -> Any:
            yield row(4)
            with path.open("ab") as file:
                file.write(rows(5, 6, 7))

        with pytest.raises(ExportTamperedError, match="while it was written"):
            exports.append(NAME, known, blocks())

    def test_an_empty_file_may_be_gone(self, exports: Exports, known: Committed, path: Path) -> None:
        """Nothing is lost with it."""
        emptied = exports.rewrite(NAME, known, TEMP, digests(row(1), row(2), row(3)), [])
        exports.install(NAME, TEMP, committed(emptied))
        assert path.read_bytes() == b""
        path.unlink()
        assert exports.check(NAME, committed(emptied)) is None
        first(exports, row(1))
        assert path.read_bytes() == row(1)


class TestRewrite:
    """Beside the live file, which stays as it is until the new one is put in its place."""

    def test_lines_leave_and_come(self, exports: Exports, known: Committed, path: Path) -> None:
        """The kept lines in their order, then the new ones; how many were dropped is counted."""
        written = exports.rewrite(NAME, known, TEMP, digests(row(2)), [row(4)])
        assert path.read_bytes() == rows(1, 2, 3)
        assert path.with_name(TEMP).read_bytes() == rows(1, 3, 4)
        assert (written.size, written.dropped) == (len(rows(1, 3, 4)), 1)
        assert written.sha256 == hashlib.sha256(rows(1, 3, 4)).hexdigest()
        facts = exports.install(NAME, TEMP, committed(written))
        assert facts is not None
        assert path.read_bytes() == rows(1, 3, 4)
        assert not path.with_name(TEMP).exists()
        exports.append(NAME, committed(written), [row(5)])
        assert path.read_bytes() == rows(1, 3, 4, 5)

    @pytest.mark.parametrize("block_bytes", [1, 7, 53, 54, 55, 1 << 17])
    def test_lines_cross_the_borders_of_reads(
        self, exports: Exports, known: Committed, path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
    ) -> None:
        """Whatever the size of a read."""
        monkeypatch.setattr(segments, "BLOCK_BYTES", block_bytes)
        written = exports.rewrite(NAME, known, TEMP, digests(row(3), row(1)), [])
        assert path.with_name(TEMP).read_bytes() == row(2)
        assert written.dropped == 2

    def test_mode_owner_and_group_are_kept(self, exports: Exports, known: Committed, path: Path) -> None:
        """A file that an operator opened to a group stays open to it (SPEC 3.10)."""
        path.chmod(0o664)
        if os.geteuid() == 0:
            os.chown(path, 1234, 2345)
        before = path.stat()
        written = exports.rewrite(NAME, known, TEMP, digests(), [row(4)])
        exports.install(NAME, TEMP, committed(written))
        after = path.stat()
        assert after.st_ino != before.st_ino
        assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)

    @pytest.mark.parametrize("number", [errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS])
    @pytest.mark.parametrize("refused", ["fchown", "fchmod"])
    def test_what_may_not_be_kept_stops_nothing(
        self, exports: Exports, known: Committed, path: Path, monkeypatch: pytest.MonkeyPatch, refused: str, number: int
    ) -> None:
        """Where the system permits no change of owner, the mode is kept all the same.

        The story: one refused call skipped all others, and a failing one left its descriptor open. Later, an owner
        that has no number in the user namespace of a container, which is EINVAL, let no rewrite succeed.
        """
        path.chmod(0o600)
        if os.geteuid() == 0:
            os.chown(path, 1234, 2345)

        def refuse(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, refused, refuse)
        written = exports.rewrite(NAME, known, TEMP, digests(), [row(4)])
        mode = stat.S_IMODE(path.with_name(TEMP).stat().st_mode)
        assert mode == (0o600 if refused == "fchown" else 0o640 & ~_umask())
        assert written.dropped == 0

    def test_an_owner_that_is_right_is_not_changed(
        self, exports: Exports, known: Committed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The call is not made, so that no system need allow it."""
        monkeypatch.setattr(os, "fchown", None)
        exports.rewrite(NAME, known, TEMP, digests(), [row(4)])

    def test_a_disk_that_fails_is_told(
        self, exports: Exports, known: Committed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is no missing permission."""

        def fail(*_: object) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "fchmod", fail)
        with pytest.raises(ExportWriteError, match="Input/output"):
            exports.rewrite(NAME, known, TEMP, digests(), [row(4)])

    @pytest.mark.parametrize("what", ["file", "link"])
    def test_the_temporary_file_is_always_a_new_one(
        self, exports: Exports, known: Committed, path: Path, what: str
    ) -> None:
        """A file or a link that stands in its place is neither followed nor written to: O_EXCL and O_NOFOLLOW."""
        victim = path.with_name("victim")
        victim.write_bytes(b"precious")
        if what == "link":
            path.with_name(TEMP).symlink_to(victim)
        else:
            path.with_name(TEMP).write_bytes(b"precious")
        with pytest.raises(ExportWriteError, match="File exists"):
            exports.rewrite(NAME, known, TEMP, digests(), [row(4)])
        assert victim.read_bytes() == path.with_name(TEMP).read_bytes() == b"precious"

    @pytest.mark.parametrize("content", [rows(1, 2, 4), rows(1, 2), rows(1, 2, 3)[:-1] + b" "])
    def test_a_file_that_was_edited_is_refused(
        self, exports: Exports, known: Committed, path: Path, content: bytes
    ) -> None:
        """What is streamed is what was committed, or the batch is undone."""
        path.write_bytes(content)
        with pytest.raises(ExportTamperedError):
            exports.rewrite(NAME, known, TEMP, digests(), [row(4)])
        assert path.read_bytes() == content

    def test_an_id_that_ends_nowhere_is_an_edit(self, exports: Exports, known: Committed, path: Path) -> None:
        """The story: the line was taken apart before the digest was compared, and the run ended with a ValueError."""
        path.write_bytes(rows(1, 2, 3)[:40].ljust(known.size - 1, b"x") + b"\n")
        with pytest.raises(ExportTamperedError, match="other bytes"):
            exports.rewrite(NAME, known, TEMP, digests(row(1)), [])


class TestInstall:
    """The last step, which may be done twice."""

    @pytest.fixture
    def finished(self, exports: Exports, known: Committed) -> Written:
        """A new version that waits."""
        return exports.rewrite(NAME, known, TEMP, digests(), [row(4)])

    def test_twice_is_as_good_as_once(self, exports: Exports, finished: Written, path: Path) -> None:
        """A kill may have come behind the rename."""
        for _ in range(2):
            facts = exports.install(NAME, TEMP, committed(finished))
            assert facts is not None
            assert facts.inode == finished.facts.inode
        assert path.read_bytes() == rows(1, 2, 3, 4)

    def test_the_folder_is_synced_even_where_the_rename_was_done_before(
        self, exports: Exports, finished: Written, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The story: a process was killed between the rename and the fsync of the folder, recovery saw the new file in
        place, cleared the mark and synced nothing; a power cut then brought the old file back, unnoticed."""
        exports.install(NAME, TEMP, committed(finished))
        synced: list[Path] = []
        monkeypatch.setattr(live_files, "sync_folder", synced.append)
        exports.install(NAME, TEMP, committed(finished))
        assert synced == [exports._root / "exports/rag"]

    def test_a_copy_of_the_root_is_finished_too(self, exports: Exports, finished: Written, path: Path) -> None:
        """The story: a box died between COMMIT and rename, its disk was copied, the inodes of the copy were others, and
        recovery ended each start with 'was replaced'. The bytes tell."""
        waiting = path.with_name(TEMP)
        shutil.copy(waiting, path.with_name("copy"))
        path.with_name("copy").rename(waiting)
        for _ in range(2):
            assert Exports(exports._root).install(NAME, TEMP, committed(finished)) is not None
            assert path.read_bytes() == rows(1, 2, 3, 4)

    @pytest.mark.parametrize("where", ["waiting", "in place"])
    def test_an_edit_in_place_is_noticed_by_another_process(
        self, exports: Exports, finished: Written, path: Path, where: str
    ) -> None:
        """The story: after a kill a version was known by its inode and its length. One that was edited meanwhile, and
        kept both, was recorded as whole, and the next run said 'up to date'."""
        if where == "in place":
            exports.install(NAME, TEMP, committed(finished))
        with (path if where == "in place" else path.with_name(TEMP)).open("r+b") as file:
            file.write(rows(9))
        assert Exports(exports._root).install(NAME, TEMP, committed(finished)) is None

    def test_what_this_process_wrote_is_not_read_again(
        self, exports: Exports, finished: Written, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its digest is held since."""
        monkeypatch.setattr(os, "pread", None)
        assert exports.install(NAME, TEMP, committed(finished)) is not None

    @pytest.mark.parametrize(
        ("content", "is_first", "problem"),
        [
            (None, True, None),
            (b"", True, None),
            (b"theirs", True, "appeared"),
            (b"theirs", False, None),
            ("link", False, "is a link"),
            ("folder", True, "is a folder"),
        ],
    )
    def test_what_must_not_be_replaced_unseen(
        self, exports: Exports, path: Path, content: bytes | str | None, is_first: bool, problem: str | None
    ) -> None:
        """What is no file, and a file where none stood; only as long as there is something to put there."""
        written = exports.rewrite(NAME, EMPTY, TEMP, digests(), [row(1)])
        if content == "link":
            path.symlink_to("nowhere")
        elif content == "folder":
            path.mkdir()
        elif isinstance(content, bytes):
            path.write_bytes(content)
        found = exports.in_the_way(NAME, TEMP, is_first=is_first)
        assert problem in str(found) if problem else found is None
        if problem is None:
            exports.install(NAME, TEMP, committed(written))
        else:
            path.with_name(TEMP).unlink()
        assert exports.in_the_way(NAME, TEMP, is_first=is_first) is None

    @pytest.mark.parametrize("live", [None, rows(1, 2, 3), rows(1, 2, 3, 5)])
    def test_a_version_that_is_lost_is_told(
        self, exports: Exports, finished: Written, path: Path, live: bytes | None
    ) -> None:
        """Where somebody removed the waiting file, the live one is not the committed one, and None says so."""
        # Held open, so that the live file does not get its inode.
        with path.with_name(TEMP).open("rb"):
            path.with_name(TEMP).unlink()
            path.unlink()
            if live is not None:
                path.write_bytes(live)
            assert exports.install(NAME, TEMP, committed(finished)) is None

    def test_a_waiting_file_that_was_edited_is_not_installed(
        self, exports: Exports, finished: Written, path: Path
    ) -> None:
        """Both files stay as they are, for others to judge."""
        path.with_name(TEMP).unlink()
        path.with_name(TEMP).write_bytes(rows(1, 2, 3, 5))
        assert exports.install(NAME, TEMP, committed(finished)) is None
        assert path.read_bytes() == rows(1, 2, 3)
        assert path.with_name(TEMP).read_bytes() == rows(1, 2, 3, 5)

    def test_rows_that_leave_are_gone_before_anything_else(self) -> None:
        """SFT first, then the other datasets, then the rest; each of the nine once."""
        assert RENAME_ORDER[:3] == ("sft", "preference", "rag")
        assert sorted(RENAME_ORDER) == sorted(EXPORT_PATHS)


class TestUndo:
    """Back to the last commit, twice if need be."""

    def test_an_append_is_cut_back(self, exports: Exports, known: Committed, path: Path) -> None:
        """Whole rows and torn ones."""
        exports.append(NAME, known, [row(4), row(5)[:7]])
        for _ in range(2):
            exports.cut_back(NAME, known)
            assert path.read_bytes() == rows(1, 2, 3)
        assert exports.check(NAME, known) is not None

    def test_what_was_proven_for_the_cut_is_not_read_again(
        self, exports: Exports, known: Committed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The look that follows, and the next append, go on from its digest."""
        exports.append(NAME, known, [row(4)])
        fresh = Exports(exports._root)
        fresh.cut_back(NAME, known)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pread", None)
            assert fresh.check(NAME, known) is not None
            written = fresh.append(NAME, known, [row(5)])
        assert written.sha256 == hashlib.sha256(rows(1, 2, 3, 5)).hexdigest()

    @pytest.mark.parametrize("content", [rows(4, 1, 2, 3), rows(1, 2, 4, 3), rows(1, 2, 4)])
    def test_a_file_of_somebody_else_is_left_whole(
        self, exports: Exports, known: Committed, path: Path, content: bytes
    ) -> None:
        """One that does not begin with the committed bytes was not appended to; what is in it may be needed."""
        exports.append(NAME, known, [row(4)])
        path.write_bytes(content)
        exports.cut_back(NAME, known)
        assert path.read_bytes() == content
        with pytest.raises(ExportTamperedError):
            exports.check(NAME, known)

    def test_what_is_shorter_or_no_file_is_left_for_others_to_judge(
        self, exports: Exports, known: Committed, path: Path
    ) -> None:
        """A cut never makes a file longer, and follows no link."""
        path.write_bytes(row(1))
        exports.cut_back(NAME, known)
        assert path.read_bytes() == row(1)
        path.write_bytes(rows(1, 2, 3, 4))
        path.rename(path.with_name("elsewhere"))
        path.symlink_to(path.with_name("elsewhere"))
        exports.cut_back(NAME, known)
        assert path.read_bytes() == rows(1, 2, 3, 4)

    def test_a_rewrite_is_discarded(self, exports: Exports, known: Committed, path: Path) -> None:
        """The temporary file goes, and only it."""
        exports.rewrite(NAME, known, TEMP, digests(), [])
        for _ in range(2):
            exports.discard(NAME, TEMP)
            assert os.listdir(path.parent) == [path.name]

    def test_undo_before_anything_was_made(self, exports: Exports, tmp_path: Path) -> None:
        """A kill may have come right behind the intent, when not even the folder stood."""
        exports.cut_back(NAME, EMPTY)
        exports.discard(NAME, TEMP)
        assert list(tmp_path.iterdir()) == []


class TestDrops:
    """Which lines a rewrite leaves out."""

    def test_ids_are_compared_whole(self) -> None:
        """An id stands at the beginning of its row and ends at its quote."""
        start = b'{"schema_version":1,"id":"'
        found = ROW_ID.match(row(1))
        assert found is not None
        assert found.groups() == (b"rag-%016x" % 1, b"%016x" % 1)
        assert not ROW_ID.match(start + b'rag-%016x1","title":"x"}\n' % 1)
        assert not ROW_ID.match(b'{"title":' + row(1))

    def test_of_equal_lines_as_many_go_as_are_counted(self, exports: Exports, path: Path) -> None:
        """The first ones; the others stay, and what is counted but not there is not counted as dropped."""
        known = first(exports, b"a\n", b"b\n", b"a\n", b"a\n")
        written = exports.rewrite(NAME, known, TEMP, digests(b"a\n", b"a\n", b"c\n"), [b"a\n"])
        assert path.with_name(TEMP).read_bytes() == b"b\na\na\n"
        assert (written.dropped, written.lines) == (2, 3)


def test_a_read_that_fails_is_an_error_for_operators(
    exports: Exports, known: Committed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EIO while an export is read for its first touch names the file.

    The story: the bare OSError came through as if it were a bug.
    """

    def broken(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    fresh = Exports(exports._root)
    monkeypatch.setattr(os, "pread", broken)
    looks: list[Callable[[], object]] = [
        lambda: fresh.check(NAME, known),
        lambda: fresh.append(NAME, known, [row(4)]),
        lambda: _lines_of(fresh, known),
    ]
    for look in looks:
        with pytest.raises(ExportReadError, match=r"cannot read exports/rag/playbooks\.jsonl: Input/output error"):
            look()


class TestReading:
    """What is read of an export is what was committed, or the reader is told."""

    def test_lines_and_spans_of_them(self, exports: Exports, known: Committed) -> None:
        """All lines in their order, then any of them in any order."""
        with exports.reading(NAME, known) as file:
            assert [line for _, line in file.rows()] == [row(1), row(2), row(3)]
            length = len(row(1))
            assert list(file.pick([(2 * length, length), (0, length)])) == [row(3), row(1)]

    @pytest.mark.parametrize("content", [rows(1, 2, 4), rows(1, 2), rows(1, 2, 3, 4), None])
    def test_a_file_that_was_edited_is_refused(
        self, exports: Exports, known: Committed, path: Path, content: bytes | None
    ) -> None:
        """Other bytes, another length, or no file at all."""
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ExportTamperedError):
            _lines_of(exports, known)

    @pytest.mark.parametrize("content", [rows(1, 2, 4), rows(1, 2), rows(1, 2, 3, 4)])
    def test_an_edit_behind_the_lines_is_noticed(
        self, exports: Exports, known: Committed, path: Path, content: bytes
    ) -> None:
        """The spans come from the file whose lines were read, or the reader is told."""
        os.utime(path, (1, 1))  # so that the edit shows in the times, however soon it comes
        with exports.reading(NAME, known) as file:
            length = len(row(1))
            assert len([line for _, line in file.rows()]) == 3
            path.write_bytes(content)
            with pytest.raises(ExportTamperedError, match="was changed while it was read"):
                list(file.pick([(0, length)]))


def test_no_descriptor_is_left_open(exports: Exports, known: Committed, path: Path) -> None:
    """Whatever is refused, everything is closed again."""
    before = len(os.listdir("/proc/self/fd"))
    path.write_bytes(rows(1, 2, 4))
    methods: list[Callable[[], object]] = [
        lambda: exports.append(NAME, known, [row(4)]),
        lambda: exports.rewrite(NAME, known, TEMP, digests(), []),
        lambda: exports.rewrite(NAME, known, TEMP, digests(), []),
        lambda: _lines_of(exports, known),
    ]
    for method in methods:
        with pytest.raises((ExportTamperedError, ExportWriteError)):
            method()
    assert len(os.listdir("/proc/self/fd")) == before


def _lines_of(exports: Exports, known: Committed) -> list[bytes]:
    with exports.reading(NAME, known) as file:
        return [line for _, line in file.rows()]


def _umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


def test_work_of_a_long_row_grows_with_its_length() -> None:
    """Also where it comes in many blocks."""
    line = b"".join(long_line())
    assert list(lines_of(long_line()))[-1] == line
    assert Copied.total <= 2 * len(line)
