"""``distilld run``, once or as the daemon, and its names in the older exporters."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from distilld.cli.commands import Common, common_options, executor_option, json_option
from distilld.cli.exit_codes import ExitCode
from distilld.cli.streams import WorkCommand
from distilld.core.model import Category, Dataset, DistilldError, UsageError

if TYPE_CHECKING:
    from distilld.config.settings import Settings
    from distilld.engine.engine import Engine
    from distilld.engine.pass_result import Progress
    from distilld.service.run_once import DatasetReport, RunReport

R = TypeVar("R")

WITHDRAWN_SHOWN: Final = 20
"""The maximum number of rows to withdraw or replace that a dry run lists; --json lists all."""


@dataclass(frozen=True, slots=True)
class _Flags:
    """The flags of one run."""

    include_partial: bool
    include_review: bool
    dry_run: bool
    take_over: bool
    executor: str | None
    as_json: bool


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


def _run_options(function: Callable[..., R]) -> Callable[..., R]:
    options = (
        click.option(
            "--include-partial", is_flag=True, help="Export partially accepted runs to SFT, in this run only."
        ),
        click.option(
            "--include-review", is_flag=True, help="Export runs that need a human review to RAG, in this run only."
        ),
        click.option("--dry-run", is_flag=True, help="Show what one run would change, and change nothing."),
        click.option(
            "--take-over", is_flag=True, help="Use this state store although the lake was last kept with another one."
        ),
    )
    function = common_options(json_option(executor_option(function)))
    for option in reversed(options):
        function = option(function)
    return function


@click.command(cls=WorkCommand, short_help="Keep the datasets up to date, or bring them up to date once.")
@click.option("--once", is_flag=True, help="Do it once and exit.")
@click.option("--check", is_flag=True, help="Validate the configuration and exit; nothing is changed.")
@_run_options
def run(common: Common, once: bool, check: bool, **flags: Any) -> ExitCode:
    """Keep the datasets up to date with data/, until SIGTERM or Ctrl-C.

    Watches the two trees, exports and withdraws rows as files change, and writes a receipt of every batch. SIGHUP
    reads the configuration again. Failures are logged and retried.

    With --once, it reads what changed since the last run, does the same, and exits. The exit code is 1 if an input
    could not be read. Run again over the same input it changes nothing.
    """
    given = _Flags(**flags)
    if check:
        _refuse_with_check({"--once": once, "--dry-run": given.dry_run, "--json": given.as_json})
        return _check(common, given)
    if once or given.dry_run:
        return _bring(common, (), given)
    return _serve(common, given)


@click.command("export-rag", cls=WorkCommand, short_help="Like 'run --once', ending with the RAG exporter's summary.")
@_run_options
def export_rag(common: Common, **flags: Any) -> ExitCode:
    """Bring the datasets up to date, and sum up RAG as the older exporter did.

    The datasets share one state, so all three are brought up to date.
    """
    return _bring(common, (Dataset.RAG,), _Flags(**flags))


@click.command("export-sft", cls=WorkCommand, short_help="Like 'run --once', ending with the SFT exporter's summary.")
@_run_options
def export_sft(common: Common, **flags: Any) -> ExitCode:
    """Bring the datasets up to date, and sum up SFT as the older exporter did.

    The datasets share one state, so all three are brought up to date.
    """
    return _bring(common, (Dataset.SFT,), _Flags(**flags))


@click.command(
    "export-preference", cls=WorkCommand, short_help="Like 'run --once', ending with the preference exporter's summary."
)
@_run_options
def export_preference(common: Common, **flags: Any) -> ExitCode:
    """Bring the datasets up to date, and sum up the preference pairs as the older exporter did.

    The datasets share one state, so all three are brought up to date.
    """
    return _bring(common, (Dataset.PREFERENCE,), _Flags(**flags))


@click.command("export-all", cls=WorkCommand, short_help="Like 'run --once', ending with all three summaries.")
@_run_options
def export_all(common: Common, **flags: Any) -> ExitCode:
    """Bring the datasets up to date, and sum up all three as the older exporters did."""
    return _bring(common, tuple(Dataset), _Flags(**flags))


def _refuse_with_check(others: Mapping[str, bool]) -> None:
    for name, given in others.items():
        if given:
            hint = "it validates the configuration and does no work"
            raise UsageError(f"--check does not go with {name}", hint=hint)


def _check(common: Common, flags: _Flags) -> ExitCode:
    from distilld.cli.output import say
    from distilld.cli.settings import load_settings

    settings = load_settings(common, executor=flags.executor)
    say(f"the configuration is good: root {settings.root}, state {settings.state}")
    return ExitCode.DONE


def _serve(common: Common, flags: _Flags) -> ExitCode:
    if flags.as_json:
        raise UsageError("--json needs --once", hint="without --once this is the daemon, which never ends")
    # Unhandled, SIGHUP would end the process. The daemon unblocks it as soon as it can handle it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    import faulthandler

    from distilld import logs
    from distilld.cli.settings import load_settings
    from distilld.service.daemon import serve
    from distilld.service.systemd import Notifier

    notifier = Notifier.from_environ(os.environ)

    def read_settings() -> Settings:
        return _with_flags(load_settings(common, executor=flags.executor), flags)

    settings = read_settings()
    logs.configure(level=settings.log_level, fmt=settings.log_format, environ=os.environ)
    # If a watchdog or an operator sends SIGABRT to a hanging daemon, the log shows where it hangs.
    faulthandler.enable()
    serve(settings, read_settings=read_settings, environ=os.environ, notifier=notifier, take_over=flags.take_over)
    return ExitCode.DONE


def _with_flags(settings: Settings, flags: _Flags) -> Settings:
    return replace(
        settings,
        include_partial=settings.include_partial or flags.include_partial,
        include_review=settings.include_review or flags.include_review,
    )


def _bring(common: Common, summed_up: tuple[Dataset, ...], flags: _Flags) -> ExitCode:
    from distilld.cli.settings import load_settings

    settings = load_settings(common, executor=flags.executor)
    by_flag = {each for each in _INCLUSIONS if getattr(flags, each.option) and not getattr(settings, each.option)}
    settings = _with_flags(settings, flags)
    report, let_in = _report(settings, flags, by_flag)
    if flags.as_json:
        _print_json(report, flags)
    else:
        _print(report, summed_up, flags, let_in)
    return say_not_read(report)


def _say_damaged(engine: Engine) -> None:
    """Name on standard error the exports that the next run restores first."""
    from distilld.cli.output import complain
    from distilld.service.dry_run import damaged_exports

    for export in damaged_exports(engine):
        note = "the next run restores it first; the figures here count it as whole"
        complain(f"damaged: {export}: {note}")


def say_not_read(report: RunReport) -> ExitCode:
    """Name on standard error the inputs that could not be read. Return the exit code that follows from them."""
    from distilld.cli.output import complain

    if report.no_inputs:
        complain(f"warning: no partition file lies below {report.no_inputs}; correct root, or mount what is missing")
    for problem in report.not_read:
        complain(f"not read: {problem}")
    return ExitCode.FAILED if report.not_read else ExitCode.DONE


def _let_in(engine: Engine, by_flag: set[_Inclusion]) -> dict[_Inclusion, int]:
    """Return how many rows the next run without a flag withdraws; a row that another one replaces is not among them."""
    from distilld.store.queries import Views

    views = Views(engine.store)
    return {each: views.exported_only_of(each.dataset, each.category) for each in by_flag}


def _warn_of_flags(settings: Settings, by_flag: set[_Inclusion], progress: Callable[[Progress], None] | None) -> None:
    """Rehearse the run, and warn before anything is written what the next run without these flags withdraws."""
    from distilld import logs
    from distilld.cli.output import complain
    from distilld.service.dry_run import rehearsal
    from distilld.service.run_once import bring_up_to_date

    if not by_flag:
        return
    rows: dict[_Inclusion, int] = {}
    logs.configure(level="error", fmt=settings.log_format, environ=os.environ)
    with (
        suppress(DistilldError, OSError, sqlite3.Error),
        rehearsal(settings, take_over=True, progress=progress) as trial,
    ):
        bring_up_to_date(trial)
        rows = _let_in(trial, by_flag)
    logs.configure(level=settings.log_level, fmt=settings.log_format, environ=os.environ)
    for each in by_flag:
        these = f"{rows[each]:,} {each.category} rows" if each in rows else f"the {each.category} rows"
        complain(f"warning: the next run without {each.flag} withdraws {these} from {each.dataset} again")


def _report(settings: Settings, flags: _Flags, by_flag: set[_Inclusion]) -> tuple[RunReport, dict[_Inclusion, int]]:
    from distilld import logs
    from distilld.cli.progress import progress_bar
    from distilld.service.dry_run import rehearsal
    from distilld.service.run_once import bring_up_to_date, on_whole_store, writer

    with progress_bar() as progress:
        # Inside, so that on a terminal the log lines appear above the bar.
        logs.configure(level=settings.log_level, fmt=settings.log_format, environ=os.environ)
        if flags.dry_run:
            listed = None if flags.as_json else WITHDRAWN_SHOWN
            with rehearsal(settings, take_over=flags.take_over, progress=progress) as engine:
                _say_damaged(engine)
                return bring_up_to_date(engine, withdrawals_listed=listed), _let_in(engine, by_flag)

        def bring() -> tuple[RunReport, dict[_Inclusion, int]]:
            with writer(settings, take_over=flags.take_over, progress=progress) as engine:
                _warn_of_flags(settings, by_flag, progress)
                return bring_up_to_date(engine), _let_in(engine, by_flag)

        return on_whole_store(bring)


# what is printed


def _print_json(report: RunReport, flags: _Flags) -> None:
    from distilld.cli.output import plain, print_json

    shown = plain(report)
    if not flags.dry_run:
        del shown["withdrawn"]
    print_json({"dry_run": flags.dry_run, "up_to_date": not report.changed, **shown, "receipt": report.receipt})


def _print(report: RunReport, summed_up: tuple[Dataset, ...], flags: _Flags, let_in: Mapping[_Inclusion, int]) -> None:
    from distilld.cli.output import say

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
    from distilld.cli.output import say, show
    from distilld.tables import Table

    rows = [
        (str(each.dataset), each.rows, each.added, each.replaced, each.withdrawn, each.quarantined)
        for each in report.datasets.values()
    ]
    columns = ("dataset", "rows", "added", "replaced", "withdrawn", "quarantined")
    show(Table("The datasets now, and what this run did", columns, rows))
    for each in report.datasets.values():
        if each.adopted:
            say(f"adopted in {each.dataset}: {each.adopted:,} rows, as they stood")
        if each.causes:
            say(f"withdrawn from {each.dataset}: {_listed(each.causes.items())}")


def say_work(report: RunReport) -> None:
    """Print how much a run judged and read, and which receipts it wrote."""
    from distilld.cli.output import say
    from distilld.tables import Size

    at = f"; receipt: {report.receipt}" if report.receipt else ""
    if len(report.batch_ids) > 1:
        at = f" in {len(report.batch_ids)} batches; receipts: {report.batch_ids[0]} to {report.batch_ids[-1]}"
    say(f"{report.rows_judged:,} rows judged, {Size(report.bytes_read)} read{at}")


def _print_dry_run(report: RunReport) -> None:
    from distilld.cli.output import say, show
    from distilld.tables import Table

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
    from distilld.core.model import Cause

    for each in _INCLUSIONS:
        if getattr(report.options, each.option):
            source = each.flag if each in let_in else f"{each.option} in the settings"
            yield each.dataset, f"{each.category} INCLUDED ({source})"
        if each in let_in:
            yield each.dataset, f"the next run without {each.flag} withdraws these {let_in[each]} rows again"
        left = report.datasets[each.dataset].causes.get(Cause.OPTIONS_CHANGED, 0)
        if each.option in report.dropped_flags and left:
            yield (
                each.dataset,
                f"{withdrew} {left} {each.category} rows: the run before had {each.option}, this one has not",
            )
