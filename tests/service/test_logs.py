"""The log: its form, its closed list of events, and that nothing in a value can break or bloat a line."""

from __future__ import annotations

import ast
import errno
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TextIO, get_args

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distilld import logs
from distilld.config import settings as config
from distilld.core.model import Category, OperatorError, ProgramError

REPOSITORY = Path(__file__).parents[2]

NASTY = "a\x00\x07\b\x1b[31m\r\n\x7f\x85\x9b\u200f\u202e\u2028\u2029\u2066\ufeff\udcffz"

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


@pytest.fixture(autouse=True)
def _fresh_log() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def told(*, fmt: logs.Format = "json", event: str = "dry_run", **values: Any) -> str:
    """The line that one event with ``values`` gives, without its end."""
    stream = io.StringIO()
    logs.configure(level="debug", fmt=fmt, stream=stream)
    logs.get_logger().info(event, **values)
    text = stream.getvalue()
    assert text.endswith("\n")
    return text[:-1]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_line_is_one_json_object_with_time_level_and_event_first() -> None:
    """A line begins with ts (UTC, milliseconds), level and event, and then has the values as they were given."""
    line = told(rows=3, partition="2026/01/02/a.jsonl", by_reason={"empty_content": 1})
    assert re.match(r'\{"ts":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z","level":"info","event":"dry_run","rows":3,', line)
    assert list(json.loads(line)) == ["ts", "level", "event", "rows", "partition", "by_reason"]
    assert json.loads(line)["by_reason"] == {"empty_content": 1}


def test_every_event_that_warns_says_what_to_do() -> None:
    """A warning without a hint of its own gets the one of its event, and one that has a better one keeps that.

    The story: at night the log said that the tripwire had tripped, and neither what of it nor what to do.
    """
    stream = io.StringIO()
    logs.configure(level="info", fmt="json", stream=stream)
    logs.get_logger().error("tripwire_tripped", dataset="rag", rows=7)
    logs.get_logger().error("batch_failed", problem="no room", hint="make room")
    logs.get_logger().info("up_to_date")
    tripped, failed, fine = map(json.loads, stream.getvalue().splitlines())
    assert tripped["hint"].startswith("distilld prune --vanished --yes withdraws them")
    assert failed["hint"] == "make room"
    assert "hint" not in fine


def test_batch_id_stands_on_every_line_of_a_batch() -> None:
    """Whoever writes a line within a batch writes its id, and nobody writes it afterwards."""
    stream = io.StringIO()
    logs.configure(level="info", fmt="json", stream=stream)
    ours, theirs = logs.get_logger(), logs.get_logger()
    with logs.lines_of_batch("20260102T030405006Z"):
        ours.info("batch_started", rows=1)
        theirs.warning("settling")
    ours.info("up_to_date")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line.get("batch_id") for line in lines] == ["20260102T030405006Z"] * 2 + [None]
    assert list(lines[0]) == ["ts", "level", "event", "batch_id", "rows"]


def test_level_decides_what_is_written() -> None:
    """Events below the configured level are left out; the level may change while loggers live on."""
    stream = io.StringIO()
    logs.configure(level="warning", fmt="json", stream=stream)
    logger = logs.get_logger()
    logger.info("up_to_date")
    logger.warning("settling")
    logs.configure(level="debug", fmt="json", stream=stream)
    logger.debug("scan_finished")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["settling", "scan_finished"]


@pytest.mark.parametrize("name", ["batch_comitted", "", "Batch committed"])
def test_unknown_event_is_a_bug(name: str) -> None:
    """An event that is not registered raises instead of being written."""
    with pytest.raises(ProgramError, match="no log event"):
        told(event=name)


def test_every_event_has_a_stable_name() -> None:
    """Event names are snake_case."""
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", name) for name in logs.EVENTS)


def test_source_logs_exactly_the_registered_events() -> None:
    """Every event that the program's source names is registered, and named by a literal; and none stands there idly."""
    logged = set()
    levels = {"debug", "info", "warning", "error", "critical", "exception"}
    for path in sorted((REPOSITORY / "distilld").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="log" | "logger"), attr=attr), args=[name, *_]):
                    if attr in levels:
                        assert isinstance(name, ast.Constant), f"{path}:{node.lineno}"
                        assert name.value in logs.EVENTS, f"{path}:{node.lineno}"
                        logged.add(name.value)
    assert logged == logs.EVENTS


def test_docs_list_every_event() -> None:
    """The table in docs/logs.md has exactly the registered events, each once."""
    text = (REPOSITORY / "docs" / "logs.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `([a-z_]+)` \| .+ \|$", text, flags=re.MULTILINE)) == sorted(logs.EVENTS)


@pytest.mark.parametrize("fmt", ["json", "console"])
@pytest.mark.parametrize("value", [NASTY, [NASTY], {"k": NASTY}, {NASTY: 1}, PurePosixPath(NASTY)])
def test_no_value_can_steer_a_terminal(fmt: logs.Format, value: object) -> None:
    """Control characters, line ends, C1, DEL and signs that turn the writing direction are escaped in both forms."""
    line = told(fmt=fmt, value=value)
    assert line.isprintable()
    assert line.count("dry_run") == 1


def test_json_line_gives_the_value_back() -> None:
    """What was escaped in a json line is the same text again for its reader; half surrogates become their escape."""
    assert json.loads(told(value=NASTY))["value"] == NASTY.replace("\udcff", "\\udcff")


# The first text of a fresh checkout is slow: hypothesis builds its table of characters.
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(values=st.dictionaries(st.sampled_from(["a", "b", "c"]), JSON_VALUES))
def test_every_line_is_short_valid_and_printable(values: dict[str, Any]) -> None:
    """Whatever the values are, a json line is strict ASCII JSON and both forms print and keep to the limit."""
    line = told(**values)
    json.loads(line, parse_constant=pytest.fail)
    for text in (line, told(fmt="console", **values)):
        assert text.isprintable()
        assert len(text.encode()) < logs.MAX_LINE_BYTES
    assert line.isascii()


@pytest.mark.parametrize("fmt", ["json", "console"])
@pytest.mark.parametrize(
    "values",
    [
        {"text": "x" * 1_000_000},
        {"text": "\x01" * 1_000_000},
        {"text": "\N{PILE OF POO}" * 1_000_000},
        {"many": list(range(1_000_000))},
        {"many": ["\N{PILE OF POO}" * 10_000] * 10_000},
        {"wide": {f"key{number}": "y" * 100 for number in range(100_000)}},
        {f"key{number}": "y" * 100 for number in range(10_000)},
        {"k" * 1_000_000: 1},
        {"deep": json.loads("[" * 500 + "]" * 500)},
        {"batch_id": "b" * 1_000_000, "text": "x" * 1_000_000},
    ],
)
def test_long_line_is_cut_and_stays_valid(fmt: logs.Format, values: dict[str, Any]) -> None:
    """A line of 40,000 bytes is the longest there is: texts and lists are cut, and what is missing is counted."""
    line = told(fmt=fmt, **values)
    assert len(line.encode()) + 1 <= 40_000
    if fmt == "json":
        assert list(json.loads(line))[:3] == ["ts", "level", "event"]


def test_cut_says_how_much_is_missing() -> None:
    """A cut text ends with the count of characters left out, a cut list with that of items."""
    line = json.loads(told(text="x" * 9_000, many=list(range(1_000))))
    assert line["text"] == "x" * 8_000 + "... [1000 more]"
    assert line["many"][-2:] == [499, "... [500 more]"]


def test_short_values_survive_beside_a_long_one() -> None:
    """A long value costs the figures beside it nothing."""
    line = json.loads(told(rows=12, long=["\x01" * 10_000] * 100, partition="2026/01/02/a.jsonl"))
    assert (line["rows"], line["partition"]) == (12, "2026/01/02/a.jsonl")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Category.ACCEPTED, "accepted"),
        (Path("/lake/data"), "/lake/data"),
        ((1, "a"), [1, "a"]),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (1 << 70, "<int>"),
        (b"row text", "<bytes>"),
        (object(), "<object>"),
        (None, None),
        (True, True),
    ],
)
def test_value_that_json_does_not_know(value: object, expected: object) -> None:
    """Paths, enums and tuples are written as text and lists; what is no plain value shows its type alone."""
    assert json.loads(told(value=value))["value"] == expected


def test_exception_tells_kind_and_place_but_no_value() -> None:
    """An unexpected exception is told by kind and place: its message could hold text of a row."""
    stream = io.StringIO()
    logs.configure(level="info", fmt="json", stream=stream)
    try:
        try:
            dict[str, str]()["secret row text"]
        except KeyError as error:
            raise ValueError("secret row text") from error
    except ValueError:
        logs.get_logger().exception("batch_failed")
    line = json.loads(stream.getvalue())
    assert line["level"] == "error"
    assert (line["exception"], line["exception_causes"]) == ("ValueError", ["KeyError"])
    assert re.fullmatch(r"service/test_logs\.py:\d+ test_exception_\w+", line["exception_at"][0])
    assert "secret" not in stream.getvalue()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OperatorError("the disk is full"), "OperatorError: the disk is full"),
        (OSError(errno.ENOSPC, "No space left", "/lake"), "OSError: [Errno 28] No space left: '/lake'"),
    ],
)
def test_exception_that_holds_no_row_tells_its_message(error: Exception, expected: str) -> None:
    """The program's own errors and the system's are told with their message."""
    assert json.loads(told(exc_info=error))["exception"] == expected


def test_line_without_an_exception_has_no_trace_of_one() -> None:
    """exc_info outside an except block adds nothing."""
    assert list(json.loads(told(exc_info=True))) == ["ts", "level", "event"]


def test_console_line_is_for_people() -> None:
    """The console form is time, level, event and key=value; what is zero or empty is left out."""
    line = told(
        fmt="console", rows=3, path="a/b.jsonl", note="two words", nothing="", ok=False, none=None, zero=0, many=[1, 2]
    )
    assert re.sub(r"^\d\d:\d\d:\d\d\.\d{3} ", "T ", line) == (
        "T [info     ] dry_run              rows=3 path=a/b.jsonl note='two words' ok=false many=[1,2]"
    )


def test_batch_is_one_line_of_a_console() -> None:
    """A batch took five lines of a terminal; what its receipt says is left out, and no figure of a dataset that stayed."""
    figures = {
        f"{name}_{key}": 98_765 for name in ("rag", "preference") for key in ("appended", "rows", "quarantine_rows")
    }
    out = io.StringIO()
    logs.configure(level="info", fmt="console", stream=out)
    logs.get_logger().info(
        "batch_committed", batch_id="20260427T035740.123Z", run_id="20260427T035740.123Z", sequence=7, trigger="rescan",
        duration_ms=12_345, inputs=3, rows_indexed=5, rows_judged=98_765, bytes_read=9, **figures, rag_withdrawn=12,
        sft_appended=0, validation_pass=True, receipt_sha256="a" * 64, run_withdrawn={"revoked": 12}, withdrawn_runs=["r"],
    )  # fmt: skip
    (line,) = out.getvalue().splitlines()
    assert len(line) <= 120
    assert line.split("batch_committed")[1].split() == [
        "trigger=rescan", "ms=12345", "judged=98765", "rag=+98765-12", "preference=+98765"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("stream", "environ", "colored"),
    [(Terminal, {}, True), (Terminal, {"NO_COLOR": "1"}, False), (io.StringIO, {}, False)],
)
def test_console_line_has_colors_on_a_terminal_alone(
    stream: type[io.StringIO], environ: dict[str, str], colored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Colours are for a terminal, unless NO_COLOR asks for none."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    out = stream()
    logs.configure(level="info", fmt="console", stream=out)
    logs.get_logger().warning("dry_run", rows=3)
    assert ("\x1b[" in out.getvalue()) == colored


@pytest.mark.parametrize(
    ("fmt", "stream", "json_form"),
    [
        ("auto", io.StringIO, True),
        ("auto", Terminal, False),
        ("json", Terminal, True),
        ("console", io.StringIO, False),
    ],
)
def test_auto_is_console_on_a_terminal_only(fmt: logs.Format, stream: type[io.StringIO], json_form: bool) -> None:
    """auto writes the console form to a terminal and json everywhere else; the other two are what they say."""
    out = stream()
    logs.configure(level="info", fmt=fmt, stream=out)
    logs.get_logger().info("up_to_date")
    assert out.getvalue().startswith("{") is json_form


def journal_stream(file: TextIO) -> str:
    """What JOURNAL_STREAM is if ``file`` leads to the journal."""
    facts = os.fstat(file.fileno())
    return f"{facts.st_dev}:{facts.st_ino}"


@pytest.mark.parametrize(
    ("method", "prefix"), [("debug", "<7>{"), ("info", "<6>{"), ("warning", "<4>{"), ("error", "<3>{")]
)
def test_journal_line_begins_with_its_priority(
    tmp_path: Path, method: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into the journal, json lines carry the level as sd-daemon's priority."""
    with (tmp_path / "log").open("w+") as file:
        monkeypatch.setenv("JOURNAL_STREAM", journal_stream(file))
        logs.configure(level="debug", fmt="json", stream=file)
        getattr(logs.get_logger(), method)("scan_finished", text="\x01" * 100_000)
        file.seek(0)
        line = file.read()
    assert line.startswith(prefix)
    assert len(line.encode()) <= logs.MAX_LINE_BYTES


def test_redirected_or_console_line_has_no_priority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that is not the journal's, and the console form, get no priority."""
    with (tmp_path / "log").open("w") as file, (tmp_path / "journal").open("w") as journal:
        for fmt, named in [("json", journal_stream(journal)), ("console", journal_stream(file)), ("json", "")]:
            monkeypatch.setenv("JOURNAL_STREAM", named)
            logs.configure(level="info", fmt=fmt, stream=file)  # type: ignore[arg-type]
            logs.get_logger().info("up_to_date")
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    logs.configure(level="info", fmt="json", stream=(buffer := io.StringIO()))
    logs.get_logger().info("up_to_date")
    assert "<" not in (tmp_path / "log").read_text() + buffer.getvalue()


class FullDisk(io.StringIO):
    """A stream that cannot be written."""

    def write(self, _text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_log_that_cannot_be_written_stops_nothing() -> None:
    """A line that cannot be written is lost, and the caller goes on."""
    logs.configure(level="info", fmt="json", stream=FullDisk())
    logs.get_logger().error("batch_failed")


def test_line_is_written_in_one_piece() -> None:
    """A line and its end are one write, so lines of several processes do not mix."""

    class Counting(io.StringIO):
        writes = 0

        def write(self, text: str) -> int:
            Counting.writes += 1
            return super().write(text)

    logs.configure(level="info", fmt="json", stream=Counting())
    logs.get_logger().info("up_to_date")
    assert Counting.writes == 1


def test_unconfigured_log_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    """A line written before anybody set the log up goes to standard error, never among a command's output."""
    logs.get_logger().info("up_to_date")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["event"] == "up_to_date"


def test_settings_and_log_agree_on_levels_and_formats() -> None:
    """The levels and formats that the settings allow are those that the log knows."""
    assert get_args(config.LogLevel) == get_args(logs.Level)
    assert get_args(config.LogFormat) == get_args(logs.Format)


@pytest.mark.parametrize(("text", "expected"), [("a b", "a b"), ("a\nb", "a\\nb"), ("\x1b\u202e", "\\x1b\\u202e")])
def test_printable_text_is_one_safe_line(text: str, expected: str) -> None:
    """printable leaves what prints and escapes the rest."""
    assert logs.printable(text) == expected
