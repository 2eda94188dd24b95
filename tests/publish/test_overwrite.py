"""Rows leave an export in place: spaces stand where they stood, nothing else changes, and anybody can check it."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import pytest

from distilld.core.model import EXPORT_PATHS, MARK_BYTES, Committed, StatFacts
from distilld.files.segments import SHA_BYTES, SegmentHash, Span
from distilld.lake.lines import digest_of
from distilld.publish import exports as exports_module
from distilld.publish import live_files, overwrite
from distilld.publish.exports import Exports
from distilld.publish.reading import ExportTamperedError, ExportWriteError
from distilld.store.connection import Store
from distilld.store.export_records import ExportRecords

NAME = "rag"
TEMP = ".playbooks.jsonl.tmp"
EMPTY = Committed(0, 0, hashlib.sha256().hexdigest())


def line(number: int, length: int = 40) -> bytes:
    """A line of some length, its own among all."""
    return b'{"number":%d,"text":"%s"}\n' % (number, b"a b" * (length // 3))


class File:
    """One export that gains and loses lines as a committed batch says, and the lines that it should hold."""

    def __init__(self, root: Path, store: Store) -> None:
        self.root, self.store = root, store
        self.path = root / EXPORT_PATHS[NAME]
        self.records = ExportRecords(store)
        self.start()
        self.lines: list[bytes] = []
        self.known = EMPTY
        self.rewritten = 0

    def start(self) -> None:
        """Another process takes the file on."""
        self.exports = Exports(self.root, records=self.records)

    def gain(self, *lines: bytes) -> None:
        """Append lines, or make the file of them."""
        if self.known.size:
            written = self.exports.append(NAME, self.known, lines)
        else:
            written = self.exports.compose(NAME, TEMP, lines)
            self.records.forget_segments(NAME)
        with self.store.transaction():
            self.records.add_segments(NAME, written.segments)
        self.lines += lines
        self.known = written.committed(len(self.lines))
        if written.facts.inode != self._inode():
            assert self.exports.install(NAME, TEMP, self.known) is not None

    def _inode(self) -> int:
        return self.path.stat().st_ino if self.path.exists() else 0

    def lose(self, *gone: bytes) -> bool:
        """Take lines out, in place if that goes; otherwise the file is written anew. Returns whether in place."""
        leaving = Counter(map(digest_of, gone))
        for each in gone:
            self.lines.remove(each)
        planned = self.exports.plan(NAME, self.known, leaving, grows=False)
        if planned is None:
            written = self.exports.rewrite(NAME, self.known, TEMP, leaving, [])
            with self.store.transaction():
                self.records.forget_segments(NAME)
                self.records.add_segments(NAME, written.segments)
            self.known = written.committed(len(self.lines))
            assert self.exports.install(NAME, TEMP, self.known) is not None
            self.rewritten += 1
            return False
        written = self.exports.planned(NAME, self.known, planned, None)
        with self.store.transaction():
            self.records.record_overwrites(NAME, planned.segments, planned.spans, planned.size, written.segment_bytes)
        self.known = written.committed(len(self.lines))
        self.finish()
        return True

    def finish(self) -> None:
        """Do what is due."""
        spans = self.records.overwrites_due()[NAME]
        segments = self.records.segments(NAME, overwrite.touched(spans, self.known))
        digests = {each.number: each.sha256 for each in segments}
        assert self.exports.overwrite(NAME, self.known, spans, digests, None) is None, "no facts were promised"
        self.records.overwritten(NAME)
        self.start()

    def check(self) -> None:
        """The file holds the lines, in order; what the store knows of it is what anybody would compute."""
        content = self.path.read_bytes()
        found = content.splitlines(keepends=True)
        assert [each.lstrip(b" ") for each in found] == self.lines
        assert len(content) == self.known.size
        assert sum(len(each) - len(each.lstrip(b" ")) for each in found) == self.known.spaces
        assert self.known.spaces <= overwrite.MOST_SPACE_SHARE * len(content)
        assert not re.search(rb"(^|\n) {%d}" % (overwrite.LONGEST_SPACE_BYTES + 1), content)
        width = self.known.segment_bytes
        digests = [hashlib.sha256(content[at : at + width]).digest() for at in range(0, len(content), width)]
        whole = digests[0].hex() if len(digests) == 1 else hashlib.sha256(b"".join(digests)).hexdigest()
        assert self.known.sha256 == (whole if digests else EMPTY.sha256)
        marks: dict[int, bytes] = dict.fromkeys(range(len(digests)), b"")
        for each, end in zip(found, accumulate(map(len, found)), strict=True):
            marks[(end - 1) // width] += digest_of(each.lstrip(b" "))[:MARK_BYTES]
        rows = self.store.connection.execute(
            "SELECT segment, sha256, line_marks FROM export_segments WHERE name = ? ORDER BY segment", (NAME,)
        ).fetchall()
        assert rows == [(number, digest, marks[number]) for number, digest in enumerate(digests)]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[File]:
    """An export of segments of 256 bytes, half of which may be spaces."""
    monkeypatch.setattr(exports_module, "LEAST_BYTES", 0)
    monkeypatch.setattr(live_files, "SEGMENT_BYTES", 256)
    monkeypatch.setattr(overwrite, "MOST_SPACE_SHARE", 0.5)
    store = Store.open(tmp_path / "state.db", tmp_path)
    store.connection.execute("PRAGMA synchronous = OFF")
    yield File(tmp_path, store)
    store.close()


class TestInPlace:
    """Where spaces stand, and where none do."""

    @pytest.mark.parametrize("gone", [(0,), (1,), (1, 2), (0, 1, 3), (2, 5), (4, 6)])
    def test_rows_before_others_become_spaces(self, file: File, gone: tuple[int, ...]) -> None:
        """The bytes of a row and its line feed stand before the next row; the file is the same one."""
        rows = [line(number) for number in range(8)]
        file.gain(*rows)
        inode = file.path.stat().st_ino
        assert file.lose(*(rows[each] for each in gone))
        file.check()
        assert file.path.stat().st_ino == inode
        assert file.known.spaces == sum(len(rows[each]) for each in gone)

    @pytest.mark.parametrize("gone", [(7,), (6, 7), (3, 7), (3, 5, 6, 7)])
    def test_rows_at_the_end_are_cut_off(self, file: File, gone: tuple[int, ...]) -> None:
        """Nothing stands behind the last row: a line of spaces alone is no JSON."""
        rows = [line(number) for number in range(8)]
        file.gain(*rows)
        assert file.lose(*(rows[each] for each in gone))
        file.check()
        assert file.path.read_bytes().endswith(file.lines[-1])

    def test_spaces_before_the_last_row_leave_with_it(self, file: File) -> None:
        """The white space that an earlier batch left before a row is cut off with the row."""
        rows = [line(number) for number in range(8)]
        file.gain(*rows)
        assert file.lose(rows[5])
        assert file.lose(rows[6])
        assert file.lose(rows[7])
        file.check()
        assert file.known.spaces == 0
        assert file.path.read_bytes() == b"".join(rows[:5])

    def test_row_over_several_segments(self, file: File) -> None:
        """A row that is longer than a segment is found by its end, which may be the first byte of a segment."""
        for length in range(240, 280):
            long, ahead, behind = line(length, length), line(1), [line(1000 * length + each) for each in range(40)]
            file.gain(ahead, long, *behind)
            file.lose(long)
            file.check()
            file.lose(*file.lines)
            file.check()

    def test_equal_lines_leave_one_by_one(self, file: File) -> None:
        """Of several quarantine rows that are alike, as many leave as are to."""
        file.gain(*[line(1), line(2)] * 5)
        assert file.lose(line(1), line(1))
        file.check()

    def test_file_that_loses_everything_is_written_anew(self, file: File) -> None:
        """It is empty then, not white."""
        file.gain(line(1), line(2))
        assert not file.lose(line(1), line(2))
        file.check()
        assert file.path.read_bytes() == b""

    def test_line_that_is_not_found_lets_the_file_be_written_anew(self, file: File) -> None:
        """What cannot be done in place is left to who writes the file anew, and nothing was changed."""
        file.gain(line(1), line(2))
        assert file.exports.plan(NAME, file.known, Counter({digest_of(line(3)): 1}), grows=False) is None
        file.check()


class TestLimits:
    """Where white space would be too much, the file is written anew."""

    def test_share(self, file: File, monkeypatch: pytest.MonkeyPatch) -> None:
        """Not more than a tenth of a file is spaces."""
        monkeypatch.setattr(overwrite, "MOST_SPACE_SHARE", 0.1)
        rows = [line(number) for number in range(100)]
        file.gain(*rows)
        assert [file.lose(rows[each]) for each in range(0, 24, 2)] == [True] * 10 + [False, True]
        file.check()

    def test_run(self, file: File, monkeypatch: pytest.MonkeyPatch) -> None:
        """No run of spaces is longer than loaders can read, also over the border of two segments."""
        monkeypatch.setattr(overwrite, "LONGEST_SPACE_BYTES", 200)
        rows = [line(number) for number in range(40)]
        file.gain(*rows)
        while len(file.lines) > 22:
            file.lose(file.lines[10])
            file.check()
        assert file.rewritten > 1

    def test_small_files_are_written_anew(self, file: File, monkeypatch: pytest.MonkeyPatch) -> None:
        """That is as quick."""
        monkeypatch.setattr(exports_module, "LEAST_BYTES", 1000)
        file.gain(line(1), line(2))
        assert not file.lose(line(1))


@pytest.mark.parametrize("width", [100, 256, 4096])
@pytest.mark.parametrize("seed", [1, 2])
def test_random_history(file: File, seed: int, width: int) -> None:
    """Whatever comes and leaves, in whatever order, the file and what is known of it are right after each step."""
    _random_history(file, random.Random(f"{seed} {width}"), width, steps=120, most_lines=60)


@pytest.mark.slow
def test_long_random_history(file: File) -> None:
    """The same for a hundred thousand steps, with small segments and many a compaction."""
    _random_history(file, random.Random(7), 512, steps=100_000, most_lines=60)
    assert file.rewritten > 1_000


def _random_history(file: File, chance: random.Random, width: int, *, steps: int, most_lines: int = 200) -> None:
    file.exports.segment_bytes = width
    number = in_place = 0
    start = file.start

    def start_so() -> None:
        start()
        file.exports.segment_bytes = width

    file.start = start_so  # type: ignore[method-assign]
    for _ in range(steps):
        if (chance.random() < 0.4 and len(file.lines) < most_lines) or not file.lines:
            coming = range(number, number + chance.randint(1, 40))
            file.gain(*(line(each // 2, chance.choice((3, 40, 90, 300))) for each in coming))
            number = coming.stop
        else:
            count = chance.choice((1, 1, 1, 2, 3, len(file.lines)))
            in_place += file.lose(*chance.sample(file.lines, min(count, len(file.lines))))
        if chance.random() < 0.1:
            file.start()
        file.check()
    assert in_place > 10 or width < 64


class TestCutOff:
    """The overwriting is recorded before it is done, and may be done again."""

    ROWS = tuple(line(number) for number in range(20))
    GONE = (ROWS[2], ROWS[3], ROWS[11], ROWS[18], ROWS[19])

    @pytest.fixture
    def due(self, file: File) -> File:
        """A file of whose rows some are to leave: two neighbours, one alone, and the last two."""
        file.gain(*self.ROWS)
        for each in self.GONE:
            file.lines.remove(each)
        planned = file.exports.plan(NAME, file.known, Counter(map(digest_of, self.GONE)), grows=False)
        assert planned is not None
        written = file.exports.planned(NAME, file.known, planned, None)
        file.records.record_overwrites(NAME, planned.segments, planned.spans, planned.size, written.segment_bytes)
        file.known = written.committed(len(file.lines))
        assert file.path.read_bytes() == b"".join(self.ROWS), "a plan changes nothing"
        file.start()
        return file

    def test_done_again(self, due: File) -> None:
        """A second time changes nothing."""
        due.finish()
        due.check()
        before = due.path.read_bytes()
        due.records.record_overwrites(NAME, (), [Span(due.known.size, 100)], due.known.size, 256)
        due.finish()
        assert due.path.read_bytes() == before

    @pytest.mark.parametrize("torn", range(0, 80, 9))
    def test_torn(self, due: File, torn: int) -> None:
        """What was overwritten half is overwritten whole; a row of a disk's block may be old or new."""
        spans = due.records.overwrites_due()[NAME]
        content = bytearray(due.path.read_bytes())
        for span in spans[:-1]:
            content[span.start + torn % span.length : span.end] = b" " * (span.length - torn % span.length)
        due.path.write_bytes(content)
        due.finish()
        due.check()

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
    @pytest.mark.parametrize("refused", ["write", "ftruncate", "fsync"])
    def test_refused(self, due: File, refused: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """A disk that refuses is an error for operators, and once it does not the rows leave."""

        def refuse(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr(os, refused, refuse)
            with pytest.raises(ExportWriteError):
                due.finish()
        due.finish()
        due.check()

    @pytest.mark.parametrize(
        "edit",
        [
            lambda content: content.replace(b'"number":12', b'"number":99'),
            lambda content: content[:-1],
            lambda content: content + b"{}\n",
            lambda _: b"somebody's own",
        ],
        ids=["edited", "cut", "longer", "another"],
    )
    def test_edited_meanwhile(self, due: File, edit: object) -> None:
        """A file that is not the one that was meant is left as it is, for it to be set aside and restored."""
        edited = edit(due.path.read_bytes())  # type: ignore[operator]
        due.path.write_bytes(edited)
        due.finish()
        assert due.path.read_bytes() == edited
        with pytest.raises(ExportTamperedError):
            due.exports.check(NAME, due.known)

    def test_gone_meanwhile(self, due: File) -> None:
        """Neither is one made where there is none."""
        due.path.unlink()
        due.finish()
        assert not due.path.exists()


def test_edit_is_seen_before_anything_is_planned(file: File) -> None:
    """A segment with a byte changed behind the back of its times is refused when it is touched."""
    file.gain(*(line(number) for number in range(20)))
    facts = file.path.stat()
    with file.path.open("r+b") as disk:
        disk.seek(300)
        disk.write(b"X")
    file.exports._hashes[NAME] = (file.exports._hashes[NAME][0], _facts_now(file.path))
    assert facts.st_size == file.path.stat().st_size
    gone = Counter(map(digest_of, file.lines[5:9]))
    with pytest.raises(ExportTamperedError):
        file.exports.plan(NAME, file.known, gone, grows=False)


def _facts_now(path: Path) -> StatFacts:
    return StatFacts.of(path.stat())


class TestDigests:
    """What anybody can compute with split and sha256sum."""

    @pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 200, 1000])
    @pytest.mark.parametrize("step", [1, 7, 100, 5000])
    def test_blocks_of_any_length(self, size: int, step: int) -> None:
        """The digest does not depend on how the bytes came."""
        content = bytes(range(256)) * 4
        found = SegmentHash(100)
        for start in range(0, size, step):
            found.update(content[start : min(size, start + step)])
        digests = b"".join(hashlib.sha256(content[at : min(size, at + 100)]).digest() for at in range(0, size, 100))
        assert (found.digests() if size else b"") == digests
        if len(digests) > SHA_BYTES:
            assert found.hexdigest() == hashlib.sha256(digests).hexdigest()
        else:
            assert found.hexdigest() == hashlib.sha256(content[:size]).hexdigest()
