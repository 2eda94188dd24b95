"""What a pass says in the log: a line for each batch; what is out of the ordinary, once for as long as it stands."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import structlog

from distilld.core.line_facts import OddLines
from distilld.core.model import InputKind
from distilld.lake.scan import Oddity, Scan, tree_path
from distilld.publish.commit import CommittedBatch
from distilld.publish.receipt_files import stage_heads

PATHS_LOGGED: Final = 20
"""How many paths a line of the log names; its count says how many there are."""

log = structlog.get_logger()


class Teller:
    """Tells of one engine's passes; what it has told it does not tell again until it was otherwise."""

    def __init__(self) -> None:
        self._odd_folders: set[str] = set()
        self._ignored: set[str] = set()
        self._strays: set[str] = set()
        self._not_listed: frozenset[Oddity] = frozenset()
        self._unreadable: frozenset[tuple[str, str]] = frozenset()
        self._tails: frozenset[str] = frozenset()

    def odd_folders(self, scan: Scan) -> None:
        """Partition folders whose names are no date; they are read all the same."""
        for folder in sorted(set(scan.odd_folders) - self._odd_folders):
            log.warning("odd_partition_name", path=folder)
        self._odd_folders.update(scan.odd_folders)

    def not_listed(self, scan: Scan) -> None:
        """Folders that cannot be listed, and those that a file system keeps for itself."""
        for oddity in scan.not_listed:
            if oddity not in self._not_listed:
                log.error("folder_not_listed", path=oddity.path, problem=oddity.problem)
        self._not_listed = frozenset(scan.not_listed)
        for folder in sorted(set(scan.ignored) - self._ignored):
            log.info("folder_ignored", path=folder)
        self._ignored.update(scan.ignored)

    def strays(self, scan: Scan) -> None:
        """What lies in the trees and is no partition, each kind once."""
        for stray in scan.strays:
            if stray.kind not in self._strays:
                log.warning("not_a_partition", kind=stray.kind, entries=stray.entries, example=stray.example)
        self._strays.update(stray.kind for stray in scan.strays)

    def unreadable(self, unreadable: tuple[Oddity, ...]) -> None:
        """Inputs that were left out; of folders :meth:`not_listed` tells."""
        for oddity in unreadable:
            if (oddity.path, oddity.problem) not in self._unreadable and oddity not in self._not_listed:
                log.warning("file_unreadable", path=oddity.path, problem=oddity.problem)
        self._unreadable = frozenset((oddity.path, oddity.problem) for oddity in unreadable)

    def odd_lines(self, malformed: Iterable[OddLines], unreviewed: Iterable[OddLines]) -> None:
        """Warn of lines that are malformed, and of verdicts of none of the four categories."""
        for each in malformed:
            path, figures = tree_path(each.kind, each.path), {"lines": each.lines, "first_line": each.first_line}
            if each.kind is InputKind.EVIDENCE:
                log.warning("malformed_evidence", path=path, **figures)
            else:
                log.warning("malformed_scored", path=path, **figures)
        for each in unreviewed:
            path = tree_path(each.kind, each.path)
            log.warning("unreviewed_verdict", path=path, lines=each.lines, first_line=each.first_line)

    def committed(self, root: Path, batch: CommittedBatch, *, kept: bool, written: bool) -> None:
        """A batch, its inputs that are out of the ordinary first.

        ``kept`` says that rows of absent partitions stay, ``written`` that this was no dry run.
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
            if tail["path"] not in self._tails:
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
    per = receipt["record_counts"]["per_exporter"]
    return dict(
        sequence=receipt["sequence"],
        trigger=receipt["trigger"],
        duration_ms=receipt["duration_ms"],
        inputs=len(receipt["inputs"]),
        **receipt["work"],
        **{f"{name}_{key}": per[name][key] for name in per for key in ("appended", "withdrawn", "shipped", "held")},
        validation_pass=receipt["validation_pass"],
    )
