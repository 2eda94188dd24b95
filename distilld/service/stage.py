"""Runs a foreign stage, such as build_evidence_index or score_runs, and writes its receipt (SPEC 4, 'Other stages').

The receipt has the form of a batch's. Each stage has its own chain: a receipt names the sha256 of that stage's receipt
before it. Stages may run at the same time: they use no store and no lock, and each receipt's folder names its stage.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from types import FrameType
from typing import Any, Final

import orjson
import structlog

from distilld.core.json_text import escaped
from distilld.core.model import REPORTS, OperatorError, UsageError
from distilld.files.durable import FOLDER_MODE, make_folder, replace_file, sync_folder
from distilld.files.git import git_state
from distilld.files.regular import open_regular, read_regular
from distilld.files.safe_path import find_program
from distilld.publish.receipt import batch_id_of, iso_time
from distilld.publish.receipt_files import (
    ReceiptWriteError,
    ids_by_stage,
    receipt_bytes,
    receipt_path,
    remove_receipts,
    sha256_of,
)
from distilld.service.failure_text import explain_failure

log = structlog.get_logger()

NAME: Final = re.compile(r"[a-z0-9_-]+")
OURS: Final = "distill"
"""The stage that is distilld itself; the store keeps its chain."""
NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126
KILLED: Final = 128
"""The shell's exit codes: no such command, one that cannot be run, and the base for one that a signal ended."""

_MS: Final = 1_000_000
_BLOCK_BYTES: Final = 1 << 20
_MAGIC: Final = re.compile(r"[*?\[]")
_PASSED_ON: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True, slots=True)
class FileState:
    """A file's content at one moment: its length, its line feeds, its sha256."""

    size: int
    lines: int
    sha256: str


@dataclass(frozen=True, slots=True)
class StageRun:
    """The result of a stage.

    ``exit_code`` is the command's own, but 1 if it was 0 and the receipt could not be written. ``receipt`` is the
    receipt's path below the root, None if there is none; ``problems`` are for the person at the terminal.
    """

    exit_code: int
    receipt: str | None
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Done:
    """What the command did, and the state of its inputs (``read``) and outputs (``before``) before it ran."""

    exit_code: int
    errors: list[str]
    started_ns: int
    ended_ns: int
    read: Mapping[str, FileState]
    before: Mapping[str, FileState]


def run_stage(
    root: Path, name: str, *, inputs: Sequence[str], outputs: Sequence[str], command: Sequence[str], receipts_keep: int
) -> StageRun:
    """Run ``command`` in the working directory and write its receipt. Globs are relative to the root.

    Raises:
        UsageError: A stage cannot have this name.
        OSError: An input or output cannot be read; the command was not run.
    """
    if not NAME.fullmatch(name) or name == OURS:
        raise UsageError(f"NAME = {name!r}; allowed: letters a to z, digits, '_' and '-', but not {OURS!r}")
    read, before = _states(root, inputs), _states(root, outputs)
    started_ns = time.time_ns()
    exit_code, errors = _run(command)
    done = _Done(exit_code, errors, started_ns, max(time.time_ns(), started_ns), read, before)
    try:
        facts = _facts(root, name, inputs, outputs, command, done)
        batch_id = str(facts["batch_id"])
        path, sha256 = _write(root, batch_id, facts)
        _retire(root, name, batch_id, receipts_keep)
    except (OperatorError, OSError) as error:
        problem, hint = explain_failure(error)
        log.error("stage_finished", stage=name, exit_code=exit_code, receipt=None, problem=problem, hint=hint)
        return StageRun(exit_code or 1, None, (f"{problem} ({hint})" if hint else problem,))
    (log.error if exit_code else log.info)(
        "stage_finished", stage=name, exit_code=exit_code, receipt=path, duration_ms=facts["duration_ms"],
        receipt_sha256=sha256,
    )  # fmt: skip
    return StageRun(exit_code, path, (*facts["errors"], *facts["warnings"]))


def _facts(
    root: Path, name: str, inputs: Sequence[str], outputs: Sequence[str], command: Sequence[str], done: _Done
) -> dict[str, Any]:
    after, batch_id = _states(root, outputs), _claim(root, name, done.ended_ns)
    previous, size = _receipt_before(root, name, batch_id), sum(each.size for each in done.read.values())
    return {
        "stage": name,
        "batch_id": batch_id,
        "sequence": previous.sequence + 1 if previous else 1,
        "trigger": "once",
        "started_at": iso_time(done.started_ns),
        "ended_at": iso_time(done.ended_ns),
        "duration_ms": (done.ended_ns - done.started_ns) // _MS,
        "recorded_at": iso_time(done.ended_ns),
        **_options(command, inputs, outputs),
        "git": asdict(git_state(root)),
        "inputs": [_input(path, state, previous) for path, state in done.read.items()],
        "outputs": [_output(root, path, state, done.before.get(path)) for path, state in after.items()],
        "record_counts": _counts(done.read, done.before, after),
        "run": None,
        "work": {"rows_indexed": 0, "rows_judged": 0, "bytes_read": size, "lag_ms": None},
        "pending_tails": [],
        "validation_pass": done.exit_code == 0,
        "checks": {"exit_code_zero": done.exit_code == 0},
        "exit_code": done.exit_code,
        "warnings": list(_warnings(root, inputs, outputs, done.read, after)),
        "errors": done.errors,
        "previous_receipt_sha256": previous.sha256 if previous else None,
    }


def _warnings(
    root: Path,
    inputs: Sequence[str],
    outputs: Sequence[str],
    read: Mapping[str, FileState],
    after: Mapping[str, FileState],
) -> Iterator[str]:
    for what, globs in (("input", inputs), ("output", outputs)):
        for glob in globs:
            if not _matches(root, glob):
                yield f"the {what} {escaped(glob)} matches no file"
    for path, state in _states(root, inputs).items():
        # A file that the stage itself writes may change.
        if path in read and path not in after and state != read[path]:
            yield f"{escaped(path)} changed while the stage ran"


# the command


def _run(command: Sequence[str]) -> tuple[int, list[str]]:
    """Run the command to its end, passing signals on; return its exit code as in a shell, and what went wrong."""
    program = find_program(command[0], os.environ.get("PATH", os.defpath))
    try:
        if program is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        with _signals_kept() as early:
            process = subprocess.Popen(command, executable=program)
            _pass_signals_on(process, early)
            code = process.wait()
    except OSError as error:
        code = NOT_FOUND if error.errno == errno.ENOENT else NOT_EXECUTABLE
        return code, [f"{escaped(command[0])} cannot be run: {error.strerror}"]
    if code < 0:
        return KILLED - code, [f"the command was ended by {_signal_name(-code)}"]
    return code, [f"the command exited with {code}"] if code else []


@contextmanager
def _signals_kept() -> Iterator[list[int]]:
    """Yield the list of signals that come before another handler is set; set the former handlers again at the end."""
    early: list[int] = []
    before = {number: signal.signal(number, lambda number, _: early.append(number)) for number in _PASSED_ON}
    try:
        yield early
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _pass_signals_on(process: subprocess.Popen[bytes], early: Sequence[int]) -> None:
    """Pass on what came while the process was started, and from now on each signal that it is not sent anyway."""

    def pass_on(number: int, _frame: FrameType | None) -> None:
        # A terminal sends its signals to the command directly.
        if not (number in (signal.SIGINT, signal.SIGQUIT) and _in_foreground()):
            process.send_signal(number)

    for number in _PASSED_ON:
        signal.signal(number, pass_on)
    for kept in early:
        process.send_signal(kept)


def _in_foreground() -> bool:
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError):
        return False


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# the files


def _states(root: Path, globs: Sequence[str]) -> dict[str, FileState]:
    """Return the state of every regular file that a glob matches, by its path below the root, in order."""
    found: dict[str, FileState] = {}
    for path in sorted({path for glob in globs for path in _matches(root, glob)}):
        state = _state(path)
        if state is not None:
            found[_shown(root, path)] = state
    return found


def _shown(root: Path, path: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _state(path: Path, upto: int | None = None) -> FileState | None:
    """Return the state of a file, or of its first ``upto`` bytes; None if it is gone."""
    sha, size, lines = hashlib.sha256(), 0, 0
    with suppress(FileNotFoundError), open_regular(path) as file:
        while block := file.read(_BLOCK_BYTES if upto is None else min(_BLOCK_BYTES, upto - size)):
            sha.update(block)
            size += len(block)
            lines += block.count(b"\n")
        return FileState(size, lines, sha.hexdigest())
    return None


def _matches(root: Path, glob: str) -> list[Path]:
    """Return the regular files that a glob matches; ``**`` matches any folders. A failed listing raises an error.

    A link is followed only as a folder that the glob names before its first wildcard: others may make further links.
    """
    start = Path("/") if glob.startswith("/") else root
    return sorted(set(_walk(start, [part for part in glob.split("/") if part not in ("", ".")])))


def _walk(folder: Path, parts: Sequence[str], *, named: bool = True) -> Iterator[Path]:
    head, *rest = parts or [""]
    if not _MAGIC.search(head):
        path = folder / head
        if rest and (named or not path.is_symlink()):
            yield from _walk(path, rest, named=named)
        elif not rest and _is_file(path):
            yield path
        return
    any_folders = head == "**"
    if any_folders and rest:
        yield from _walk(folder, rest, named=False)
    for entry in _listed(folder):
        if any_folders or fnmatchcase(entry.name, head):
            below = parts if any_folders else rest
            if below and entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path), below, named=False)
            elif not rest and entry.is_file(follow_symlinks=False):
                yield Path(entry.path)


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        return list(entries)
    return []


def _is_file(path: Path) -> bool:
    with suppress(FileNotFoundError, NotADirectoryError):
        return stat.S_ISREG(os.lstat(path).st_mode)
    return False


# the receipt


@dataclass(frozen=True, slots=True)
class _Link:
    """The receipt before this one in the stage's chain."""

    sequence: int
    sha256: str
    inputs: Mapping[str, str]


def _options(command: Sequence[str], inputs: Sequence[str], outputs: Sequence[str]) -> dict[str, Any]:
    given = {"command": command, "input": inputs, "output": outputs}
    options = {key: [escaped(word) for word in words] for key, words in given.items()}
    return {"options": options, "options_sha256": hashlib.sha256(orjson.dumps(options)).hexdigest()}


def _input(path: str, state: FileState, previous: _Link | None) -> dict[str, Any]:
    shown = escaped(path)
    known = previous.inputs.get(shown) if previous else None
    change = "new" if known is None else "unchanged" if known == state.sha256 else "rewritten"
    return {
        "path": shown, "kind": "stage", "change": change, "sha256": state.sha256, "bytes": state.size, "from_offset": 0,
        "to_offset": state.size, "lines": state.lines, "malformed_lines": None,
    }  # fmt: skip


def _output(root: Path, path: str, state: FileState, before: FileState | None) -> dict[str, Any]:
    grew = before is not None and _grew(root / path, before, state)
    return {
        "path": escaped(path), "sha256": state.sha256, "bytes": state.size, "rows": state.lines,
        "appended": state.lines - before.lines if grew and before else 0 if before == state else state.lines,
        "withdrawn": 0 if before is None or grew or before == state else before.lines,
        "adopted": 0, "rewritten": before is not None and not grew and before != state,
    }  # fmt: skip


def _grew(path: Path, before: FileState, after: FileState) -> bool:
    """Return whether the file begins with its former content and continues after it."""
    if after.size <= before.size:
        return False
    start = _state(path, before.size)
    return start is not None and start.sha256 == before.sha256


def _counts(
    read: Mapping[str, FileState], before: Mapping[str, FileState], after: Mapping[str, FileState]
) -> dict[str, Any]:
    return {
        "in": sum(state.lines for state in read.values()),
        "out": sum(state.lines for path, state in after.items() if state != before.get(path)),
        "quarantined": 0, "withdrawn": 0, "by_category": {}, "by_reason": {}, "per_exporter": {},
    }  # fmt: skip


def _claim(root: Path, name: str, ended_ns: int) -> str:
    """Make the folder of a new receipt; return its id, which is unique and sorts after the stage's earlier ones."""
    earlier = ids_by_stage(root).get(name, [])
    stamp = max(ended_ns, _moment_of(earlier[-1]) + _MS) if earlier else ended_ns
    with ReceiptWriteError.about(REPORTS):
        make_folder(root / REPORTS)
        while True:
            batch_id = f"{batch_id_of(iso_time(stamp))}-{name}"
            try:
                (root / REPORTS / batch_id).mkdir(mode=FOLDER_MODE)
            except FileExistsError:
                stamp += _MS
            else:
                return batch_id


def _receipt_before(root: Path, name: str, batch_id: str) -> _Link | None:
    for each in reversed([each for each in ids_by_stage(root).get(name, []) if each < batch_id]):
        try:
            content = read_regular(root / receipt_path(each))
        except FileNotFoundError:
            continue  # its writer was killed
        except OSError as error:
            raise OperatorError(
                f"cannot read {receipt_path(each)}: {error.strerror}", hint="put it right or take its folder away"
            ) from error
        try:
            facts = orjson.loads(content)
            inputs = {str(each["path"]): str(each["sha256"]) for each in facts["inputs"]}
            return _Link(int(facts["sequence"]), sha256_of(content), inputs)
        except (ValueError, TypeError, KeyError) as error:
            raise OperatorError(
                f"{receipt_path(each)} is no receipt, and the chain cannot go on from it",
                hint="find out what happened to it, then put it right or take its folder away",
            ) from error
    return None


def _write(root: Path, batch_id: str, facts: Mapping[str, Any]) -> tuple[str, str]:
    path, content = root / receipt_path(batch_id), receipt_bytes(facts)
    with ReceiptWriteError.about(receipt_path(batch_id)):
        replace_file(path, content)
        sync_folder(path.parent.parent)
    return receipt_path(batch_id), sha256_of(content)


def _retire(root: Path, name: str, own: str, keep: int) -> None:
    """Remove the oldest receipts beyond ``keep`` (0: keep all); the oldest that stays names the last one removed.

    A folder without a receipt is that of a run in progress; one after ``own`` is that of a later run.
    """
    if keep:
        written = [each for each in ids_by_stage(root).get(name, []) if os.path.lexists(root / receipt_path(each))]
        remove_receipts(root, [each for each in written[:-keep] if each < own])


def _moment_of(batch_id: str) -> int:
    moment = datetime.strptime(batch_id.partition("-")[0], "%Y%m%dT%H%M%S.%f%z")
    return round(moment.timestamp() * 1000) * _MS
