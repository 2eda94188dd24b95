"""The commands by name, their common options, and their exit codes. This module imports nothing slow."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import update_wrapper
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import click

from distilld import __version__

COMMANDS: Final = MappingProxyType(
    {
        "run": ("run", "Keep the datasets up to date, or bring them up to date once."),
        "export-rag": ("run", "Like 'run --once', ending with the RAG exporter's summary."),
        "export-sft": ("run", "Like 'run --once', ending with the SFT exporter's summary."),
        "export-preference": ("run", "Like 'run --once', ending with the preference exporter's summary."),
        "export-all": ("run", "Like 'run --once', ending with all three summaries."),
        "status": ("status", "Show the state of the lake, and what is wrong with it."),
        "health": ("status", "Health check for a monitor; exits with 1 if unhealthy."),
        "explain": ("explain", "Show everything about one run."),
        "show": ("explain", "Show one row of a dataset, and the history of its run."),
        "quarantine": ("quarantine", "Show what is quarantined, and why."),
        "withdrawals": ("withdrawals", "List the rows that left the datasets."),
        "receipts": ("receipts", "List the batches and check the chain of their receipts."),
        "verify": ("verify", "Check receipts, exports, accounting and firewall."),
        "diff": ("diff", "Compare a dataset with another exporter's file."),
        "snapshot": ("snapshot", "Copy one batch for training; check a copy."),
        "changes": ("changes", "Print what changed in a dataset since a batch."),
        "rebuild": ("walk_order", "Read everything again, and put the files in order."),
        "compact": ("walk_order", "Remove the spaces that withdrawn rows left in the files."),
        "prune": ("prune", "Withdraw retained rows, or accept them."),
        "stage": ("stage", "Run an outside stage and write a receipt of it."),
        "inspect": ("inspect", "Look at the lake and its state store in a browser."),
        "schema": ("schema", "Print the form of rows, inputs or receipts."),
        "init": ("init", "Write a commented configuration file."),
        "demo": ("demo", "Show distilld at work on a sample lakehouse."),
    }
)
"""Each command's module in this package and what --help says of it, in the order of --help.

The module defines a click command with the command's name, ``_`` for ``-``.
"""


class ExitCode(IntEnum):
    """All exit codes of distilld (SPEC 5; docs/cli.md)."""

    DONE = 0
    FAILED = 1
    WRONG_USAGE = 2
    BUSY = 75
    INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Common:
    """The common options as given, before the command's name or after it; None for those that were not given."""

    config: Path | None = None
    root: str | None = None
    state: str | None = None


class _Commands(click.Group):
    """A group that imports a command's module only when the command is used: --help imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return list(COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, meaning) for name, (_, meaning) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command. The error for an unknown one names the nearest."""
        if args and args[0][:1].isalnum() and args[0] not in COMMANDS:
            nearest = difflib.get_close_matches(args[0], COMMANDS, n=1, cutoff=0.0)[0]
            ctx.fail(f"No such command {args[0]!r}; the nearest one is '{nearest}'.")
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"distilld.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command


COUNT: Final = click.IntRange(0, 1 << 31)
"""How many rows to list, up to a number that no list exceeds."""

json_option: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
executor_option: Final = click.option(
    "--executor", metavar="ADDRESS", help="Judge on a Dask cluster, such as dask://HOST:8786."
)


def with_options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a decorator that gives a command these options, in this order."""

    def give(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return give


_common: Final = with_options(
    click.option(
        "--config",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="The configuration file. Default: config/distilld.toml, if it exists.",
    ),
    click.option("--root", metavar="DIR", help="The lakehouse: the folder that holds data/, exports/ and reports/."),
    click.option("--state", metavar="FILE", help="The state store, one SQLite file on a local disk."),
)


def common_options(function: Callable[..., Any]) -> Any:
    """Give a command the common options as its first argument. What is given after its name wins."""

    def with_common(*args: Any, **given: Any) -> Any:
        before = click.get_current_context().find_root().params
        common = {name: before[name] if (after := given.pop(name)) is None else after for name in Common.__slots__}
        return function(Common(**common), *args, **given)

    return _common(update_wrapper(with_common, function))


@click.group(
    name="distilld",
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 failed or unhealthy, 2 wrong usage or config, 75 another distilld is the writer,"
    " 130 interrupted.",
)
@click.version_option(version=__version__, prog_name="distilld", message="%(prog)s %(version)s")
@_common
def distilld(**_: Any) -> None:
    """Keep three training datasets exactly up to date with the scored runs of a lakehouse.

    Start with 'distilld demo', then 'distilld init' and 'distilld run --once'.
    """
