"""``distilld receipts``: list the batches, and check the chain of their receipts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import orjson

from distilld.cli.commands import COUNT, Common, common_options, json_option
from distilld.cli.exit_codes import ExitCode
from distilld.cli.output import print_json, say, show
from distilld.cli.settings import load_settings
from distilld.files.regular import read_regular
from distilld.publish.receipt_files import StageReceipt, receipt_path, sha256_of, stage_receipts
from distilld.store.queries import Views, reading
from distilld.tables import Table, counted

WHOLE = "ok"


class ReceiptLine(NamedTuple):
    """A batch and its receipt; ``state`` is 'ok', or what is wrong with the receipt."""

    batch_id: str
    sequence: int
    trigger: str
    recorded_at: str
    appended: int
    quarantined: int
    withdrawn: int
    judged: int
    duration_ms: int
    checks: str
    state: str


@click.command()
@click.option("--limit", type=COUNT, metavar="N", default=20, show_default=True, help="The newest N; 0: all.")
@common_options
@json_option
def receipts(common: Common, limit: int, as_json: bool) -> ExitCode:
    """List the newest batches and runs of other stages, and check each one's receipt and its link to the one before.

    A receipt is 'ok' if the file in reports/distillation/ has the sha256 that the store recorded, and names the sha256
    of the receipt before it. Exits with 1 if one is not.
    """
    settings = load_settings(common)
    with reading(settings.state, settings.root) as store:
        anchor = store.recall("receipt_anchor_id")
        lines = list(_lines(settings.root, Views(store), limit or None, store.recall("receipt_anchor_sha256")))
    stages = sorted(stage_receipts(settings.root), reverse=True)[: limit or None]
    states = [line.state for line in lines] + [each.problem or WHOLE for each in stages]
    broken = len([state for state in states if state != WHOLE])
    code = ExitCode.FAILED if broken else ExitCode.DONE
    if as_json:
        chain = "broken" if broken else "whole"
        print_json({"chain": chain, "anchor": anchor, "receipts": lines, "stages": stages})
    elif not states:
        say("no batch was committed yet")
    else:
        _print(lines, stages, anchor, broken)
    return code


def _print(lines: list[ReceiptLine], stages: list[StageReceipt], anchor: str | None, broken: int) -> None:
    columns = ("batch", "trigger", "added", "quarantined", "withdrawn", "ms", "receipt")
    rows = [
        (line.batch_id, line.trigger, line.appended, line.quarantined, line.withdrawn, line.duration_ms,
         line.state if line.checks == "passed" else f"{line.state}, checks {line.checks}")
        for line in lines
    ]  # fmt: skip
    show(Table("Batches, newest first", columns, rows))
    if stages:
        runs = [(each.batch_id, each.exit_code, each.duration_ms, each.problem or WHOLE) for each in stages]
        show(Table("Other stages, newest first", ("run", "exit code", "ms", "receipt"), runs))
    found = counted(len(lines) + len(stages), "receipt")
    older = f"; older ones ended with {anchor}" if anchor else ""
    say(f"the chain is broken in {broken} of {found}" if broken else f"the chain is whole over {found}{older}")


def _lines(root: Path, views: Views, limit: int | None, anchor_sha256: str | None) -> Iterator[ReceiptLine]:
    """Yield the newest receipts, each compared with its file and with the one before it. Read one more for that."""
    kept = views.receipts(None if limit is None else limit + 1)
    newer: tuple[Any, dict[str, Any], str] | None = None
    given = 0
    for receipt in kept:
        facts, problem = _compare_with_file(root, receipt.batch.batch_id, receipt.text, receipt.sha256, receipt.written)
        if newer is not None:
            yield _line(*newer, previous=receipt.sha256)
            given += 1
        newer = (receipt.batch, facts, problem)
    if newer is not None and (limit is None or given < limit):
        yield _line(*newer, previous=anchor_sha256)


def _compare_with_file(root: Path, batch_id: str, text: str, sha256: str, written: bool) -> tuple[dict[str, Any], str]:
    if sha256_of(text.encode()) != sha256:
        return {}, "changed in the store"
    facts = _facts_of(text)
    if not facts:
        return {}, "no receipt"
    try:
        content = read_regular(root / receipt_path(batch_id))
    except FileNotFoundError:
        return facts, "missing" if written else "not written yet"
    except OSError as error:
        return facts, f"cannot be read: {error.strerror}"
    return facts, WHOLE if sha256_of(content) == sha256 else "changed"


def _facts_of(text: str) -> dict[str, Any]:
    """Return what a receipt says; nothing if the text is no receipt."""
    try:
        facts = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    needed = {"previous_receipt_sha256", "validation_pass"}
    return facts if isinstance(facts, dict) and needed <= facts.keys() else {}


def _line(batch: Any, facts: dict[str, Any], problem: str, *, previous: str | None) -> ReceiptLine:
    if problem == WHOLE and facts["previous_receipt_sha256"] != previous:
        problem = "names another receipt before it"
    return ReceiptLine(
        batch_id=batch.batch_id,
        sequence=batch.batch,
        trigger=batch.trigger,
        recorded_at=batch.recorded_at,
        appended=batch.rows_exported,
        quarantined=batch.rows_quarantined,
        withdrawn=batch.rows_withdrawn,
        judged=batch.rows_judged,
        duration_ms=batch.duration_ms,
        checks="unknown" if not facts else "passed" if facts["validation_pass"] else "failed",
        state=problem,
    )
