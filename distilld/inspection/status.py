"""The state of a lake, for ``status`` and ``health`` (SPEC 5). Only reads, also while a writer runs."""

from __future__ import annotations

import glob
import json
import os
import shlex
import time
from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from distilld.config.settings import Settings
from distilld.core.model import (
    CARD,
    CARD_MARKER,
    EXPORT_PATHS,
    HOUR_NS,
    REPORTS,
    SET_ASIDE,
    TAMPERINGS_AN_HOUR,
    InputKind,
)
from distilld.core.remedies import BY_EVENT
from distilld.files.regular import read_regular
from distilld.inspection.export_faults import changed_exports
from distilld.inspection.input_faults import Lag, look_at_inputs, remedy_of_input
from distilld.inspection.problem import Problem
from distilld.lake.scan import TREES, Stray, tree_path
from distilld.lake.source_files import REMEDY_OF_ROOT, is_root
from distilld.service.health_record import Vitals, read_vitals, seconds_of
from distilld.service.lock import LOCK_FILE, Holder, find_holder, holder
from distilld.service.schedule import LONGEST_RETRY_SECONDS
from distilld.store.connection import Store, is_kept
from distilld.store.export_records import ExportRecords
from distilld.store.inputs import FileRecord, Inputs
from distilld.store.queries import QuarantineCount, TreeSummary, Views, reading
from distilld.store.receipts import BatchRecord, Receipts
from distilld.store.retained import Retained
from distilld.store.work import Waiting, Work
from distilld.tables import Size, counted

PERIODS: Final = 3
"""After this many rescan periods without a scan, a running daemon is reported as hanging."""
_AGES: Final = (("hour", timedelta(hours=1)), ("day", timedelta(days=1)))
SCRUB_LATE: Final = 1.2
"""A file that was not hashed again for this many times ``scrub_hours`` is reported."""
_RUN: Final = "distilld run --once"


@dataclass(frozen=True, slots=True)
class ExportState:
    """One of the nine exports as of the last commit. While a writer runs, readers stop at ``committed_bytes``."""

    name: str
    path: str
    rows: int
    committed_bytes: int
    retained: int = 0


@dataclass(frozen=True, slots=True)
class PendingTail:
    """A partition file whose last line is unfinished, and the length of that line."""

    path: str
    bytes: int


@dataclass(slots=True)
class Status:
    """Everything that ``status`` shows; without a store, only what is found on the disk."""

    root: Path
    state: Path
    writer: Holder
    sizes: dict[str, int]
    """The sizes of distilld's own files in bytes; to know them, every receipt is looked at."""
    rescan_seconds: float
    timer: bool
    """Whether distilld is configured to run by a timer, not as a daemon."""
    last_batch: BatchRecord | None = None
    rows_before: dict[str, dict[str, int]] = field(default_factory=dict)
    """Rows of each dataset an hour and a day ago, if known."""
    exports: list[ExportState] = field(default_factory=list)
    retained: dict[str, int] = field(default_factory=dict)
    """Exported rows and pairs that no present input gives any more, by kind."""
    kept_by_tripwire: dict[str, int] = field(default_factory=dict)
    quarantine: list[QuarantineCount] = field(default_factory=list)
    trees: list[TreeSummary] = field(default_factory=list)
    lag: Lag | None = None
    waiting: Waiting = field(default_factory=lambda: Waiting(0, 0, 0, 0))
    strays: tuple[Stray, ...] = ()
    """What is in the input trees and is no partition."""
    pending_tails: list[PendingTail] = field(default_factory=list)
    vitals: Vitals = field(default_factory=Vitals)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def writer_runs(self) -> bool:
        """Return whether a writer runs; another program may hold its lock."""
        return self.writer.running and not self.writer.foreign

    @property
    def daemon_runs(self) -> bool:
        """Return whether the running writer is a daemon, not a command that will end."""
        return self.writer_runs and self.writer.pid is not None and self.writer.pid == self.vitals.pid


def look(settings: Settings, *, sizes: bool = True) -> Status:
    """Return the state of the lake, its store and its exports. ``sizes`` false leaves out those of distilld's files.

    Raises:
        OperatorError: The store or the lock cannot be read.
        UsageError: The store is from a newer version, or belongs to another root.
    """
    found = Status(
        settings.root,
        settings.state,
        holder(settings.root),
        _sizes(settings) if sizes else {},
        settings.rescan_seconds,
        settings.writer == "timer",
    )
    if found.writer.state not in (None, settings.state) and os.path.exists(found.writer.state):
        text = f"the lake is kept with the state store {found.writer.state}, and this looks at {settings.state}"
        found.problems.append(Problem("other_store", text, f"give --state {shlex.quote(str(found.writer.state))}"))
    files: dict[tuple[InputKind, str], FileRecord] = {}
    if is_kept(settings.state):
        with reading(settings.state, settings.root) as store:
            files = Inputs(store).files()
            _ask_store(found, store, settings)
        found.problems += _overdue(found, settings, time.time())
    elif not found.problems:
        found.problems.append(_without_store(found))
    inputs = look_at_inputs(settings.root, settings.state, files)
    found.lag, found.strays = inputs.lag, inputs.strays
    found.problems += inputs.problems
    if inputs.empty:
        found.problems.append(_without_inputs(found, known=bool(files)))
    found.notes += _foreign_cards(settings.root)
    found.problems += _set_aside(found)
    found.problems += _of_writer(found, inputs.told)
    return found


def diagnose(settings: Settings, *, daemon: bool = True) -> list[Problem]:
    """Return every problem that makes the lake unhealthy, each with its remedy; none if it is healthy.

    What ``status`` calls a problem is one, and that no daemon runs. If ``settings.writer`` is 'timer', no daemon is
    missed. ``daemon`` false also leaves out when the last scan was.

    Raises:
        OperatorError: The store or the lock cannot be read.
        UsageError: The store is from a newer version, or belongs to another root.
    """
    found = look(settings, sizes=False)
    if not daemon:
        return [each for each in found.problems if each.name not in {"scan_overdue", "run_overdue"}]
    if not (found.timer or found.writer.running):
        remedy = 'systemctl start distilld, or distilld run; where a timer runs distilld: set writer = "timer"'
        found.problems.append(Problem("no_writer", "no distilld is running", f"{remedy}, or ask with --no-daemon"))
    return found.problems


def _foreign_cards(root: Path) -> Iterator[str]:
    folders = ("exports", *dict.fromkeys(path.rpartition("/")[0] for path in EXPORT_PATHS.values()))
    for folder in folders:
        try:
            ours = CARD_MARKER.encode() in read_regular(root / folder / CARD)
        except FileNotFoundError:
            continue
        except OSError:
            ours = False
        if not ours:
            yield (
                f"{folder}/{CARD} is not distilld's and is left alone; loaders may have to guess the types:"
                " take it away, and the next run writes the dataset card"
            )


def _set_aside(found: Status) -> Iterator[Problem]:
    if any(folders or files for _, folders, files in os.walk(found.root / SET_ASIDE)):
        size = Size(_bytes_below(found.root / SET_ASIDE))
        text = f"{SET_ASIDE} holds what was found in place of exports ({size})"
        yield Problem("set_aside", text, f"look at it, then rm -r {shlex.quote(str(found.root / SET_ASIDE))}")
    if corrupt := _stores_set_aside(found.state):
        names = " ".join(shlex.quote(str(each)) for each in corrupt)
        yield Problem(
            "store_set_aside",
            "the state store was corrupt, or older than the exports, and was rebuilt;"
            f" what was found is kept in {counted(len(corrupt), 'file')}",
            f"see store_set_aside in the log, have the disk checked if it was corrupt, then rm {names}",
        )


def _stores_set_aside(state: Path) -> list[Path]:
    return sorted(state.parent.glob(f"{glob.escape(state.name)}.corrupt-*"))


def _of_writer(found: Status, told: Container[str]) -> Iterator[Problem]:
    """Yield what the last writer recorded: a failure, rows it could not withdraw, inputs it could not read.

    Inputs whose paths are in ``told`` are left out.
    """
    if found.writer.running and found.writer.foreign:
        path = found.root / LOCK_FILE
        yield Problem("lock_held", f"no distilld runs, and some other program holds {path}", find_holder(path))
    failure, trouble = found.vitals.failure, found.writer.trouble
    then = "it is tried again" if found.daemon_runs else f"then {_RUN}"
    if failure is not None:
        text = f"the last batch failed, {counted(failure.tries, 'time')} since {failure.since}: {failure.text}"
        yield Problem("last_batch_failed", text, f"{failure.hint or 'see the log'} ({then})")
    elif trouble is not None:
        text, remedy = f"the last run failed: {trouble}", found.writer.remedy or "see the log"
        if found.writer_runs:
            text = f"the daemon cannot write to its store: {trouble}"
        yield Problem("last_batch_failed", text, f"{remedy} ({then})")
    if found.vitals.overdue_since is not None:
        text = f"rows that must leave a dataset have stood there since {found.vitals.overdue_since}"
        yield Problem("withdrawal_overdue", text, "put right what the last batch failed of; until then, do not train")
    for each in found.vitals.unreadable:
        if each.path not in told:
            text = f"{each.path} {each.problem}, since {each.since}"
            # A folder's path ends in a slash. This user may list it, but the user that distilld runs as may not.
            name = "not_listed" if each.path.endswith("/") else "not_read"
            of_input = remedy_of_input(each.problem, "make it readable for distilld's user")
            yield Problem(name, text, REMEDY_OF_ROOT if is_root(each.path) else of_input)


def _overdue(found: Status, settings: Settings, now: float) -> Iterator[Problem]:
    """Yield that a daemon has not scanned for long; or, if no writer runs, that the timer's runs have not."""
    limit, failure = PERIODS * settings.rescan_seconds, found.vitals.failure
    due = f"one is due every {settings.rescan_seconds:g} s"
    scanned = _age(found.vitals.last_scan_at, now)
    if found.daemon_runs:
        if found.writer.trouble is not None:
            return  # the store takes no times
        signs = [scanned, _age(found.vitals.started_at, now)]
        if failure is not None:
            # A try may fail before it scans, and the pauses grow.
            signs.append(_age(failure.at, now))
            limit = max(limit, PERIODS * LONGEST_RETRY_SECONDS)
        # A time in the future was recorded before the clock was set back. It is ignored.
        age = min((each for each in signs if each is not None and each >= 0), default=0.0)
        if age > limit:
            text = f"the last scan ended {age:.0f} s ago, and {due}"
            yield Problem("scan_overdue", text, "see what the log says last, then systemctl restart distilld")
    elif found.timer and not found.writer_runs and (scanned is None or abs(scanned) > limit):
        text = f"no run has scanned yet, and {due}"
        if scanned is not None:
            text = f"the last scan of a run was at {found.vitals.last_scan_at}, and {due}"
        yield Problem(
            "run_overdue", text, "see systemctl list-timers distilld.timer, then systemctl start distilld-once"
        )


def _age(moment: str | None, now: float) -> float | None:
    return None if moment is None else now - seconds_of(moment)


# what the store says


def _ask_store(found: Status, store: Store, settings: Settings) -> None:
    views, receipts, export_records = Views(store), Receipts(store), ExportRecords(store)
    found.vitals = read_vitals(store)
    found.last_batch = receipts.last_batch()
    now = datetime.now(UTC)
    found.rows_before = {name: views.rows_at((now - age).isoformat(timespec="milliseconds")) for name, age in _AGES}
    found.quarantine = views.quarantine()
    found.trees = views.trees()
    found.waiting = Work(store).waiting()
    found.pending_tails = [PendingTail(tree_path(kind, path), size) for path, kind, size in receipts.pending_tails()]
    records = export_records.exports()
    retained: Counter[str] = Counter()
    for dataset, kind, rows in Retained(store).counts():
        retained[dataset.value] += rows
        found.retained[kind] = found.retained.get(kind, 0) + rows
    found.kept_by_tripwire = Retained(store).kept_by_tripwire()
    found.exports = [
        ExportState(name, EXPORT_PATHS[name], record.committed.rows, record.committed.size, retained[name])
        for name, record in records.items()
    ]
    found.notes += _options_notes(found, views, settings)
    found.notes += _retained_notes(found)
    found.notes += _scrub_note(found, Inputs(store), settings)
    if not (found.writer_runs or found.timer):
        found.notes.append(
            "no distilld is running, so what changes waits for the next run; to have it taken in at once:"
            " systemctl start distilld, or distilld run"
        )
    if found.kept_by_tripwire:
        kept = ", ".join(f"{dataset} {rows}" for dataset, rows in found.kept_by_tripwire.items())
        found.problems.append(
            Problem(
                "tripwire",
                f"so many rows vanished from data/ at once that they stay until somebody decides ({kept})",
                BY_EVENT["tripwire_tripped"],
            )
        )
    if another := _another_writer(export_records):
        found.problems.append(another)
    restored = f"find out who writes there; {'the daemon restores it' if found.daemon_runs else f'then {_RUN}'}"
    for path, fault in changed_exports(settings, store, beside_writer=found.writer_runs):
        found.problems.append(Problem("export_changed", f"{path} {fault.problem}", fault.remedy or restored))
    if found.writer_runs:
        return  # a batch in progress is no fault
    unfinished = export_records.intents() or receipts.unwritten_receipts() or export_records.overwrites_due()
    if unfinished or any(each.pending_temp for each in records.values()):
        text = "a batch was cut off and is neither completed nor undone"
        found.problems.append(Problem("recovery_pending", text, _RUN))
    if found.waiting.anything:
        text = f"{counted(found.waiting.rows, 'row')} and {counted(found.waiting.tasks, 'task')} wait to be judged"
        found.problems.append(Problem("work_waiting", text, _RUN))


def _retained_notes(found: Status) -> Iterator[str]:
    if absent := sum(tree.absent for tree in found.trees):
        rows = counted(found.retained.get("absent", 0) + found.retained.get("evidence absent", 0), "exported row")
        yield f"kept for {counted(absent, 'absent partition file')}: {rows}; distilld prune shows what would go"
    vanished = found.retained.get("vanished", 0)
    if (accepted := vanished - sum(found.kept_by_tripwire.values())) > 0:
        rows = counted(accepted, "exported row")
        yield f"kept for good although they vanished from data/: {rows}; distilld prune shows what would go"
    if orphans := found.retained.get("orphan"):
        rows = counted(orphans, "exported row")
        yield f"kept although no scored row gives them: {rows}; distilld prune --orphans --yes takes them out"


def _scrub_note(found: Status, inputs: Inputs, settings: Settings) -> Iterator[str]:
    files, oldest_ns = inputs.oldest_hash()
    hours = (time.time_ns() - oldest_ns) / HOUR_NS
    if found.daemon_runs and files and settings.scrub_hours and hours > SCRUB_LATE * settings.scrub_hours:
        yield (
            f"input files were last hashed again up to {hours:.1f} hours ago, and scrub_hours is"
            f" {settings.scrub_hours:g}: the lake is too large for that at 2 % of a core"
        )


def _another_writer(export_records: ExportRecords) -> Problem | None:
    recent = export_records.recent_tamperings(time.time_ns())
    if len(recent) < TAMPERINGS_AN_HOUR:
        return None
    text = f"exports were changed from outside {len(recent)} times within an hour; each is restored after a pause"
    return Problem("another_writer", text, BY_EVENT["export_tampered"])


def _options_notes(found: Status, views: Views, settings: Settings) -> Iterator[str]:
    before = views.last_options() or {}
    now = settings.options().as_json()
    others = [key for key in now if key in before and before[key] != now[key]]
    changed = [f"{key} {json.dumps(before[key])} to {json.dumps(now[key])}" for key in others]
    if changed:
        follows = (
            "the daemon that runs keeps those that it was started with or last reloaded"
            if found.daemon_runs
            else "the next run judges every row again"
        )
        yield f"the settings are not those of the last batch ({', '.join(changed)}); {follows}"


def _without_store(found: Status) -> Problem:
    text = f"there is no state store at {found.state}"
    if not found.writer_runs:
        return Problem("never_run", text, _RUN)
    return Problem("never_run", f"{text}: it was taken away from the writer that runs", "systemctl restart distilld")


def _without_inputs(found: Status, *, known: bool) -> Problem:
    """Return the problem that no partition file exists: a wrong root or a missing mount must not look healthy."""
    trees = " and ".join(str(found.root / tree) for tree in TREES.values())
    # A batch shows that there were partition files, even if the store has forgotten them.
    if known or found.last_batch is not None:
        return Problem(
            "inputs_absent", f"no partition file that was read lies below {trees} any more", "mount it again"
        )
    return Problem(
        "no_inputs", f"no partition file was ever found below {trees}", "correct root, or mount what is missing"
    )


# what the disk says


def _sizes(settings: Settings) -> dict[str, int]:
    state = settings.state
    return {
        "state": sum(_bytes_of(state.with_name(state.name + suffix)) for suffix in ("", "-wal", "-shm")),
        "receipts": _bytes_below(settings.root / REPORTS),
        "withdrawals": sum(
            _bytes_of(settings.root / path) for name, path in EXPORT_PATHS.items() if name.startswith("withdrawals_")
        ),
        "set_aside": _bytes_below(settings.root / SET_ASIDE) + sum(map(_bytes_of, _stores_set_aside(state))),
    }


def _bytes_of(path: Path) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0


def _bytes_below(folder: Path) -> int:
    return sum(_bytes_of(Path(parent, name)) for parent, _, names in os.walk(folder) for name in names)
