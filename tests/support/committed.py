"""What must hold of a root after every kill, fault and recovery, read from the disk and the store as a person would.

``committed_and_whole`` holds right after recovery, whatever was going on: each export is, byte for byte, what the last
commit says, and nothing else is left. ``outcome`` is what a pass comes to, timestamps aside.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from distilld.core.line_facts import id_of
from distilld.core.model import CARD, EXPORT_PATHS, Dataset

_TIMES: Final = ("created_at", "recorded_at", "withdrawn_at", "withdrawn_batch", "shipped_batch")
"""Keys of a row of ours that tell when; keys of the rows that came in are further down."""

Outcome = dict[str, list[dict[str, Any]] | None]
"""The rows of each of the nine files, in order, timestamps aside; None where there is no file."""


def rows_of(root: Path, name: str) -> list[dict[str, Any]] | None:
    """The rows of an export; each line must be whole. None where there is no file."""
    path = root / EXPORT_PATHS[name]
    if not path.exists():
        return None
    content = path.read_bytes()
    assert not content or content.endswith(b"\n"), f"{name} ends in a torn line"
    return [json.loads(line) for line in content.splitlines()]


def outcome(root: Path) -> Outcome:
    """What stands in the nine files."""
    found = {name: rows_of(root, name) for name in EXPORT_PATHS}
    for rows in found.values():
        for row in rows or ():
            _drop_times(row)
    return found


def _drop_times(row: dict[str, Any]) -> None:
    for key in _TIMES:
        row.pop(key, None)
    if isinstance(row.get("provenance"), dict):
        row["provenance"].pop("recorded_at", None)


def at_rest(root: Path) -> dict[str, Any]:
    """What SPEC 3 promises of the files at rest: datasets by id, quarantine rows as a multiset; no history."""
    found = outcome(root)
    datasets: dict[str, Any] = {name: {row["id"]: row for row in found[name] or ()} for name in Dataset}
    held = {
        name: Counter(json.dumps(row, sort_keys=True) for row in rows or ())
        for name, rows in found.items()
        if name.startswith("quarantine_")
    }
    return datasets | held


def committed_and_whole(root: Path, *, taken_in: bool = True) -> None:
    """Every export is what the store says it is, each row stands once, and nothing of an unfinished batch is left.

    Exports that were damaged, or stand there from before the store, are first ``taken_in`` when a pass begins.
    """
    with _reading(root) as store:
        assert store.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert store.execute("SELECT * FROM intents").fetchall() == []
        assert store.execute("SELECT * FROM export_files WHERE pending_temp IS NOT NULL").fetchall() == []
        assert store.execute("SELECT * FROM overwrites").fetchall() == []
        if taken_in:
            _exports_are_committed(root, store)
            _rows_stand_once(root, store)
            _receipts_are_whole(root, store)
    _nothing_is_left(root)


def _reading(root: Path) -> closing[sqlite3.Connection]:
    return closing(sqlite3.connect(f"file:{root}/state/distilld.db?mode=ro", uri=True))


def _exports_are_committed(root: Path, store: sqlite3.Connection) -> None:
    columns = "name, size_bytes, rows, sha256, segment_bytes, space_bytes"
    committed = {name: facts for name, *facts in store.execute(f"SELECT {columns} FROM export_files")}
    standing = {}
    for name, path in EXPORT_PATHS.items():
        if (root / path).exists():
            content = (root / path).read_bytes()
            width = committed[name][3]
            spaces = sum(len(line) - len(line.lstrip(b" ")) for line in content.split(b"\n"))
            rows = content.count(b"\n")
            standing[name] = [len(content), rows, digest_by_segments(content, width), width, spaces]
    assert standing == committed


def digest_by_segments(content: bytes, width: int) -> str:
    """The digest of a file that the store and receipts speak of, made with nothing of ours."""
    digests = [hashlib.sha256(content[at : at + width]) for at in range(0, len(content), width)]
    if len(digests) < 2:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha256(b"".join(each.digest() for each in digests)).hexdigest()


_DEPARTING: Final = (
    "SELECT sample_key, nullif(outcomes.outcome, 'exported') FROM departures JOIN outcomes ON code = departures.outcome"
    " WHERE dataset = ?"
)
"""Lines that still stand although their rows were found gone: the next batch takes them out."""


def _rows_stand_once(root: Path, store: sqlite3.Connection) -> None:
    stamps = {stamp for (stamp,) in store.execute("SELECT recorded_at FROM batches")}
    adopted = {stamp for (stamp,) in store.execute("SELECT created_at FROM adopted_rows")}
    for dataset in Dataset:
        departing = store.execute(_DEPARTING, (dataset,)).fetchall()
        rows = rows_of(root, dataset) or []
        ids = [row["id"] for row in rows]
        assert len(set(ids)) == len(ids), f"{dataset} has an id twice"
        seen = [seen for (seen,) in store.execute("SELECT id FROM seen_ids WHERE dataset = ?", (dataset,))]
        leaving = {id_of(dataset, key) for key, reason in departing if reason is None}
        assert sorted(ids) == sorted({*seen, *leaving}), f"{dataset} is not what the store says it ships"
        assert {row["created_at"] for row in rows} <= stamps | adopted, f"{dataset} has rows of a batch that never was"
        held = rows_of(root, f"quarantine_{dataset}") or []
        reasons = Counter(row["reason"] for row in held)
        by_reason = store.execute("SELECT reason, rows FROM quarantine_by_reason WHERE dataset = ?", (dataset,))
        assert reasons == Counter(dict(by_reason.fetchall())) + Counter(reason for _, reason in departing if reason)
        assert {row["recorded_at"] for row in held} <= stamps, f"{dataset} has held rows of a batch that never was"
        gone = rows_of(root, f"withdrawals_{dataset}") or []
        assert (
            len(gone) == store.execute("SELECT count(*) FROM withdrawals WHERE dataset = ?", (dataset,)).fetchone()[0]
        )


def _receipts_are_whole(root: Path, store: sqlite3.Connection) -> None:
    """Each receipt that the store keeps is on disk, names the one before it, and there are no others."""
    assert store.execute("SELECT count(*) FROM receipts WHERE written = 0").fetchone() == (0,)
    kept = store.execute(
        "SELECT batch_id, receipt, receipt_sha256 FROM receipts JOIN batches USING (batch) ORDER BY batch"
    ).fetchall()
    anchor = dict(store.execute("SELECT name, value FROM lake WHERE name LIKE 'receipt_anchor_%'").fetchall())
    previous = anchor.get("receipt_anchor_sha256")
    reports = root / "reports" / "distillation"
    for batch_id, text, sha256 in kept:
        content = (reports / batch_id / "receipt.json").read_bytes()
        assert content.decode() == text
        assert hashlib.sha256(content).hexdigest() == sha256
        assert json.loads(content)["previous_receipt_sha256"] == previous
        previous = sha256
    folders = {path.name for path in reports.iterdir() if path.is_dir()} if reports.exists() else set()
    older = {name for name in folders if name <= anchor.get("receipt_anchor_id", "")}
    assert folders - older == {batch_id for batch_id, _, _ in kept}
    if kept:
        assert kept[-1][0] in (reports / "latest.md").read_text()


def _nothing_is_left(root: Path) -> None:
    """Below exports and reports stand only files that belong there."""
    expected = {root / path for path in EXPORT_PATHS.values()}
    for folder in (root / "exports", root / "reports"):
        for path in folder.rglob("*"):
            if path.is_file() and path not in expected and ".set-aside" not in path.parts:
                assert path.name in ("receipt.json", "latest.md", ".distilld.lock", CARD), f"{path} is left over"


def accounted(root: Path) -> None:
    """Each non-empty line of the inputs came to one row of RAG and one of SFT, exported or held, beside retained ones."""
    lines = sum(
        sum(1 for line in path.read_bytes().split(b"\n") if line)
        for path in (root / "data" / "scored-runs").rglob("*.jsonl")
    )
    for dataset in (Dataset.RAG, Dataset.SFT):
        exported, held = rows_of(root, dataset) or [], rows_of(root, f"quarantine_{dataset}") or []
        with _reading(root) as store:
            retained = store.execute(f"SELECT count(*) FROM retained_rows WHERE {dataset} IS NOT NULL").fetchone()[0]
        assert len(exported) + len(held) == lines + retained


def settled(lake_root: Path, expected: Outcome) -> None:
    """Everything that holds at rest, and the files are those of an undisturbed run."""
    committed_and_whole(lake_root)
    accounted(lake_root)
    found = outcome(lake_root)
    for name in EXPORT_PATHS:
        assert found[name] == expected[name], f"{name} differs from that of an undisturbed run"
