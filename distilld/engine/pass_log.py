"""Log what a pass does: one line for each batch; anything unusual once, until it changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import structlog

from distilld.core.line_facts import OddLines
from distilld.core.model import InputKind
from distilld.lake.scan import Oddity, Scan, tree_path
from distilld.lake.source_files import REMEDY_OF_ROOT, is_root
from distilld.publish.commit import CommittedBatch
from distilld.publish.receipt_files import stage_heads

PATHS_LOGGED: Final = 20
"""The most paths that a log line names; its count says how many there are."""
LINES_A_PASS: Final = 100
"""The most lines that a pass logs for one event about inputs; the rest is counted."""

log = structlog.get_logger()


class Teller:
    """Logs the passes of one engine; logs a lasting condition once."""

    def __init__(self) -> None:
        self._odd_folders: set[str] = set()
        self._ignored: set[str] = set()
        self._strays: set[str] = set()
        self._not_listed: frozenset[Oddity] = frozenset()
        self._unreadable: frozenset[tuple[str, str]] = frozenset()
        self._tails: frozenset[str] = frozenset()
        self._logged: Counter[str] = Counter()
        """Numbers of lines in this pass so far, by event."""

    def end_pass(self) -> None:
        """Log how many lines were left out because there were too many of their kind."""
        for event, lines in self._logged.items():
            if lines > LINES_A_PASS:
                log.warning("lines_left_out", of=event, lines=lines - LINES_A_PASS)
        self._logged.clear()

    def _room_for(self, event: str) -> bool:
        """Count one more line of an event that every file may cause; return whether to log it."""
        self._logged[event] += 1
        return self._logged[event] <= LINES_A_PASS

    def input_changed(self, path: str) -> None:
        """Warn of a file that changed while it was read."""
        if self._room_for("input_changed"):
            log.warning("input_changed", path=path)

    def odd_folders(self, scan: Scan) -> None:
        """Warn of partition folders whose names are not dates; they are read all the same."""
        for folder in sorted(set(scan.odd_folders) - self._odd_folders):
            if self._room_for("odd_partition_name"):
                log.warning("odd_partition_name", path=folder)
        self._odd_folders.update(scan.odd_folders)

    def not_listed(self, scan: Scan) -> None:
        """Log folders that cannot be listed, and folders that a file system uses for itself."""
        for oddity in scan.not_listed:
            if oddity not in self._not_listed and self._room_for("folder_not_listed"):
                log.error("folder_not_listed", path=oddity.path, problem=oddity.problem)
        self._not_listed = frozenset(scan.not_listed)
        for folder in sorted(set(scan.ignored) - self._ignored):
            if self._room_for("folder_ignored"):
                log.info("folder_ignored", path=folder)
        self._ignored.update(scan.ignored)

    def strays(self, scan: Scan) -> None:
        """Warn of entries in the trees that are not partitions, each kind once."""
        for stray in scan.strays:
            if stray.kind not in self._strays:
                log.warning("not_a_partition", kind=stray.kind, entries=stray.entries, example=stray.example)
        self._strays.update(stray.kind for stray in scan.strays)

    def unreadable(self, unreadable: tuple[Oddity, ...]) -> None:
        """Warn of inputs that were left out; :meth:`not_listed` logs folders."""
        for oddity in unreadable:
            known = (oddity.path, oddity.problem) in self._unreadable or oddity in self._not_listed
            if not known and self._room_for("file_unreadable"):
                hint = {"hint": REMEDY_OF_ROOT} if is_root(oddity.path) else {}
                log.warning("file_unreadable", path=oddity.path, problem=oddity.problem, **hint)
        self._unreadable = frozenset((oddity.path, oddity.problem) for oddity in unreadable)

    def odd_lines(self, malformed: Iterable[OddLines], unreviewed: Iterable[OddLines]) -> None:
        """Warn of malformed lines, and of verdicts with none of the four categories."""
        for each in malformed:
            figures = {"path": tree_path(each.kind, each.path), "lines": each.lines, "first_line": each.first_line}
            if each.kind is InputKind.SCORED and self._room_for("malformed_scored"):
                log.warning("malformed_scored", **figures)
            if each.kind is InputKind.EVIDENCE and self._room_for("malformed_evidence"):
                log.warning("malformed_evidence", **figures)
        for each in unreviewed:
            if self._room_for("unreviewed_verdict"):
                path = tree_path(each.kind, each.path)
                log.warning("unreviewed_verdict", path=path, lines=each.lines, first_line=each.first_line)

    def committed(self, root: Path, batch: CommittedBatch, *, kept: bool, written: bool) -> None:
        """Log a batch, after its unusual inputs.

        ``kept`` says that rows of absent partitions stay, ``written`` that this was not a dry run.
        """
        _tell_inputs(batch.receipt["inputs"], kept=kept)
        self._tell_tails(batch.receipt["pending_tails"])
        if written:
            heads = {"receipt_sha256": batch.receipt_sha256, "stage_heads": stage_heads(root)}
            log.info("batch_committed", **_figures(batch.receipt), **heads)
        else:
            log.info("dry_run", **_figures(batch.receipt))

    def _tell_tails(self, tails: list[dict[str, Any]]) -> None:
        for tail in tails:
            if tail["path"] not in self._tails and self._room_for("pending_tail"):
                log.info("pending_tail", path=tail["path"], bytes=tail["bytes"])
        self._tails = frozenset(tail["path"] for tail in tails)


def _tell_inputs(inputs: list[dict[str, Any]], *, kept: bool) -> None:
    paths: dict[str, list[str]] = {}
    for each in inputs:
        paths.setdefault(each["change"], []).append(each["path"])
    if absent := paths.get("absent"):
        log.warning("partition_absent", files=len(absent), paths=absent[:PATHS_LOGGED], rows_kept=kept)
    if returned := paths.get("returned"):
        log.info("partition_returned", files=len(returned), paths=returned[:PATHS_LOGGED])
    if rewritten := paths.get("rewritten"):
        log.info("partition_rewritten", files=len(rewritten), paths=rewritten[:PATHS_LOGGED])


def _figures(receipt: dict[str, Any]) -> dict[str, Any]:
    per, run = receipt["record_counts"]["per_exporter"], receipt["run"]
    causes: Counter[str] = Counter()
    for done in run["datasets"].values():
        causes.update(done["by_cause"])
    return dict(
        run_id=run["run_id"],
        sequence=receipt["sequence"],
        trigger=receipt["trigger"],
        duration_ms=receipt["duration_ms"],
        inputs=len(receipt["inputs"]),
        **receipt["work"],
        **{
            f"{name}_{key}": per[name][key]
            for name in per
            for key in ("appended", "withdrawn", "rows", "quarantine_rows")
        },
        validation_pass=receipt["validation_pass"],
        **({"run_withdrawn": dict(causes), "withdrawn_runs": run["withdrawn_runs"]} if causes else {}),
    )
