"""``distilld prune``: withdraw rows that are retained although no present input gives them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import click

from distilld.cli.commands import Common, ExitCode, common_options, json_option
from distilld.cli.one_run import at_work, print_changes, report_as_json, say_not_read, say_work
from distilld.cli.output import print_json, say, show
from distilld.cli.settings import load_settings
from distilld.cli.streams import WorkCommand
from distilld.config.settings import Settings
from distilld.core.model import Trigger, UsageError
from distilld.engine.engine import Engine
from distilld.service.run_once import RunReport, bring_up_to_date, recover
from distilld.store.connection import refuse_missing
from distilld.store.pruning import Pruned
from distilld.store.queries import reading
from distilld.store.retained import Only, Retained, RetainedCount
from distilld.store.run_queries import Stories
from distilld.tables import Table, counted


@click.command(cls=WorkCommand)
@click.option(
    "--partition",
    metavar="GLOB",
    help="Only what came from partitions whose path (YYYY/MM/DD/name.jsonl) matches; * matches / too.",
)
@click.option("--orphans", is_flag=True, help="Only orphans: rows from before this store that no input gives.")
@click.option("--vanished", is_flag=True, help="Only what the tripwire retained and nobody accepted.")
@click.option("--accept", is_flag=True, help="Keep for good what the tripwire retained, and withdraw nothing.")
@click.option("--yes", is_flag=True, help="Do it. Without it, prune only shows what it would do.")
@common_options
@json_option
def prune(
    common: Common, partition: str | None, orphans: bool, vanished: bool, accept: bool, yes: bool, as_json: bool
) -> ExitCode:
    """Withdraw retained rows: those of absent partitions, those that the tripwire retained, and orphans.

    The verdicts of absent partitions are forgotten with them, unless --orphans or --vanished limits it: what only they
    forbade is exported again. Without --yes nothing is changed: prune shows what each group would lose, and the exit
    code is 2 if there is anything to do.
    """
    if partition is not None and (orphans or accept):
        raise UsageError(
            f"--partition does not go with {'--orphans' if orphans else '--accept'}",
            hint="orphans have no partition" if orphans else "what the tripwire kept is accepted as a whole",
        )
    asked = [flag for flag, on in (("--orphans", orphans), ("--vanished", vanished), ("--accept", accept)) if on]
    if len(asked) > 1:
        raise UsageError(f"{asked[0]} does not go with {asked[1]}", hint="run prune once for each")
    if partition is not None and partition != partition.encode(errors="replace").decode():
        raise UsageError(f"--partition = {partition!r}; allowed: UTF-8, as the name of every partition is")
    settings = load_settings(common)
    only = Only.ORPHAN if orphans else Only.VANISHED if vanished else None
    if not yes:
        return _preview(settings, partition, only, accept=accept, as_json=as_json)
    # Without a store, a writer would create one and do a whole first pass.
    refuse_missing(settings.state)
    if accept:
        return _accept(settings, as_json=as_json)
    return _prune(settings, partition, only, as_json=as_json)


_ONLY_THESE: Final = {
    "orphan": "--orphans",
    "vanished": "--vanished",
    "absent": "--partition GLOB",
    "evidence absent": "--partition GLOB",
}
"""The option that limits a prune to rows that are retained for this reason."""


def _preview(settings: Settings, partition: str | None, only: Only | None, *, accept: bool, as_json: bool) -> ExitCode:
    with reading(settings.state, settings.root) as store:
        kept = Retained(store).kept_by_tripwire() if accept else {}
        retained: list[RetainedCount] = [] if accept else Retained(store).counts(partition, only)
        undecided = Retained(store).counts(partition, Only.VANISHED) if retained else []
        files = 0 if accept or only else Stories(store).absent_files(partition)
    due = bool(kept or retained or files)
    if as_json:
        print_json({"done": False, "accept": kept, "withdraw": retained, "forget_absent_files": files})
        return ExitCode.WRONG_USAGE if due else ExitCode.DONE
    if kept:
        show(Table("What would be kept for good", ("dataset", "rows"), list(kept.items())))
    if retained:
        rows = list(_groups(retained, undecided))
        show(Table("What would be withdrawn", ("dataset", "retained as", "rows", "only these"), rows))
    if files:
        say(f"{counted(files, 'absent file')} would be forgotten, with the verdicts that stood there")
    say("nothing was changed; add --yes to do it" if due else "there is nothing to prune")
    return ExitCode.WRONG_USAGE if due else ExitCode.DONE


def _groups(retained: list[RetainedCount], undecided: list[RetainedCount]) -> Iterator[tuple[str, str, int, str]]:
    """Yield what would be withdrawn, and the option for only that. ``--vanished`` leaves out what was accepted."""
    open_rows = {(each.dataset, each.kind): each.rows for each in undecided}
    for each in retained:
        option, accepted = _ONLY_THESE[each.kind], 0
        if option == "--vanished":
            accepted = each.rows - open_rows.get((each.dataset, each.kind), 0)
        if each.rows > accepted:
            yield str(each.dataset), each.kind, each.rows - accepted, option
        if accepted:
            yield str(each.dataset), f"{each.kind}, accepted", accepted, "--partition GLOB"


def _accept(settings: Settings, *, as_json: bool) -> ExitCode:
    def accepted(engine: Engine) -> dict[str, int]:
        recover(engine)
        kept = engine.retained.kept_by_tripwire()
        if kept:
            engine.accept_vanished()
        return kept

    kept = at_work(settings, accepted)
    if as_json:
        print_json({"done": True, "accepted": kept})
    elif kept:
        say("kept for good: " + ", ".join(f"{dataset} {rows:,}" for dataset, rows in kept.items()))
    else:
        say("the tripwire keeps nothing")
    return ExitCode.DONE


def _prune(settings: Settings, partition: str | None, only: Only | None, *, as_json: bool) -> ExitCode:
    def pruned(engine: Engine) -> tuple[Pruned, RunReport]:
        recover(engine)
        # Before the inputs are scanned: the user has not agreed to withdraw what vanishes only now.
        gone = engine.give_up(partition, only)
        return gone, bring_up_to_date(engine, Trigger.PRUNE)

    gone, report = at_work(settings, pruned)
    if as_json:
        done = {"done": True, "pruned": gone.rows, "forgotten_absent_files": gone.files}
        print_json({**done, **report_as_json(report)})
    else:
        if gone.rows:
            say(f"retained rows and pairs that were let go: {gone.rows:,}")
        if gone.files:
            were = "was" if gone.files == 1 else "were"
            say(f"{counted(gone.files, 'absent file')} {were} forgotten, with the verdicts that stood there")
        if not any(gone):
            say("there was nothing to prune")
        if report.changed:
            print_changes(report)
            say_work(report)
    return say_not_read(report)
