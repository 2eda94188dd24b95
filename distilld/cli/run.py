"""``distilld run``, once or as the daemon, and its names in the older exporters.

Slow modules are imported inside functions here: the daemon must block SIGHUP first.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, replace
from typing import Any, Final

import click

from distilld.cli.commands import Common, ExitCode, common_options, executor_option, json_option, with_options
from distilld.cli.output import say
from distilld.cli.settings import load_settings, start_log
from distilld.cli.streams import WorkCommand
from distilld.config.settings import Settings
from distilld.core.model import Dataset, UsageError


@dataclass(frozen=True, slots=True)
class Flags:
    """The flags of one run."""

    include_partial: bool
    include_review: bool
    dry_run: bool
    take_over: bool
    executor: str | None
    as_json: bool


_run_options: Final = with_options(
    click.option("--include-partial", is_flag=True, help="Export partially accepted runs to SFT, in this run only."),
    click.option(
        "--include-review", is_flag=True, help="Export runs that need a human review to RAG, in this run only."
    ),
    click.option("--dry-run", is_flag=True, help="Show what one run would change, and change nothing."),
    click.option(
        "--take-over", is_flag=True, help="Use this state store although the lake was last kept with another one."
    ),
    common_options,
    json_option,
    executor_option,
)


@click.command(cls=WorkCommand)
@click.option("--once", is_flag=True, help="Do it once and exit.")
@click.option("--check", is_flag=True, help="Validate the configuration and exit; nothing is changed.")
@_run_options
def run(common: Common, once: bool, check: bool, **flags: Any) -> ExitCode | None:
    """Keep the datasets up to date with data/, until SIGTERM or Ctrl-C.

    Watches the two trees, exports and withdraws rows as files change, and writes a receipt of every batch. SIGHUP
    reads the configuration again. Failures are logged and retried.

    With --once, it reads what changed since the last run, does the same, and exits. The exit code is 1 if an input
    could not be read. Run again over the same input it changes nothing.
    """
    given = Flags(**flags)
    if check:
        for name, on in (("--once", once), ("--dry-run", given.dry_run), ("--json", given.as_json)):
            if on:
                hint = "it validates the configuration and does no work"
                raise UsageError(f"--check does not go with {name}", hint=hint)
        settings = load_settings(common, executor=given.executor)
        say(f"the configuration is good: root {settings.root}, state {settings.state}")
    elif once or given.dry_run:
        return _bring(common, (), given)
    else:
        _serve(common, given)
    return None


def _exporter(name: str, summed_up: tuple[Dataset, ...], summary: str) -> click.Command:
    """Return the command with the name of an older exporter: a run, and that exporter's summary."""

    @click.command(
        name,
        cls=WorkCommand,
        help=f"Bring the datasets up to date, and sum up {summary}."
        "\n\nThe datasets share one state, so all three are brought up to date.",
    )
    @_run_options
    def export(common: Common, **flags: Any) -> ExitCode:
        return _bring(common, summed_up, Flags(**flags))

    return export


export_rag = _exporter("export-rag", (Dataset.RAG,), "RAG as the older exporter did")
export_sft = _exporter("export-sft", (Dataset.SFT,), "SFT as the older exporter did")
export_preference = _exporter(
    "export-preference", (Dataset.PREFERENCE,), "the preference pairs as the older exporter did"
)
export_all = _exporter("export-all", tuple(Dataset), "all three as the older exporters did")


def _bring(common: Common, summed_up: tuple[Dataset, ...], flags: Flags) -> ExitCode:
    from distilld.cli.one_run import bring

    return bring(common, summed_up, flags)


def _serve(common: Common, flags: Flags) -> None:
    if flags.as_json:
        raise UsageError("--json needs --once", hint="without --once this is the daemon, which never ends")
    # Unhandled, SIGHUP would end the process. The daemon unblocks it as soon as it can handle it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    import faulthandler

    from distilld.service.daemon import serve
    from distilld.service.systemd import Notifier

    notifier = Notifier.from_environ(os.environ)

    def read_settings() -> Settings:
        return with_flags(load_settings(common, executor=flags.executor), flags)

    settings = read_settings()
    start_log(settings)
    # If a watchdog or an operator sends SIGABRT to a hanging daemon, the log shows where it hangs.
    faulthandler.enable()
    serve(settings, read_settings=read_settings, notifier=notifier, take_over=flags.take_over)


def with_flags(settings: Settings, flags: Flags) -> Settings:
    """Return the settings of a run with these flags."""
    return replace(
        settings,
        include_partial=settings.include_partial or flags.include_partial,
        include_review=settings.include_review or flags.include_review,
    )
