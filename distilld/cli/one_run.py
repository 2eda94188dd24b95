"""One run, for real or as a rehearsal, and what the commands that write print of theirs."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from distilld.cli.commands import Common, ExitCode
from distilld.cli.output import HOW_TO_LIST_ALL, PROBLEMS_SHOWN, complain, plain, print_json, say, show
from distilld.cli.progress import progress_bar
from distilld.cli.run import Flags, with_flags
from distilld.cli.settings import load_settings, start_log
from distilld.config.settings import Settings
from distilld.core.model import Category, Cause, Dataset, DistilldError
from distilld.engine.engine import Engine
from distilld.engine.pass_result import Progress
from distilld.service.dry_run import damaged_exports, rehearsal
from distilld.service.run_once import DatasetReport, RunReport, bring_up_to_date, on_whole_store, writer
from distilld.store.queries import Views
from distilld.tables import Size, Table, counted

T = TypeVar("T")

WITHDRAWN_SHOWN: Final = 20
"""The maximum number of rows to withdraw or replace that a dry run lists; --json lists all."""


@dataclass(frozen=True, slots=True)
class _Inclusion:
    """An option that admits one more category into a dataset. As a flag it applies to one run."""

    option: str
    dataset: Dataset
    category: Category

    @property
    def flag(self) -> str:
        return "--" + self.option.replace("_", "-")


_INCLUSIONS: Final = (
    _Inclusion("include_review", Dataset.RAG, Category.NEEDS_HUMAN_REVIEW),
    _Inclusion("include_partial", Dataset.SFT, Category.PARTIALLY_ACCEPTED),
)


def at_work(settings: Settings, task: Callable[[Engine], T], *, take_over: bool = False) -> T:
    """Do ``task`` as the lake's one writer, with the log and a progress bar; again if the store was set aside."""
    with progress_bar() as progress:
        # Inside, so that on a terminal the log lines appear above the bar.
        start_log(settings)

        def once() -> T:
            with writer(settings, take_over=take_over, progress=progress) as engine:
                return task(engine)

        return on_whole_store(once)


def bring(common: Common, summed_up: tuple[Dataset, ...], flags: Flags) -> ExitCode:
    """Do one run, and end with the summaries of older exporters for these datasets."""
    settings = load_settings(common, executor=flags.executor)
    by_flag = {each for each in _INCLUSIONS if getattr(flags, each.option) and not getattr(settings, each.option)}
    settings = with_flags(settings, flags)
    report, let_in = _report(settings, flags, by_flag)
    if flags.as_json:
        head = {"dry_run": flags.dry_run, "up_to_date": not report.changed}
        print_json({**head, **report_as_json(report, with_rows=flags.dry_run)})
    else:
        _print(report, summed_up, flags, let_in)
    return say_not_read(report)


def say_not_read(report: RunReport) -> ExitCode:
    """Name on standard error the inputs that could not be read. Return the exit code that follows from them."""
    if report.no_inputs:
        complain(f"warning: no partition file lies below {report.no_inputs}; correct root, or mount what is missing")
    for problem in report.not_read[:PROBLEMS_SHOWN]:
        complain(f"not read: {problem}")
    if more := len(report.not_read[PROBLEMS_SHOWN:]):
        complain(f"not read: {more:,} more; {HOW_TO_LIST_ALL}")
    return ExitCode.FAILED if report.not_read else ExitCode.DONE


def _let_in(engine: Engine, by_flag: set[_Inclusion]) -> dict[_Inclusion, int]:
    """Return how many rows the next run without a flag withdraws; a row that another one replaces is not among them."""
    views = Views(engine.store)
    return {each: views.exported_only_of(each.dataset, each.category) for each in by_flag}


def _warn_of_flags(settings: Settings, by_flag: set[_Inclusion], progress: Callable[[Progress], None] | None) -> None:
    """Rehearse the run, and warn before anything is written what the next run without these flags withdraws."""
    if not by_flag:
        return
    rows: dict[_Inclusion, int] = {}
    start_log(replace(settings, log_level="error"))
    with (
        suppress(DistilldError, OSError, sqlite3.Error),
        rehearsal(settings, take_over=True, progress=progress) as trial,
    ):
        bring_up_to_date(trial)
        rows = _let_in(trial, by_flag)
    start_log(settings)
    for each in by_flag:
        these = counted(rows[each], f"{each.category} row") if each in rows else f"the {each.category} rows"
        complain(f"warning: the next run without {each.flag} withdraws {these} from {each.dataset} again")


def _report(settings: Settings, flags: Flags, by_flag: set[_Inclusion]) -> tuple[RunReport, dict[_Inclusion, int]]:
    def bring(engine: Engine) -> tuple[RunReport, dict[_Inclusion, int]]:
        _warn_of_flags(settings, by_flag, engine.progress)
        return bring_up_to_date(engine), _let_in(engine, by_flag)

    if not flags.dry_run:
        return at_work(settings, bring, take_over=flags.take_over)
    listed = None if flags.as_json else WITHDRAWN_SHOWN
    with progress_bar() as progress:
        start_log(settings)
        with rehearsal(settings, take_over=flags.take_over, progress=progress) as engine:
            for export in damaged_exports(engine):
                complain(f"damaged: {export}: the next run restores it first; the figures here count it as whole")
            return bring_up_to_date(engine, withdrawals_listed=listed), _let_in(engine, by_flag)


# what is printed


def report_as_json(report: RunReport, *, with_rows: bool = False) -> dict[str, Any]:
    """Return a report for --json; ``with_rows``: also the rows that left or would leave."""
    shown: dict[str, Any] = plain(report)
    if not with_rows:
        del shown["withdrawn"]
    return {**shown, "receipt": report.receipt}


def _print(report: RunReport, summed_up: tuple[Dataset, ...], flags: Flags, let_in: Mapping[_Inclusion, int]) -> None:
    if report.recovered:
        done = "the next run completes or undoes it first" if flags.dry_run else "it was completed or undone first"
        say(f"an earlier batch was cut off; {done}")
    if report.taken_over:
        say(
            "exports stand there from before this store; the next run takes them over first, and keeps what is alike;"
            " the figures here count as if they were empty"
            if flags.dry_run
            else "exports stood there from before this store; they were taken over"
        )
    if not report.changed:
        say(f"up to date: {_totals(report)}{' (DRY RUN)' if flags.dry_run else ''}")
    elif flags.dry_run:
        _print_dry_run(report)
    elif not summed_up:
        print_changes(report)
        say_work(report)
    for dataset in summed_up:
        for line in _summary(dataset, report, dry_run=flags.dry_run):
            say(f"[export_{dataset}] {line}")
    for dataset, line in _inclusions(report, let_in, "would withdraw" if flags.dry_run else "withdrew"):
        say(f"[export_{dataset}] {line}" if summed_up else f"{dataset}: {line}")


def _totals(report: RunReport) -> str:
    return ", ".join(
        f"{each.dataset} {each.rows:,} ({each.quarantined:,} quarantined)" for each in report.datasets.values()
    )


def print_changes(report: RunReport) -> None:
    """Print what a run changed in the datasets, and what they contain now."""
    rows = [
        (str(each.dataset), each.rows, each.quarantined, each.added, each.replaced, each.withdrawn)
        for each in report.datasets.values()
    ]
    columns = ("dataset", "rows", "quarantined", "added", "replaced", "withdrawn")
    show(Table("The datasets now, and what this run did", columns, rows))
    for each in report.datasets.values():
        if each.adopted:
            say(f"adopted in {each.dataset}: {counted(each.adopted, 'row')}, as they stood")
        if each.causes:
            say(f"withdrawn from {each.dataset}: {_listed(each.causes.items())}")


def say_work(report: RunReport) -> None:
    """Print how much a run judged and read, and which receipts it wrote."""
    at = f"; receipt: {report.receipt}" if report.receipt else ""
    if len(report.batch_ids) > 1:
        at = f" in {len(report.batch_ids)} batches; receipts: {report.batch_ids[0]} to {report.batch_ids[-1]}"
    say(f"{counted(report.rows_judged, 'row')} judged, {Size(report.bytes_read)} read{at}")


def _print_dry_run(report: RunReport) -> None:
    rows = [
        (str(each.dataset), each.added, each.replaced, each.withdrawn, _listed(each.causes.items()) or None, each.rows)
        for each in report.datasets.values()
    ]
    columns = ("dataset", "to append", "to replace", "to withdraw", "because", "rows then")
    show(Table("What the next run would change", columns, rows))
    if report.withdrawn:
        table = [
            (
                each.id,
                "replaced" if each.replaced else "withdrawn",
                str(each.cause),
                each.source_run_id or f"{each.chosen_run_id} over {each.rejected_run_id}",
            )
            for each in report.withdrawn
        ]
        show(Table("Rows that would leave or be replaced", ("id", "how", "cause", "run"), table))
        left = sum(each.withdrawn + each.replaced for each in report.datasets.values()) - len(table)
        if left:
            say(f"... and {left:,} more; --json lists all")
    say("nothing was changed (DRY RUN)")


def _summary(dataset: Dataset, report: RunReport, *, dry_run: bool) -> Iterator[str]:
    """Yield the older exporter's lines: the totals, and what this run added and withdrew."""
    each = report.datasets[dataset]
    counts = f"exported={each.rows}"
    if dataset is Dataset.PREFERENCE:
        counts = f"pairs={each.rows} task_ids_paired={report.pairing.tasks_paired}"
    replaced = f" replaced={each.replaced}" if each.replaced else ""
    yield (
        f"read={report.rows_read} {counts} {_quarantined(each)} added={each.added}{replaced} withdrawn={each.withdrawn}"
        f"{' (DRY RUN)' if dry_run else ''}"
    )
    if dataset is Dataset.PREFERENCE:
        yield (f"insufficient_pair_task_ids={report.pairing.tasks_insufficient} (only one record OR all-same-category)")
    yield f"output: {each.path}"


def _quarantined(report: DatasetReport) -> str:
    reasons = _listed(report.by_reason.items(), "=")
    return f"quarantined={report.quarantined}{f' ({reasons})' if reasons else ''}"


def _listed(counts: Iterable[tuple[str, int]], between: str = " ") -> str:
    return ", ".join(f"{name}{between}{count}" for name, count in counts)


def _inclusions(report: RunReport, let_in: Mapping[_Inclusion, int], withdrew: str) -> Iterator[tuple[Dataset, str]]:
    """Yield what the run admitted beyond the default, and what left because only an earlier run admitted it."""
    for each in _INCLUSIONS:
        if getattr(report.options, each.option):
            source = each.flag if each in let_in else f"{each.option} in the settings"
            yield each.dataset, f"{each.category} INCLUDED ({source})"
        if each in let_in:
            these = "this row" if let_in[each] == 1 else f"these {let_in[each]} rows"
            yield each.dataset, f"the next run without {each.flag} withdraws {these} again"
        left = report.datasets[each.dataset].causes.get(Cause.OPTIONS_CHANGED, 0)
        if each.option in report.dropped_flags and left:
            rows = counted(left, f"{each.category} row")
            yield each.dataset, f"{withdrew} {rows}: the run before had {each.option}, this one has not"
