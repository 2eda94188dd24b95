"""The log: one line per event, on standard error, with event names from a closed list (SPEC 4, docs/logs.md).

In the json form a line is one JSON object in plain ASCII, so its content can mislead neither a terminal nor a
collector; the console form is for people. No line is longer than ``MAX_LINE_BYTES``. No value of a row is logged:
callers pass counts, ids and paths; of an exception only its kind, its place and messages known to be safe are logged.
"""

from __future__ import annotations

import json
import math
import os
import select
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from functools import partial
from itertools import islice
from pathlib import PurePath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, TextIO

from distilld.core.model import Dataset, DistilldError, ProgramError
from distilld.core.remedies import BY_EVENT

if TYPE_CHECKING:
    # Slow to import; commands that log nothing do not need it.
    from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "json", "console"]

_STANDARD_ERROR: Final = 2

MAX_LINE_BYTES: Final = 40_000
"""The maximum length of a line in bytes, line feed included. journald splits lines at 48 KB."""

EVENTS: Final = frozenset(
    {
        # a batch
        "batch_started", "batch_committed", "batch_undone", "batch_failed", "stage_finished", "dry_run", "up_to_date",
        # the input
        "scan_finished", "scan_failed", "folder_not_listed", "not_a_partition", "folder_ignored", "file_unreadable",
        "odd_partition_name", "pending_tail", "malformed_scored", "unreviewed_verdict", "malformed_evidence",
        "lines_left_out", "input_changed", "settling", "reading_in_turns", "partition_absent", "partition_returned",
        "partition_rewritten", "tripwire_tripped",
        # the exports and the store
        "export_tampered", "export_set_aside", "export_restored", "card_written", "card_not_written", "orphan_kept",
        "takeover_started", "takeover_finished", "store_set_aside", "store_migrated", "recovery_started",
        "recovery_finished", "recovery_failed", "receipt_written", "receipt_repaired", "page_not_written",
        "withdrawal_overdue", "rebuild_started", "rebuild_finished", "pruned",
        # the daemon
        "daemon_started", "daemon_stopping", "daemon_stopped", "lock_taken", "lock_taken_again", "options_changed",
        "reload_started", "reload_refused", "reload_finished", "watch_started", "watch_fallback", "watch_rearmed",
        "retry_scheduled", "failure_over", "metrics_failed",
    }
)  # fmt: skip
"""The names of all events; docs/logs.md says what each means. Another name raises ProgramError."""

_PRIORITIES: Final[Mapping[str, int]] = MappingProxyType(
    {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
)
"""The levels as systemd numbers them (sd-daemon(3))."""

_LEVEL_NUMBERS: Final[Mapping[str, int]] = MappingProxyType({"debug": 10, "info": 20, "warning": 30, "error": 40})


def configure(*, level: Level, fmt: Format, stream: TextIO | None = None) -> None:
    """Set up the log of this process; a later call also changes existing loggers.

    The default of ``stream`` is standard error. ``fmt`` auto is console on a terminal and json elsewhere. If
    JOURNAL_STREAM in the environment says that ``stream`` leads to the journal, json lines begin with their priority.
    """
    import structlog

    out = sys.stderr if stream is None else stream
    console = fmt == "console" or (fmt == "auto" and out.isatty())
    render = (
        _ConsoleLine(colors=out.isatty() and not os.environ.get("NO_COLOR"))
        if console
        else partial(_json_line, priority=_leads_to_journal(out))
    )
    sink = _Sink(out)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            _refuse_unknown_event,
            _add_time,
            _tell_exception,
            _add_hint,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVEL_NUMBERS[level]),
        logger_factory=lambda *_: sink,
        cache_logger_on_first_use=False,
    )


def get_logger() -> FilteringBoundLogger:
    """Return the logger. It follows the last ``configure``; before the first, it writes to standard error."""
    import structlog

    if not structlog.is_configured():
        configure(level="info", fmt="auto")
    logger: FilteringBoundLogger = structlog.get_logger()
    return logger


def lines_of_batch(batch_id: str) -> AbstractContextManager[None]:
    """Add ``batch_id`` to every line that is written within the context."""
    import structlog

    return structlog.contextvars.bound_contextvars(batch_id=batch_id)


def drop_if_stuck() -> None:
    """Redirect standard error to the null device if its reader is stuck; for signal handlers.

    A blocked write of a line is tried again when the handler returns, and the line is dropped then.
    """
    with suppress(OSError):
        if not select.select([], [_STANDARD_ERROR], [], 0)[1]:
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(null, _STANDARD_ERROR)
            os.close(null)


def printable(text: str) -> str:
    """Return ``text`` on one line, each unprintable character replaced by its escape.

    Unprintable are line ends, escape sequences, DEL, the C1 controls, the characters that change the writing direction,
    and the surrogates that represent undecodable bytes.
    """
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


class _Sink:
    """Writes finished lines, each in one call.

    A line that cannot be written is lost: a full disk under the log must not stop a batch, and the receipt has the same
    figures.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def _write(self, line: str) -> None:
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except OSError:
            return

    debug = info = warning = error = critical = _write


def _leads_to_journal(stream: TextIO) -> bool:
    """Return whether JOURNAL_STREAM (device and inode, see systemd.exec(5)) names ``stream``: not if redirected."""
    try:
        facts = os.fstat(stream.fileno())
    except (OSError, ValueError):  # the stream has no file, or it is closed
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{facts.st_dev}:{facts.st_ino}"


def _add_hint(_logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Add the remedy as a hint to each warning and error without a hint."""
    if method in ("warning", "error") and not event.get("hint") and event["event"] in BY_EVENT:
        event["hint"] = BY_EVENT[event["event"]]
    return event


def _refuse_unknown_event(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    if line.get("event") not in EVENTS:
        raise ProgramError(f"no log event of this name is registered: {line.get('event')!r}")
    return line


def _add_time(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    line["ts"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
    return line


def _tell_exception(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    """Replace ``exc_info`` by the exception, its causes and where it was raised."""
    given = line.pop("exc_info", None)
    error = given if isinstance(given, BaseException) else sys.exc_info()[1] if given else None
    if error is None:
        return line
    line["exception"] = _told(error)
    line["exception_causes"] = [_told(cause) for cause in _causes(error)]
    line["exception_at"] = [
        f"{'/'.join(PurePath(frame.filename).parts[-2:])}:{frame.lineno} {frame.name}"
        for frame in reversed(traceback.extract_tb(error.__traceback__))
    ]
    return line


def _told(error: BaseException) -> str:
    """Return the exception's kind and, if its message cannot contain a value of a row, the message."""
    kind = type(error).__qualname__
    safe = isinstance(error, DistilldError | OSError) or type(error).__module__ == "sqlite3"
    return f"{kind}: {error}" if safe else kind


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen = {id(error)}
    cause = error.__cause__ or error.__context__
    while cause is not None and id(cause) not in seen:
        yield cause
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__


def _json_line(_logger: WrappedLogger, _method: str, line: EventDict, *, priority: bool) -> str:
    """Render a line as one JSON object in ASCII: ts, level, event and batch_id first, then the rest in given order."""
    prefix = f"<{_PRIORITIES[line['level']]}>" if priority else ""
    return prefix + _fitted(line, _as_json, MAX_LINE_BYTES - len(prefix) - 1)


class _ConsoleLine:
    """Renders a line for people: time, level, event, then key=value in colours, without zero or empty values."""

    def __init__(self, *, colors: bool) -> None:
        from structlog.dev import ConsoleRenderer

        self._renderer = ConsoleRenderer(
            colors=colors, sort_keys=False, timestamp_key="ts", pad_event_to=_EVENT_COLUMNS, pad_level=True
        )

    def __call__(self, logger: WrappedLogger, method: str, line: EventDict) -> str:
        def render(values: Mapping[str, Any]) -> str:
            values = _in_short(values) if values["event"] == "batch_committed" else values
            shown = {
                printable(key): value if key in _FIRST_KEYS else _console_value(value)
                for key, value in values.items()
                if value or isinstance(value, bool)
            }
            shown["ts"] = str(values["ts"])[len("2026-01-01T") : -1]
            return self._renderer(logger, method, shown).rstrip()

        return _fitted(line, render, MAX_LINE_BYTES - 1)


def _in_short(batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the main figures of a batch, for a line of 120 columns; its receipt has the rest."""
    shown = {key: batch.get(key) for key in ("ts", "level", "event", "trigger")}
    shown |= {"ms": batch.get("duration_ms"), "judged": batch.get("rows_judged")}
    for dataset in Dataset:
        figures = (("+", batch.get(f"{dataset}_appended")), ("-", batch.get(f"{dataset}_withdrawn")))
        shown[dataset] = "".join(f"{sign}{rows}" for sign, rows in figures if rows)
    return shown if batch.get("validation_pass", True) else shown | {"validation_pass": False}


@dataclass(frozen=True, slots=True)
class _Limits:
    """How much of a line is kept: characters of a text, items of a list or mapping, levels of nesting."""

    characters: int
    items: int
    levels: int


_LIMITS: Final = (
    _Limits(8_000, 500, 8),
    _Limits(2_000, 100, 6),
    _Limits(500, 30, 4),
    _Limits(120, 10, 3),
    # Always short enough: only time, level, event and batch_id, and nothing nested.
    _Limits(40, 4, 1),
)
_FIRST_KEYS: Final = ("ts", "level", "event", "batch_id")
_EVENT_COLUMNS: Final = 20


def _fitted(line: EventDict, render: Callable[[Mapping[str, Any]], str], most_bytes: int) -> str:
    """Render ``line`` with the widest limits under which it has at most ``most_bytes`` bytes."""
    ordered = {key: line[key] for key in _FIRST_KEYS if key in line} | dict(line)
    text = ""
    for limits in _LIMITS:
        text = render(_bounded_mapping(ordered, limits, limits.levels))
        if len(text.encode()) <= most_bytes:
            break
    return text


def _bounded(value: object, limits: _Limits, levels: int) -> object:
    """Return ``value`` as JSON can represent it, within ``limits``; of any other value only the type."""
    match value:
        case Enum():
            return _bounded(value.value, limits, levels)
        case None | bool():
            return value
        case int():
            return value if abs(value) < 1 << 63 else "<int>"
        case float():
            return value if math.isfinite(value) else str(value)
        case str() | PurePath():
            return _bounded_text(str(value), limits)
        case Mapping() if levels > 0:
            return _bounded_mapping(value, limits, levels)
        case list() | tuple() if levels > 0:
            kept = [_bounded(item, limits, levels - 1) for item in value[: limits.items]]
            return kept if len(value) <= limits.items else [*kept, _more(len(value) - limits.items)]
    return f"<{type(value).__qualname__}>"


def _bounded_mapping(value: Mapping[Any, Any], limits: _Limits, levels: int) -> dict[str, object]:
    kept = {
        _bounded_text(str(key), limits): _bounded(item, limits, levels - 1)
        for key, item in islice(value.items(), limits.items)
    }
    return kept if len(value) <= limits.items else {**kept, "...": _more(len(value) - limits.items)}


def _bounded_text(text: str, limits: _Limits) -> str:
    whole = text[: limits.characters].encode("utf-8", "backslashreplace").decode()
    return whole if len(text) <= limits.characters else whole + _more(len(text) - limits.characters)


def _more(count: int) -> str:
    return f"... [{count} more]"


def _as_json(line: Mapping[str, Any]) -> str:
    # json does not escape DEL; it can only be inside a string here, where its escape means the same.
    return json.dumps(line, ensure_ascii=True, separators=(",", ":")).replace("\x7f", "\\u007f")


def _console_value(value: object) -> str:
    return printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":")))
