"""The commands by name, and their common options. This module imports nothing slow."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import update_wrapper
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar

import click

from distilld import __version__
from distilld.core.model import ProgramError

COMMANDS: Final = MappingProxyType(
    {
        "run": "distilld.cli.run",
        "export-rag": "distilld.cli.run",
        "export-sft": "distilld.cli.run",
        "export-preference": "distilld.cli.run",
        "export-all": "distilld.cli.run",
        "status": "distilld.cli.status",
        "health": "distilld.cli.health",
        "explain": "distilld.cli.explain",
        "show": "distilld.cli.show",
        "quarantine": "distilld.cli.quarantine",
        "withdrawals": "distilld.cli.withdrawals",
        "receipts": "distilld.cli.receipts",
        "verify": "distilld.cli.verify",
        "diff": "distilld.cli.diff",
        "snapshot": "distilld.cli.snapshot",
        "changes": "distilld.cli.changes",
        "rebuild": "distilld.cli.rebuild",
        "compact": "distilld.cli.compact",
        "prune": "distilld.cli.prune",
        "stage": "distilld.cli.stage",
        "inspect": "distilld.cli.inspect",
        "schema": "distilld.cli.schema",
        "init": "distilld.cli.init",
        "demo": "distilld.cli.demo",
    }
)
"""Each command's module, in the order of --help. A command is available if its module exists.

The module defines a click command with the command's name, ``_`` for ``-``. Slow imports are inside its functions.
"""


@dataclass(frozen=True, slots=True)
class Common:
    """The common options as given; None for those that were not given."""

    config: Path | None = None
    root: str | None = None
    state: str | None = None

    def over(self, outer: Common) -> Common:
        """Return these options; those that are None are taken from ``outer``, given before the command."""
        return Common(
            outer.config if self.config is None else self.config,
            outer.root if self.root is None else self.root,
            outer.state if self.state is None else self.state,
        )


class _Commands(click.Group):
    """A group that imports a command's module only when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return [name for name, module in COMMANDS.items() if importlib.util.find_spec(module) is not None]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command. The error for an unknown one names the nearest."""
        if args and args[0][:1].isalnum() and args[0] not in COMMANDS:
            nearest = difflib.get_close_matches(args[0], COMMANDS, n=1, cutoff=0.0)[0]
            ctx.fail(f"No such command {args[0]!r}; the nearest one is '{nearest}'.")
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command = getattr(importlib.import_module(COMMANDS[cmd_name]), cmd_name.replace("-", "_"))
        if not isinstance(command, click.Command):
            raise ProgramError(f"{COMMANDS[cmd_name]} holds no command {cmd_name}")
        return command


COUNT: Final = click.IntRange(0, 1 << 31)
"""How many rows to list, up to a number that no list exceeds."""

R = TypeVar("R")

_OPTIONS: Final = (
    click.option(
        "--config",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="The configuration file. Default: config/distilld.toml, if it exists.",
    ),
    click.option("--root", metavar="DIR", help="The lakehouse: the folder that holds data/, exports/ and reports/."),
    click.option("--state", metavar="FILE", help="The state store, one SQLite file on a local disk."),
)


def _with_options(function: Callable[..., R]) -> Callable[..., R]:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def common_options(function: Callable[..., R]) -> Callable[..., R]:
    """Give a command the common options as its first argument, whether given before or after its name."""

    def with_common(*args: Any, config: Path | None, root: str | None, state: str | None, **rest: Any) -> R:
        outer = click.get_current_context().find_object(Common) or Common()
        return function(Common(config, root, state).over(outer), *args, **rest)

    return _with_options(update_wrapper(with_common, function))


def json_option(function: Callable[..., R]) -> Callable[..., R]:
    """Give a command --json, as the argument ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")(function)


def executor_option(function: Callable[..., R]) -> Callable[..., R]:
    """Give a command --executor, as the argument ``executor``: None if it is not given."""
    return click.option("--executor", metavar="ADDRESS", help="Judge on a Dask cluster, such as dask://HOST:8786.")(
        function
    )


@click.group(
    name="distilld",
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 failed or unhealthy, 2 wrong usage or config, 75 another distilld is the writer,"
    " 130 interrupted.",
)
@click.version_option(version=__version__, prog_name="distilld", message="%(prog)s %(version)s")
@_with_options
@click.pass_context
def distilld(context: click.Context, /, **given: Any) -> None:
    """Keep three training datasets exactly up to date with the scored runs of a lakehouse.

    Start with 'distilld demo', then 'distilld init' and 'distilld run --once'.
    """
    context.obj = Common(**given)
