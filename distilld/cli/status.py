"""``distilld status`` and ``distilld health``: the state of the lake in words, and for a monitor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime

import click

from distilld.cli.commands import Common, ExitCode, common_options, json_option
from distilld.cli.output import HOW_TO_LIST_ALL, PROBLEMS_SHOWN, print_json, say, say_block, say_coloured, show
from distilld.cli.settings import load_settings
from distilld.core.model import DATASET_PATHS
from distilld.inspection.problem import UNKNOWN, Problem, not_known
from distilld.inspection.status import Status, diagnose, look
from distilld.store.receipts import BatchRecord
from distilld.tables import Cell, Size, Table, counted


@click.command()
@common_options
@json_option
def status(common: Common, as_json: bool) -> None:
    """Say whether the lake is healthy; show the writer, the datasets, and how far the input is read.

    Each problem is shown in words, with the command that resolves it. Changes nothing.
    """
    found = look(load_settings(common))
    if as_json:
        print_json(found)
    else:
        _print(found)


@click.command()
@click.option("--no-daemon", is_flag=True, help="Do not check whether a daemon runs and when it last scanned.")
@common_options
@json_option
def health(common: Common, no_daemon: bool, as_json: bool) -> ExitCode:
    """Check whether the lake is healthy, for a monitor: exit code 0 if it is, else 1 and each reason on a line.

    Unhealthy: no writer runs; the last batch failed; a recovery is pending; the tripwire retains rows; an export was
    changed or set aside; a withdrawal is overdue; an input cannot be read; the last scan is older than three rescan
    periods. Each reason names the command that resolves it. Changes nothing.
    """
    settings = load_settings(common)
    try:
        problems = diagnose(settings, daemon=not no_daemon)
    except UNKNOWN as error:
        if as_json:
            print_json({"healthy": False, "problems": [not_known(error)]})
        raise
    if as_json:
        print_json({"healthy": not problems, "problems": problems})
    elif problems:
        _say_problems("unhealthy", problems)
    else:
        say("healthy")
    return ExitCode.FAILED if problems else ExitCode.DONE


def _print(found: Status) -> None:
    if found.problems:
        say_coloured(f"unhealthy: {', '.join(dict.fromkeys(each.name for each in found.problems))}", "red")
    elif found.writer_runs or found.timer:
        say_coloured("healthy", "green")
    else:
        say_coloured("healthy as of the last run, and no distilld is running", "yellow")
    _say_problems("problem", found.problems)
    for label, text in _facts(found):
        say(f"{label:<12} {text}")
    say()
    if rows := _datasets(found):
        columns = ("dataset", "rows", "last hour", "last day", "quarantined", "retained", "size")
        show(Table("Datasets", columns, rows))
    for note in found.notes:
        say(f"note: {note}")
    for stray in found.strays:
        head = f"note: {counted(stray.entries, 'path')} in data/ can be no partition: {stray.kind}"
        say_block(head, [("such as", stray.example)])


def _say_problems(label: str, problems: list[Problem]) -> None:
    """Print a line for each problem, but count those of one name that are too many for a screen."""
    by_name: dict[str, list[Problem]] = {}
    for problem in problems:
        by_name.setdefault(problem.name, []).append(problem)
    for name, alike in by_name.items():
        for problem in alike[:PROBLEMS_SHOWN]:
            say(f"{label}: {problem.text}; what to do: {problem.remedy}")
        if more := len(alike[PROBLEMS_SHOWN:]):
            say(f"{label}: {more:,} more are {name}; what to do: {HOW_TO_LIST_ALL}")


def _facts(found: Status) -> Iterator[tuple[str, str]]:
    yield "root", str(found.root)
    yield "state", str(found.state)
    yield "writer", _writer(found)
    if found.last_batch is not None:
        yield "last batch", _batch(found.last_batch)
    if found.lag is not None:
        yield "lag", _lag(found)
    if found.pending_tails:
        first = found.pending_tails[0]
        others = f" and {len(found.pending_tails) - 1:,} more" if len(found.pending_tails) > 1 else ""
        yield "unfinished", f"the last line of {first.path} ({Size(first.bytes)}){others}"
    if found.trees:
        files = " and ".join(f"{each.present:,} {each.kind}" for each in found.trees)
        malformed = counted(sum(each.malformed_lines for each in found.trees), "malformed line")
        yield "input", f"{files} files, {Size(sum(each.size_bytes for each in found.trees))}, {malformed}"
    sizes = [f"{name.replace('_', ' ')} {Size(size)}" for name, size in found.sizes.items() if size]
    yield "disk", ", ".join(sizes) or "nothing yet"


def _datasets(found: Status) -> list[tuple[Cell, ...]]:
    quarantined: Counter[str] = Counter()
    for each in found.quarantine:
        quarantined[str(each.dataset)] += each.rows
    return [
        (
            each.name, each.rows, *(_change(each.rows, then.get(each.name)) for then in found.rows_before.values()),
            quarantined[each.name], each.retained, Size(each.committed_bytes),
        )
        for each in found.exports
        if each.name in {dataset.value for dataset in DATASET_PATHS}
    ]  # fmt: skip


def _change(now: int, then: int | None) -> str:
    return "-" if then is None else f"{now - then:+,}"


def _ago(moment: str) -> str:
    """Return how long ago a moment was, in words; if it is yet to come, the clock was set back since."""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    for name, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name} ago"
    return f"at {moment}, by a clock that was ahead" if seconds <= -1 else f"{max(seconds, 0):.0f} s ago"


def _batch(last: BatchRecord) -> str:
    done = f"{last.rows_exported:,} exported, {last.rows_quarantined:,} quarantined"
    gone = f"{last.rows_withdrawn:,} withdrawn or replaced"
    return f"{_ago(last.recorded_at)} (trigger {last.trigger}): {done}, {gone}"


def _writer(found: Status) -> str:
    if not found.writer.running:
        return "none is running"
    if not found.writer_runs:
        return "none is running, and some other program holds the lake's lock"
    said = "running" if found.writer.pid is None else f"running, pid {found.writer.pid}"
    if not found.daemon_runs:
        return said
    vitals = found.vitals
    how = {None: "", "events": ", watching"}.get(vitals.watching, f", scanning only ({vitals.watching})")
    scanned = "the first scan is under way"
    if vitals.last_scan_at is not None:
        scanned = f"scanned {_ago(vitals.last_scan_at)}, at least every {found.rescan_seconds:g} s"
    return f"the daemon, pid {found.writer.pid}{how}; {scanned}"


def _lag(found: Status) -> str:
    lag = found.lag
    if lag is None or not (lag.new_files or lag.changed_files or lag.gone_files):
        return "none: every file is read as it is"
    text = (
        f"{lag.new_files:,} new, {lag.changed_files:,} changed and {lag.gone_files:,} missing files,"
        f" {Size(lag.unread_bytes)} not read yet"
    )
    return f"{text}, for {lag.seconds:,.0f} s" if lag.new_files or lag.changed_files else text
