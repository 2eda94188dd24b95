"""``distilld receipts``: list the batches, and check the chain of their receipts."""

from __future__ import annotations

from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import click

from distilld.cli.commands import COUNT, Common, ExitCode, common_options, json_option
from distilld.cli.output import print_json, say, show
from distilld.cli.settings import load_settings
from distilld.core.model import OperatorError
from distilld.inspection.receipt_chain import NOT_WRITTEN, WHOLE, CheckedReceipt, checked_receipts
from distilld.publish.stage_chains import StageReceipt, stage_receipts
from distilld.service.lock import holder
from distilld.store.queries import reading
from distilld.tables import Table, counted


@click.command()
@click.option("--limit", type=COUNT, metavar="N", default=20, show_default=True, help="The newest N; 0: all.")
@common_options
@json_option
def receipts(common: Common, limit: int, as_json: bool) -> ExitCode:
    """List the newest batches and runs of other stages, and check each one's receipt and its link to the one before.

    A receipt is 'ok' if the file in reports/distillation/ has the sha256 that the store recorded, and names the sha256
    of the receipt before it. Exits with 1 if one is not, but for one that a running writer is about to write.
    """
    settings = load_settings(common)
    writer_ran = _writer_runs(settings.root)
    with reading(settings.state, settings.root) as store:
        anchor = store.recall("receipt_anchor_id")
        lines = checked_receipts(store, settings.root, limit or None)
    stages = list(islice(stage_receipts(settings.root), limit or None))
    # A batch is committed before the file of its receipt is written.
    usual = {NOT_WRITTEN} if writer_ran or _writer_runs(settings.root) else set()
    broken = sum(not usual.issuperset(line.faults) for line in lines) + sum(each.problem is not None for each in stages)
    code = ExitCode.FAILED if broken else ExitCode.DONE
    if as_json:
        chain = "broken" if broken else "whole"
        print_json({"chain": chain, "anchor": anchor, "receipts": list(map(_as_json, lines)), "stages": stages})
    elif not (lines or stages):
        say("no batch was committed yet")
    else:
        _print(lines, stages, anchor, broken)
    return code


def _writer_runs(root: Path) -> bool:
    with suppress(OperatorError):  # who may read the store may not be allowed to see the lock
        return holder(root).running
    return False


def _print(lines: list[CheckedReceipt], stages: list[StageReceipt], anchor: str | None, broken: int) -> None:
    columns = ("batch", "trigger", "added", "replaced", "withdrawn", "quarantined")
    rows = []
    for line in lines:
        batch, again = line.batch, line.replaced or 0
        changes = (batch.rows_exported - again, line.replaced, batch.rows_withdrawn - again, batch.rows_quarantined)
        rows.append((batch.batch_id, batch.trigger, *changes))
    show(Table("Batches, newest first", columns, rows))
    if told := [(line.batch.batch_id, _said_of(line)) for line in lines if _said_of(line) != WHOLE]:
        show(Table("Receipts that are not ok", ("batch", "receipt"), told))
    if stages:
        runs = [(each.batch_id, each.exit_code, each.duration_ms, each.problem or WHOLE) for each in stages]
        show(Table("Other stages, newest first", ("run", "exit code", "ms", "receipt"), runs))
    found = counted(len(lines) + len(stages), "receipt")
    older = f"; older ones ended with {anchor}" if anchor else ""
    say(f"the chain is broken in {broken} of {found}" if broken else f"the chain is whole over {found}{older}")


def _said_of(line: CheckedReceipt) -> str:
    return line.state if line.checks == "passed" else f"{line.state}, checks {line.checks}"


def _as_json(line: CheckedReceipt) -> dict[str, Any]:
    batch = line.batch
    return {
        "batch_id": batch.batch_id,
        "sequence": batch.batch,
        "trigger": batch.trigger,
        "recorded_at": batch.recorded_at,
        "appended": batch.rows_exported,
        "quarantined": batch.rows_quarantined,
        "replaced": line.replaced,
        "withdrawn": batch.rows_withdrawn - (line.replaced or 0),
        "judged": batch.rows_judged,
        "duration_ms": batch.duration_ms,
        "checks": line.checks,
        "state": line.state,
    }
