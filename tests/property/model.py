"""The history of a lake: what producers, scorers and operators do to its files, and the values they do it with.

The files on disk are the model's only state, but for what it needs to go on with: the rests of torn lines, and files
that were deleted and may return. Every change takes plain numbers, taken modulo what there is, so that any of them can
be drawn without looking at the lake, and a failing history prints as a list of calls that can be copied into a test.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from hypothesis import strategies as st

from distilld.core.model import InputKind, OnDelete, Options
from distilld.lake.scan import tree_path

PARTITIONS: Final = (
    "2026/01/01/a.jsonl",
    "2026/01/01/a-b.jsonl",  # before a.jsonl: the extension is compared too
    "2026/01/01-x/a.jsonl",  # behind 2026/01/01 as a component, before it as a text
    "2026/01/02/a.jsonl",
    "2026/02/01/.jsonl",
)
"""A handful of partitions whose walk order is not that of their paths as texts."""

RUNS: Final = ("a", "b", "a|b", "b|c", "d", "e", "f")
TASKS: Final = ("t", "t", "c|t", "u")
CATEGORIES: Final = (
    ("accepted",) * 4 + ("rejected",) * 3 + ("partially_accepted",) * 2 + ("needs_human_review", "?", " REJECTED")
)
"""Ids are made of these with ``|`` between, so rows of two runs, or pairs of two tasks, can share one."""
SIGNATURES: Final = ("s", "s", "b|s")
TEXTS: Final = ("one", " two \n", "three", "four", "five", "  ", "")

MAX_LINE_BYTES: Final = 600
MALFORMED: Final = (
    b"nothing",
    b" ",
    b"\r",
    b"\x00\x00\x00",
    b"[]",
    b"17",
    b'{"evidence_run_id":"a","category":"rejected"',
    b'{"evidence_run_id":"a","category":"rejected","x":NaN}',
    b'{"evidence_run_id":"a","category":"rejected","x":1e999}',
    b"\xef\xbb\xbf" + b'{"evidence_run_id":"a","category":"rejected"}',
    b'{"evidence_run_id":"a","category":"rejected","x":' + b"[" * 200 + b"]" * 200 + b"}",
    b'{"evidence_run_id":"a","category":"rejected","x":"' + b"long" * 200 + b'"}',
    b"\xff\xfe" * 400,
    b'{"evidence_run_id":"a","category":"acce{"evidence_run_id":"e","category" : "needs_human_review"}',
    b"\xff\xfe" + '{"evidence_run_id":"d","category":"rejected"}'.encode("utf-16-le")[:-1].replace(b"\n", b" "),
    rb'{"evidence_run_id":"b","reasons":["\"category\":\"rejected\""],',
)
"""Lines that are no JSON object, or too long; most of them would be a verdict if they were one."""

BAD_TEXT: Final = "bad text"
LONE_SURROGATE: Final = "lone surrogate"
MARKED: Final = {b'"bad text"': b'"\xff"', b'"lone surrogate"': b'"\\ud800"'}
"""What stands in a line for JSON strings that are no valid Unicode: the line counts, and is marked."""


class Row(bytes):
    """A line without its line feed, shown as the call that makes it."""

    call: str

    def __repr__(self) -> str:
        return self.call


def _row(call: str, row: dict[str, Any]) -> Row:
    line = Row(json.dumps(row, separators=(",", ":"), ensure_ascii=False).encode())
    for stand_in, text in MARKED.items():
        line = Row(line.replace(stand_in, text))
    line.call = call
    return line


def bad(number: int) -> Row:
    """A line that is no JSON object, or too long."""
    line = Row(MALFORMED[number])
    line.call = f"bad({number})"
    return line


def scored(run: str, category: str, task: str = "t", signature: str = "s", reason: str = "", flaw: str = "") -> Row:
    """A scored row; a ``flaw`` is one of :data:`SCORED_FLAWS`."""
    provenance: dict[str, Any] = {
        "source_file": "data/_kb/audits.jsonl",
        "line_offset": 3,
        "sig_hash": signature,
        "recorded_at": "2026-01-01T00:00:00.000Z",
    }
    row: dict[str, Any] = {
        "evidence_run_id": run,
        "evidence_task_id": task,
        "category": category,
        "reasons": [reason] if reason else [],
        "provenance": provenance,
    }
    if flaw == "no provenance":
        del row["provenance"]
    elif flaw == "no source":
        provenance["source_file"] = None
    elif flaw == "no run":
        row["evidence_run_id"] = 7
    elif flaw == "no task":
        del row["evidence_task_id"]
    elif flaw == "bad text":
        row["reasons"] = [BAD_TEXT]
    return _row(f"scored({run!r}, {category!r}, {task!r}, {signature!r}, {reason!r}, {flaw!r})", row)


def evidence(run: str, text: str = "one", role: str = "executor", files: str = "", flaw: str = "") -> Row:
    """An evidence row; a ``flaw`` is one of :data:`EVIDENCE_FLAWS`, ``files`` are named with spaces between."""
    row: dict[str, Any] = {
        "run_id": run,
        "task_id": "audit:x",
        "model_role": role,
        "text": text,
        "provenance": {"source_file": "data/_kb/audits.jsonl"},
    }
    if files:
        row["source_files"] = files.split()
    if flaw == "no task":
        del row["task_id"]
    elif flaw == "no run":
        row["run_id"] = None
    elif flaw == "no text":
        row["text"] = 5
    elif flaw == "bad text":
        row["model_name"] = LONE_SURROGATE
    return _row(f"evidence({run!r}, {text!r}, {role!r}, {files!r}, {flaw!r})", row)


SCORED_FLAWS: Final = ("no provenance", "no source", "no run", "no task", "bad text")
EVIDENCE_FLAWS: Final = ("no task", "no run", "no text", "bad text")


@st.composite
def scored_rows(draw: st.DrawFn) -> Row:
    """A scored row: mostly whole and of few different kinds, so that ids, runs and tasks collide."""
    kind = draw(st.sampled_from(("",) * 15 + SCORED_FLAWS + ("bad", "bad")))
    if kind == "bad":
        return bad(draw(st.integers(0, len(MALFORMED) - 1)))
    return scored(
        draw(st.sampled_from(RUNS)),
        draw(st.sampled_from(CATEGORIES)),
        draw(st.sampled_from(TASKS)),
        draw(st.sampled_from(SIGNATURES)),
        draw(st.sampled_from(("", "", "because"))),
        kind,
    )


@st.composite
def evidence_rows(draw: st.DrawFn, run: str | None = None) -> Row:
    """An evidence row, of the given run or any."""
    kind = draw(st.sampled_from(("",) * 15 + EVIDENCE_FLAWS + ("bad", "bad")))
    if kind == "bad":
        return bad(draw(st.integers(0, len(MALFORMED) - 1)))
    return evidence(
        run or draw(st.sampled_from(RUNS)),
        draw(st.sampled_from(TEXTS)),
        draw(st.sampled_from(("executor",) * 5 + ("extractor",))),
        draw(st.sampled_from(("",) * 6 + ("there", "there gone", "gone"))),
        kind,
    )


@st.composite
def joined_rows(draw: st.DrawFn) -> tuple[list[Row], list[Row]]:
    """Some scored rows, and the evidence of most of their runs."""
    rows = draw(st.lists(scored_rows(), min_size=1, max_size=8))
    runs = sorted(
        {json.loads(row)["evidence_run_id"] for row in rows if row.call.startswith("scored") and row.isascii()} - {7}
    )
    return rows, [draw(evidence_rows(run)) for run in runs if draw(st.sampled_from((True,) * 5 + (False,)))]


def whole_options() -> st.SearchStrategy[Options]:
    """Settings of the target state; where files may be kept when they disappear, they mostly are."""
    return st.builds(
        Options,
        include_partial=st.booleans(),
        include_review=st.booleans(),
        revoke=st.sampled_from((True, True, False)),
        on_delete=st.sampled_from((OnDelete.KEEP,) * 5 + (OnDelete.WITHDRAW,)),
        check_source_files=st.sampled_from((False, False, True)),
        missing_source_file=st.sampled_from(("", "none")),
        max_line_bytes=st.sampled_from((MAX_LINE_BYTES, MAX_LINE_BYTES, 10_000, 215)),
        max_exports_per_run=st.sampled_from((1000, 1, 1, 2)),
    )


# What happens to a lake


class History:
    """The files of one lake, changed as producers and operators change them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.torn: dict[Path, bytes] = {}
        """What is still to come of a file's last line."""
        self.deleted: dict[Path, bytes] = {}
        self.saved: tuple[Path, Path] | None = None
        """A file that is about to be saved, and its other name until then."""
        for kind in InputKind:
            (root / tree_path(kind, "")).mkdir(parents=True)
        (root / "sources").mkdir()
        (root / "sources" / "there").touch()

    def path(self, kind: InputKind, partition: int) -> Path:
        """The file of a partition."""
        return self.root / tree_path(kind, PARTITIONS[partition % len(PARTITIONS)])

    def files(self, kind: InputKind) -> list[Path]:
        """The files that there are, in a fixed order."""
        return [path for number in range(len(PARTITIONS)) if (path := self.path(kind, number)).exists()]

    # producers

    def append(self, kind: InputKind, partition: int, rows: Sequence[bytes], torn_at: int | None = None) -> None:
        """Append rows; with ``torn_at`` the last of them stops after so many of its bytes, to be completed later."""
        if not rows:
            return
        path = self.path(kind, partition)
        content = b"".join(row + b"\n" for row in rows)
        rest = self.torn.pop(path, b"")
        if torn_at is not None:
            cut = len(content) - len(rows[-1]) - 1 + torn_at % (len(rows[-1]) + 1)
            content, self.torn[path] = content[:cut], content[cut:]
        self._write(path, (self._read(path) if path.exists() else b"") + rest + content)

    def complete(self, number: int) -> None:
        """A torn line is written to its end."""
        waiting = sorted(path for path in self.torn if path.exists())
        if waiting:
            path = waiting[number % len(waiting)]
            self._write(path, self._read(path) + self.torn.pop(path))

    def leave_open(self, kind: InputKind, partition: int, row: bytes) -> None:
        """A last line that its producer leaves without a line feed."""
        path = self.path(kind, partition)
        self._write(path, (self._read(path) if path.exists() else b"") + row)

    # rewrites

    def rewrite(self, kind: InputKind, number: int, lines: Sequence[bytes], *, in_place: bool) -> None:
        """Another content altogether."""
        self._rewrite(kind, number, lambda _: list(lines), in_place=in_place)

    def insert(self, kind: InputKind, number: int, at: int, rows: Sequence[bytes], *, in_place: bool) -> None:
        """Rows come in at the head, or in the middle."""

        def change(lines: list[bytes]) -> list[bytes]:
            place = at % (len(lines) + 1)
            return [*lines[:place], *rows, *lines[place:]]

        self._rewrite(kind, number, change, in_place=in_place)

    def shuffle(self, kind: InputKind, number: int, seed: int, *, in_place: bool) -> None:
        """The same lines in another order."""

        def change(lines: list[bytes]) -> list[bytes]:
            random.Random(seed).shuffle(lines)
            return lines

        self._rewrite(kind, number, change, in_place=in_place)

    def drop(self, kind: InputKind, number: int, at: int, count: int, *, in_place: bool) -> None:
        """Some lines go."""
        self._rewrite(
            kind, number, lambda lines: lines[: at % (len(lines) + 1)] + lines[at % (len(lines) + 1) + count :],
            in_place=in_place,
        )  # fmt: skip

    def truncate(self, kind: InputKind, number: int, size: int) -> None:
        """The file is cut to so many bytes, in the middle of a line or not."""
        files = self.files(kind)
        if files:
            path = files[number % len(files)]
            os.truncate(path, size % (path.stat().st_size + 1))
            self.torn.pop(path, None)

    def duplicate(self, kind: InputKind, number: int, at: int, count: int, to_partition: int) -> None:
        """Lines are written once more, at the end of the same or of another partition."""
        files = self.files(kind)
        if files:
            lines = self._lines(files[number % len(files)])
            at %= len(lines) + 1
            self.append(kind, to_partition, [line for line in lines[at : at + count] if line])

    def change_line(self, kind: InputKind, number: int, at: int, row: bytes, *, in_place: bool) -> None:
        """One line becomes another."""

        def change(lines: list[bytes]) -> list[bytes]:
            if lines:
                lines[at % len(lines)] = row
            return lines

        self._rewrite(kind, number, change, in_place=in_place)

    def rescore(self, number: int, at: int) -> None:
        """An acceptance becomes a rejection, or the other way round: same length, same inode, same mtime."""
        files = self.files(InputKind.SCORED)
        if not files:
            return
        path = files[number % len(files)]
        before = path.stat()
        lines = self._read(path).split(b"\n")
        at %= len(lines)
        swap = {b'"category":"accepted"': b'"category":"rejected"', b'"category":"rejected"': b'"category":"accepted"'}
        for old, new in swap.items():
            if old in lines[at]:
                lines[at] = lines[at].replace(old, new)
                break
        with path.open("r+b") as file:
            file.write(b"\n".join(lines))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_size == before.st_size

    # operators

    def delete(self, kind: InputKind, number: int) -> None:
        """A partition file disappears."""
        files = self.files(kind)
        if files:
            path = files[number % len(files)]
            self.deleted[path] = self._read(path)
            self.torn.pop(path, None)
            path.unlink()

    def bring_back(self, number: int) -> None:
        """A deleted file returns as it was."""
        gone = sorted(path for path in self.deleted if not path.exists())
        if gone:
            path = gone[number % len(gone)]
            self._write(path, self.deleted.pop(path))

    def move(self, kind: InputKind, number: int, to_partition: int) -> None:
        """A partition file gets another name; one that stood there is gone."""
        files = self.files(kind)
        if files:
            path, target = files[number % len(files)], self.path(kind, to_partition)
            if path != target:
                target.parent.mkdir(parents=True, exist_ok=True)
                path.rename(target)
                self.torn.pop(target, None)
                self.torn.pop(path, None)

    def move_both(self, number: int, to_partition: int) -> None:
        """A partition moves with its evidence."""
        files = self.files(InputKind.SCORED)
        if files:
            partition = PARTITIONS.index(
                files[number % len(files)].relative_to(self.root / "data/scored-runs").as_posix()
            )
            for kind in InputKind:
                if self.path(kind, partition).exists():
                    self.move(kind, self.files(kind).index(self.path(kind, partition)), to_partition)

    def begin_to_save(self, kind: InputKind, number: int) -> None:
        """An editor writes a file once more, under the name of another partition."""
        files = self.files(kind)
        if files:
            path = files[number % len(files)]
            self.torn.pop(path, None)
            self.saved = path, path.with_name(".saved.jsonl")
            self.saved[1].write_bytes(self._read(path))

    def save(self) -> None:
        """The editor puts it in the place of the file."""
        if self.saved is not None:
            path, beside = self.saved
            beside.rename(path)
            self.torn.pop(path, None)
            self.saved = None

    def swap(self, kind: InputKind, number: int, other: int) -> None:
        """Two partition files change names."""
        files = self.files(kind)
        if len(files) > 1:
            one, two = files[number % len(files)], files[other % len(files)]
            if one != two:
                between = one.with_name(".between")
                one.rename(between)
                two.rename(one)
                between.rename(two)
                self.torn.pop(one, None)
                self.torn.pop(two, None)

    # files

    def _lines(self, path: Path) -> list[bytes]:
        lines = self._read(path).split(b"\n")
        return lines if lines[-1] else lines[:-1]

    def _rewrite(self, kind: InputKind, number: int, change: Any, *, in_place: bool) -> None:
        files = self.files(kind)
        if not files:
            return
        path = files[number % len(files)]
        self.torn.pop(path, None)
        content = b"".join(line + b"\n" for line in change(self._lines(path)))
        if in_place:
            with path.open("r+b") as file:
                file.write(content)
                file.truncate()
        else:
            fresh = path.with_name(".fresh")
            fresh.write_bytes(content)
            fresh.rename(path)

    def _read(self, path: Path) -> bytes:
        return path.read_bytes()

    def _write(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        known = path.read_bytes() if path.exists() else b""
        if content.startswith(known) and known:
            with path.open("ab") as file:
                file.write(content[len(known) :])
        else:
            path.write_bytes(content)
