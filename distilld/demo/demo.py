"""``distilld demo``: a sample lakehouse in its own folder, a first run, a reversed verdict, a second run."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from distilld.config.load import load
from distilld.config.settings import Settings
from distilld.config.template import config_text
from distilld.core.model import DATASET_PATHS, EXPORT_PATHS, Cause, Dataset, Reason, UsageError, WriterBusy
from distilld.demo.sample_lake import RESCORED_RUN_ID, append_rows, rescore_in_place, write_sample_lake
from distilld.service.lock import holder
from distilld.service.run_once import RunReport, bring_up_to_date, writer
from distilld.tables import Table

MARKER: Final = ".distilld-demo"
CONFIG_FILE: Final = "distilld.toml"
_MADE_HERE: Final = ("crates", "data", "exports", "reports", "state", CONFIG_FILE, MARKER)
"""Everything that a demo makes in its folder; the next demo removes this and nothing else."""

_MEANINGS: Final = {
    Reason.MISSING_PROVENANCE: "the scored row does not say where it came from",
    Reason.MISSING_SOURCE_RUN_ID: "no run, no evidence of it, or (sft) no instruction and response in it",
    Reason.EMPTY_CONTENT: "the run left no text",
    Reason.SCHEMA_VIOLATION: "half a line, or a row that fails its schema",
    Reason.UNSAFE_SFT_CATEGORY: "rejected or not reviewed, or revoked by a later verdict: never in SFT",
    Reason.UNSAFE_RAG_CATEGORY: "accepted once, and revoked by a later verdict",
    Reason.INVALID_PREFERENCE_PAIRING: "the two answers are no pair: the same text, or one was revoked",
    Reason.HALLUCINATED_FILE_PATH: "it names a source file that does not exist",
    Reason.DUPLICATE_ID: "the same run was scored the same twice; the first row is exported",
    Reason.SELF_PAIRING: "reserved",
    Reason.CATEGORY_DISALLOWED: "a category that this dataset does not take",
    Reason.TOO_MANY_EXPORTS: "the run has more exports than a setting allows",
}


@dataclass(frozen=True, slots=True)
class Stage:
    """Where the demo prints; ``program`` is the command by which its audience calls distilld."""

    say: Callable[[str], None]
    show: Callable[[Table], None]
    program: str


def run_demo(folder: Path, stage: Stage) -> None:
    """Make ``folder`` a sample lakehouse and show distilld at work on it. Replace an earlier demo there.

    Raises:
        UsageError: The folder holds something that no demo made.
        WriterBusy: Another distilld runs in it.
    """
    root = Path(os.path.realpath(folder))
    shown = _shown(folder)
    _clear(root, shown)
    settings = _set_up(root)
    say = stage.say
    scored_rows = sum(len(_lines(path)) for path in (root / "data/scored-runs").rglob("*.jsonl"))
    say(f"A sample lakehouse is in {shown}/data: {scored_rows} scored runs of nine sources")
    say(f"on three days, and their evidence. Its settings are in {shown}/{CONFIG_FILE}.")
    say("")
    say("1. THE FIRST RUN reads everything once and decides what may be trained on.")
    say("")
    _show_first(_run(settings), stage, shown)
    say("2. THE LAKE CHANGES, and one verdict is reversed.")
    say("")
    before = _lines_that_name_the_run(root)
    _change(root, stage)
    report = _run(settings)
    _show_second(report, stage)
    _show_gone(before, stage, root, shown)
    _show_next(report, stage, shown)


# the folder


def _clear(root: Path, shown: str) -> None:
    if not root.exists():
        return
    if not root.is_dir():
        raise UsageError(f"{shown} is no folder", hint="name another one with --folder")
    if not any(root.iterdir()):
        return
    if not (root / MARKER).is_file():
        raise UsageError(
            f"{shown} holds something that no demo made, and stays as it is", hint="name another folder with --folder"
        )
    found = holder(root)
    if found.running:
        named = "" if found.pid is None else f" (pid {found.pid})"
        raise WriterBusy(f"another distilld works in {shown}{named}", pid=found.pid)
    for name in _MADE_HERE:
        path = root / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _set_up(root: Path) -> Settings:
    root.mkdir(parents=True, exist_ok=True)
    (root / MARKER).write_text("Made by 'distilld demo'. The next demo replaces what this one made.\n")
    write_sample_lake(root)
    path = root / CONFIG_FILE
    path.write_text(config_text({"root": str(root), "check_source_files": True}, source="the demo"))
    return load(flags={}, environ={}, config_file=path, cwd=root)


def _run(settings: Settings) -> RunReport:
    with writer(settings) as engine:
        return bring_up_to_date(engine)


# what is shown


def _show_first(report: RunReport, stage: Stage, shown: str) -> None:
    one_row = {
        Dataset.RAG: "a passage for retrieval",
        Dataset.SFT: "an instruction and the accepted response",
        Dataset.PREFERENCE: "two answers to one task, the better one chosen",
    }
    exported = [
        (str(dataset), each.rows, one_row[dataset], f"{shown}/{each.path}") for dataset, each in report.datasets.items()
    ]
    stage.show(Table("What was exported", ("dataset", "rows", "one row is", "file"), exported))
    quarantined: list[tuple[str | int | None, ...]] = []
    for reason in Reason:
        counts = [each.by_reason.get(reason) for each in report.datasets.values()]
        if any(counts):
            quarantined.append((str(reason), *counts, _MEANINGS[reason]))
    columns = ("reason", *map(str, report.datasets), "which means")
    stage.show(Table("What was quarantined, and why", columns, quarantined))
    stage.say("No row is dropped silently: rag and sft export or quarantine each one.")
    stage.say("")


def _change(root: Path, stage: Stage) -> None:
    grown = append_rows(root)
    scored = root / "data" / "scored-runs"
    stage.say(f"- Rows are appended to {sum(path.is_relative_to(scored) for path in grown)} partitions.")
    rescore_in_place(root)
    stage.say(f"- The run {RESCORED_RUN_ID}")
    stage.say("  was accepted and exported. Now it is scored as rejected, in place: the file")
    stage.say("  keeps its size, inode, mtime. It is read when it has not changed for a second.")
    stage.say("")


def _show_second(report: RunReport, stage: Stage) -> None:
    rows = [
        (str(each.dataset), each.rows, each.added, each.withdrawn, _causes(each.causes))
        for each in report.datasets.values()
    ]
    stage.show(Table("What the second run did", ("dataset", "rows", "added", "withdrawn", "because"), rows))
    stage.say(f"It judged {report.rows_judged} of {report.rows_read} rows: those that the change concerns.")
    stage.say("")


def _causes(causes: Mapping[Cause, int]) -> str | None:
    return ", ".join(f"{cause} {rows}" for cause, rows in causes.items()) or None


def _show_gone(before: dict[Dataset, int], stage: Stage, root: Path, shown: str) -> None:
    after = _lines_that_name_the_run(root)
    rows = [(f"{shown}/{DATASET_PATHS[dataset]}", before[dataset], after[dataset]) for dataset in Dataset]
    stage.show(Table("Lines that name the rejected run", ("file", "before", "after"), rows))
    stage.say("Whoever trained on one of them can learn that it left, and why:")
    path = EXPORT_PATHS["withdrawals_sft"]
    for line in _lines(root / path):
        if _names_the_run(line):
            stage.say(f"  {shown}/{path}:")
            stage.say(f"  {line.decode().rstrip()}")
    stage.say("")


def _show_next(report: RunReport, stage: Stage, shown: str) -> None:
    say, call = stage.say, f"{stage.program} --config {shlex.quote(f'{shown}/{CONFIG_FILE}')}"
    say("3. LOOK FOR YOURSELF")
    say("")
    looks = (
        (DATASET_PATHS[Dataset.SFT], "the instruction rows, one JSON object a line"),
        (EXPORT_PATHS["quarantine_sft"], "what was quarantined from them, and why"),
        (EXPORT_PATHS["withdrawals_sft"], "what left them, and which verdict did it"),
        ("reports/distillation/latest.md", "what the last scan led to on one page: here, the withdrawal"),
        (report.receipt or "reports/distillation", "its receipt, a link in a chain"),
        ("state/distilld.db", "the state store; any SQLite tool reads it"),
    )
    _list(stage, looks, before=f"{shown}/")
    say("")
    say("Then try:")
    tries = (
        (f"{call} run --once", "says that all is up to date"),
        (f"{call} run --once --include-partial --dry-run", "what this flag would include"),
        (f"{call} quarantine --limit 5", "the first quarantined rows, with their errors"),
        (f"{call} status", "the state of the lake"),
        (f"{call} inspect", "the same in a browser; if Datasette is missing, it says how to install it"),
    )
    _list(stage, tries)


def _list(stage: Stage, items: Iterable[tuple[str, str]], *, before: str = "") -> None:
    """Print each path or command, with ``before`` in front, and below it what it is for."""
    for item, purpose in items:
        stage.say(f"  {before}{item}")
        stage.say(f"      {purpose}")


# looking


def _lines_that_name_the_run(root: Path) -> dict[Dataset, int]:
    """Return how many lines of each dataset name the run that is rescored."""
    return {dataset: sum(map(_names_the_run, _lines(root / path))) for dataset, path in DATASET_PATHS.items()}


def _names_the_run(line: bytes) -> bool:
    return f'"{RESCORED_RUN_ID}"'.encode() in line


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []


def _shown(folder: Path) -> str:
    """Return the folder as given, with './' before a leading '-': it must not look like an option."""
    return f"./{folder}" if str(folder).startswith("-") else str(folder)
