"""Writes a batch's receipt, a link in a chain, and ``latest.md``, a page for people (SPEC 4); reads receipts."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import MAXYEAR, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson

from distilld import __version__
from distilld.core.json_text import parse_object
from distilld.core.model import REPORTS
from distilld.files.durable import closed_after, make_folder, replace_file, sync_folder, sync_up
from distilld.files.regular import read_regular
from distilld.publish.reading import FileRefusedError

RECEIPT_VERSION: Final = 1
LATEST: Final = f"{REPORTS}/latest.md"
BATCH_ID: Final = re.compile(r"([0-9]{4})([0-9]{2})([0-9]{2}T[0-9]{2})([0-9]{2})([0-9]{2}\.[0-9]{3}Z)")
_MOST_BATCHES: Final = 1 << 62
_OF_SOMEBODY_ELSE: Final = (errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENOTEMPTY)
"""Error numbers that mean that a folder, a file or a link is not ours."""


class ReceiptWriteError(FileRefusedError):
    """A receipt could not be written. The batch stays committed; the next start writes the receipt again."""

    doing = "write"


class ReceiptReadError(FileRefusedError):
    """The receipts on disk cannot be listed or read, so their content is unknown."""


class Link(NamedTuple):
    """A batch's receipt on disk, as a link of the chain; ``recorded_at`` is UTC with milliseconds."""

    sequence: int
    batch_id: str
    sha256: str
    recorded_at: str


def receipt_bytes(facts: Mapping[str, Any]) -> bytes:
    """Return the content of a receipt's file: indented JSON with a line feed."""
    return orjson.dumps(
        {"schema_version": RECEIPT_VERSION, "distilld_version": __version__, **facts},
        option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE,
    )


def sha256_of(receipt: bytes) -> str:
    """Return the digest by which the next receipt in the chain names this one."""
    return hashlib.sha256(receipt).hexdigest()


def receipt_path(batch_id: str) -> str:
    """Return the path of a batch's receipt, below the root."""
    return f"{REPORTS}/{batch_id}/receipt.json"


def stage_of(folder: str) -> str | None:
    """Return the stage of the receipt in a folder of this name: empty for a batch's, None if it is no receipt's."""
    batch_id, _, stage = folder.partition("-")
    return stage if BATCH_ID.fullmatch(batch_id) and _moment_of(batch_id) else None


def newest_receipt(root: Path) -> Link | None:
    """Return the newest receipt of a batch on disk, or None if there is none.

    Raises:
        ReceiptReadError: The receipts cannot be listed or read.
    """
    return next((link for link, _ in receipts_on_disk(root)), None)


def receipts_on_disk(root: Path) -> Iterator[tuple[Link, dict[str, Any]]]:
    """Yield the receipts of batches on disk and what they say, newest first.

    Skip a file that is not the receipt of the batch that its folder names (damaged, copied, of another stage), and one
    whose time no later receipt can follow.

    Raises:
        ReceiptReadError: The receipts cannot be listed or read.
    """
    with ReceiptReadError.about(REPORTS), suppress(FileNotFoundError):
        names = os.listdir(root / REPORTS)
        for batch_id in sorted(filter(BATCH_ID.fullmatch, names), reverse=True):
            path = root / receipt_path(batch_id)
            if path.is_symlink() or not path.is_file():
                continue
            content = read_regular(path)
            facts = parse_object(content).value or {}
            if (link := _link(batch_id, content, facts)) is not None:
                yield link, facts


def _link(batch_id: str, content: bytes, facts: Mapping[str, Any]) -> Link | None:
    sequence, recorded_at = facts.get("sequence"), _moment_of(batch_id)
    if facts.get("stage") != "distill" or recorded_at is None or facts.get("recorded_at") != recorded_at:
        return None
    if type(sequence) is not int or not 0 <= sequence < _MOST_BATCHES:
        return None
    return Link(sequence, batch_id, sha256_of(content), recorded_at)


def _moment_of(batch_id: str) -> str | None:
    """Return when the batch with this id was recorded, or None if that is no time, or the last year there is."""
    text = BATCH_ID.sub(r"\1-\2-\3:\4:\5", batch_id)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return text if moment.year < MAXYEAR else None


def write_receipt(root: Path, batch_id: str, receipt: bytes, *, cut_off: bool = False) -> str | None:
    """Write a receipt and the page. Writing it again gives the same files.

    A folder at the page's path is left alone: then return why there is no page. ``cut_off`` says that a kill may have
    come between making one of its folders and the fsync of the folder's entry.

    Raises:
        ReceiptWriteError: The write failed.
    """
    _replace(root, receipt_path(batch_id), receipt)
    why_no_page = _write_page(root, orjson.loads(receipt))
    if cut_off:
        with ReceiptWriteError.about(receipt_path(batch_id)):
            sync_up((root / receipt_path(batch_id)).parent, root)
    return why_no_page


def remove_receipts(root: Path, batch_ids: Iterable[str]) -> None:
    """Remove receipts that are no longer kept.

    A folder with a foreign file in it stays, with that file. Whatever replaced a receipt or its folder stays, too. No
    link is followed, because a folder that was moved and linked to is an archive.

    Raises:
        ReceiptWriteError: A receipt cannot be removed.
    """
    for batch_id in batch_ids:
        with ReceiptWriteError.about(receipt_path(batch_id)), suppress(FileNotFoundError):
            _remove(root / REPORTS / batch_id)
    with ReceiptWriteError.about(REPORTS), suppress(FileNotFoundError):
        sync_folder(root / REPORTS)


def _remove(folder: Path) -> None:
    try:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        with closed_after(os.open(folder, flags)) as descriptor, suppress(FileNotFoundError):
            os.unlink("receipt.json", dir_fd=descriptor)
        folder.rmdir()
    except OSError as error:
        if error.errno not in _OF_SOMEBODY_ELSE:
            raise


def stage_heads(root: Path) -> dict[str, str]:
    """Return the sha256 of the newest receipt of each other stage; skip receipts that cannot be read."""
    heads = {}
    with suppress(OSError):
        for stage, batch_ids in ids_by_stage(root).items():
            for batch_id in reversed(batch_ids):
                with suppress(OSError):
                    heads[stage] = sha256_of(read_regular(root / receipt_path(batch_id)))
                    break
    return heads


def ids_by_stage(root: Path) -> dict[str, list[str]]:
    """Return the ids of each other stage's receipts, oldest first.

    Raises:
        OSError: The folder of the receipts cannot be listed.
    """
    chains: dict[str, list[str]] = {}
    names = os.listdir(root / REPORTS) if (root / REPORTS).exists() else ()
    # Nearly all folders are of batches, and this is asked at each batch.
    for batch_id in sorted(name for name in names if "-" in name):
        if stage := stage_of(batch_id):
            chains.setdefault(stage, []).append(batch_id)
    return chains


def _replace(root: Path, below: str, content: bytes) -> None:
    with ReceiptWriteError.about(below):
        make_folder((root / below).parent)
        replace_file(root / below, content)


def _write_page(root: Path, receipt: Mapping[str, Any]) -> str | None:
    try:
        _replace(root, LATEST, latest_page(receipt).encode())
    except ReceiptWriteError as error:
        if error.errno != errno.EISDIR:
            raise
        return "a folder stands in its place"
    return None


def latest_page(receipt: Mapping[str, Any]) -> str:
    """Return a page on the newest run: what it did, what is in the datasets, what is quarantined and why.

    A run here is one scan and all batches that follow from it; ``receipt`` is that of its last batch so far.
    """
    counts = receipt["record_counts"]
    # Older versions did not record runs: each of their batches counts as one.
    run = receipt.get("run") or {"batches": 1, "started_at": receipt["started_at"], "datasets": counts["per_exporter"]}
    several = (
        f"Run `{run['run_id']}` of {run['batches']} batches; the last one: batch" if run["batches"] > 1 else "Batch"
    )
    lines = [
        "# The latest run",
        "",
        f"{several} `{receipt['batch_id']}`, number {receipt['sequence']}, trigger: {receipt['trigger']}; "
        f"{run['started_at']} to {receipt['ended_at']}. "
        + ("All its checks passed." if receipt["validation_pass"] else "**A check failed.**"),
        "",
        "| dataset | rows now | quarantined | appended | withdrawn |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, per in counts["per_exporter"].items():
        done = run["datasets"][name]
        # Older versions used other keys.
        rows, quarantined = per.get("rows", per.get("shipped")), per.get("quarantine_rows", per.get("held"))
        lines.append(f"| {name} | {rows} | {quarantined} | {done['appended']} | {done['withdrawn']} |")
    causes = [(name, *each) for name, done in run["datasets"].items() for each in done.get("by_cause", {}).items()]
    if causes:
        lines += ["", "## Withdrawn, by cause", "", "| dataset | cause | rows |", "|---|---|---:|"]
        lines += [f"| {name} | {cause} | {rows} |" for name, cause, rows in causes]
        lines += ["", f"Runs, the first few: {', '.join(map(_cell, run['withdrawn_runs']))}"]
    lines += ["", "## Quarantined, by reason", "", "| dataset | reason | rows |", "|---|---|---:|"]
    for name, per in counts["per_exporter"].items():
        lines += [f"| {name} | {reason} | {rows} |" for reason, rows in per["by_reason"].items()]
    lines += [
        "",
        "## Inputs of this batch" if run["batches"] == 1 else "## Inputs of the last batch",
        "",
        *_input_table(receipt["inputs"]),
    ]
    for title, key in (("Warnings", "warnings"), ("Errors", "errors")):
        if receipt[key]:
            lines += ["", f"## {title}", "", *(f"- {_cell(text)}" for text in receipt[key])]
    return "\n".join(lines) + "\n"


_SHOWN_INPUTS: Final = 50


def _input_table(inputs: Sequence[Mapping[str, Any]]) -> list[str]:
    if not inputs:
        return ["None."]
    lines = ["| file | change | lines | malformed |", "|---|---|---:|---:|"]
    lines += [
        f"| {_cell(each['path'])} | {each['change']} | {each['lines']} | {each['malformed_lines']} |"
        for each in inputs[:_SHOWN_INPUTS]
    ]
    if len(inputs) > _SHOWN_INPUTS:
        lines += ["", f"... and {len(inputs) - _SHOWN_INPUTS} more; the receipt names all."]
    return lines


def _cell(text: str) -> str:
    return "".join(_CELL_SIGNS.get(sign, sign if sign.isprintable() else f"\\\\x{ord(sign):02x}") for sign in text)


_CELL_SIGNS: Final = {sign: f"\\{sign}" for sign in "\\|`[]*"} | {"<": "&lt;", "&": "&amp;"}
"""Escapes for signs of Markdown: no path or message may end a cell, or become a link or a tag."""
