"""What must hold of the exports and receipts after every pass, whatever the history was."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from distilld.core.json_text import parse_object
from distilld.core.model import EXPORT_PATHS, Dataset, Options, Reason
from distilld.core.samples import SAMPLES, SCHEMA_VERSION
from distilld.inspection import oracle
from distilld.inspection.oracle_lake import Lake, LakeOnDisk
from distilld.inspection.oracle_verdicts import Verdicts
from distilld.inspection.unstamped import unstamped_quarantine, unstamped_sample
from tests.support.committed import digest_by_segments

KEYS: Final[dict[Dataset, dict[str, Any]]] = {
    Dataset.RAG: {
        "schema_version": int, "id": str, "title": str, "content": str, "tags": list, "source_run_id": str,
        "success_score": str, "source_category": str, "embedding_text": str, "created_at": str, "provenance": dict,
    },
    Dataset.SFT: {
        "schema_version": int, "id": str, "instruction": str, "context": str, "response": str, "source_run_id": str,
        "quality_score": str, "created_at": str, "provenance": dict,
    },
    Dataset.PREFERENCE: {
        "schema_version": int, "id": str, "prompt": str, "chosen": str, "rejected": str, "reason": str,
        "chosen_run_id": str, "rejected_run_id": str, "created_at": str, "provenance": dict,
    },
}  # fmt: skip
"""Every row of a dataset has these keys, in this order, with values of these types."""
PROVENANCE: Final = {"source_file": str, "line_offset": int | None, "sig_hash": str, "recorded_at": str}


def read_lake(root: Path, options: Options) -> Lake:
    """The partitions of a lake, all read now."""
    return dict(LakeOnDisk(root, options))


@dataclass(frozen=True)
class Exports:
    """What stands in the nine files: the lines as they are, and with their timestamps taken out."""

    exported: dict[Dataset, dict[str, bytes]]
    quarantined: dict[Dataset, list[bytes]]
    withdrawn: dict[Dataset, list[dict[str, Any]]]
    whole: dict[str, bytes] = field(repr=False)

    @classmethod
    def read(cls, root: Path) -> Exports:
        """Read them; no line is torn and no id stands twice."""
        whole = {
            name: (root / path).read_bytes() if (root / path).exists() else b"" for name, path in EXPORT_PATHS.items()
        }
        lines = {name: _rows(content) for name, content in whole.items()}
        assert all(content.endswith(b"\n") for content in whole.values() if content)
        exported = {}
        for dataset in Dataset:
            ids = [json.loads(line)["id"] for line in lines[dataset.value]]
            assert len(set(ids)) == len(ids), f"{dataset}: an id stands twice"
            exported[dataset] = dict(zip(ids, lines[dataset.value], strict=True))
        return cls(
            exported,
            {dataset: lines[f"quarantine_{dataset}"] for dataset in Dataset},
            {dataset: [json.loads(line) for line in lines[f"withdrawals_{dataset}"]] for dataset in Dataset},
            whole,
        )

    def lines(self, name: str) -> list[bytes]:
        """The lines of one of them, line feeds included."""
        return _rows(self.whole[name])


def _rows(content: bytes) -> list[bytes]:
    """The lines, without the spaces that stand where withdrawn rows stood before them."""
    return [line.lstrip(b" ") for line in content.splitlines(keepends=True)]


def equal_the_full_pass(exports: Exports, expected: oracle.FullPass) -> None:
    """At rest the datasets, keyed by id, and the quarantines, as multisets, are those of the full pass (SPEC 3)."""
    for dataset in Dataset:
        found = {key: unstamped_sample(line) for key, line in exports.exported[dataset].items()}
        assert found == expected.exported[dataset], f"{dataset} is not what a full pass gives"
        held = Counter(map(unstamped_quarantine, exports.quarantined[dataset]))
        wanted = Counter(expected.quarantined[dataset])
        assert held == wanted, (
            f"{dataset}'s quarantine is not what a full pass gives: missing {wanted - held}, extra {held - wanted}"
        )


def account_for_every_line(exports: Exports, expected: oracle.FullPass) -> None:
    """Every scored line is exported or held, once, in RAG and in SFT alike, for one of twelve reasons (SPEC 3.7)."""
    for dataset in Dataset:
        rows = [json.loads(line) for line in exports.quarantined[dataset]]
        assert {row["reason"] for row in rows} <= set(Reason)
        assert all(row["exporter"] == dataset for row in rows)
        if dataset is not Dataset.PREFERENCE:
            retained = sum(row.dataset is dataset for row in expected.retained_rows)
            assert len(exports.exported[dataset]) + len(rows) == expected.lines + retained


def have_the_keys_of_their_dataset(exports: Exports) -> None:
    """Every row has the keys and types of its dataset, in order, and passes its schema (SPEC 3.6, 3.10)."""
    for dataset in Dataset:
        for line in exports.exported[dataset].values():
            row = json.loads(line)
            assert list(row) == list(KEYS[dataset])
            assert all(isinstance(row[key], kind) for key, kind in KEYS[dataset].items())
            assert list(row["provenance"]) == list(PROVENANCE)
            assert all(isinstance(row["provenance"][key], kind) for key, kind in PROVENANCE.items())
            assert row["schema_version"] == SCHEMA_VERSION
            SAMPLES[dataset].model_validate(row)


def ship_no_forbidden_run(exports: Exports, verdicts: Verdicts, options: Options) -> None:
    """No row stands in a dataset whose run (of a pair, the chosen one) has a verdict in force against it (SPEC 3.4)."""
    if not options.revoke:
        return
    for dataset in Dataset:
        named = "chosen_run_id" if dataset is Dataset.PREFERENCE else "source_run_id"
        for line in exports.exported[dataset].values():
            verdict = verdicts.of(dataset, json.loads(line)[named])
            assert verdict is None or not options.forbids(dataset, verdict), f"{dataset} ships a run that is {verdict}"


def keep_what_did_not_change(before: Exports, after: Exports, stayed: Set[tuple[str, int]]) -> None:
    """A row whose content, timestamps aside, is as it was, is not rewritten (SPEC 3).

    ``stayed`` are the places whose scored lines are those that stood there before: rows that are held from there.
    """
    for dataset in Dataset:
        for key, line in after.exported[dataset].items():
            old = before.exported[dataset].get(key)
            if old is not None and unstamped_sample(old) == unstamped_sample(line):
                assert old == line, f"{dataset} rewrote {key}, which did not change"
        old_lines, new_lines = (
            [line for line in exports.quarantined[dataset] if _place_of(line) in stayed] for exports in (before, after)
        )
        same = Counter(map(unstamped_quarantine, old_lines)) & Counter(map(unstamped_quarantine, new_lines))
        kept = Counter(old_lines) & Counter(new_lines)
        assert kept.total() == same.total(), f"{dataset}'s quarantine rewrote rows that did not change"


def places_of_retained(expected: oracle.FullPass) -> set[tuple[str, int]]:
    """Where the held rows stood that are retained."""
    retained = [row.placed for row in expected.retained_rows] + [pair.placed for pair in expected.retained_pairs]
    return {_place_of(placed.line) for placed in retained if placed.id is None}


def _place_of(held: bytes) -> tuple[str, int]:
    location = json.loads(held)["location"]
    return location["partition"], location["line_offset"]


def publish_what_left(before: Exports, after: Exports) -> None:
    """Every id that left a dataset, or got new content, stands in the new lines of the withdrawals file (SPEC 3.9)."""
    for dataset in Dataset:
        news = new_withdrawals(before, after, dataset)
        last = {row["id"]: row["replaced"] for row in news}
        told = set(last)
        old, new = before.exported[dataset], after.exported[dataset]
        assert {key for key in old if key not in new} <= told, f"{dataset}: a row left and nobody was told"
        assert {key for key in old if key in new and old[key] != new[key]} <= told
        assert not [key for key in told if key in new and old.get(key) == new[key]], (
            f"{dataset}: told of a row that stayed"
        )
        assert not [key for key, replaced in last.items() if replaced and key not in new]


def new_withdrawals(before: Exports, after: Exports, dataset: Dataset) -> list[dict[str, Any]]:
    """The lines that came to a log; those before it stay, but for what a new one says again."""
    known = {row["withdrawn_batch"] for row in before.withdrawn[dataset]}
    news = [row for row in after.withdrawn[dataset] if row["withdrawn_batch"] not in known]
    said = [_said(row) for row in news]
    assert after.withdrawn[dataset] == [row for row in before.withdrawn[dataset] if _said(row) not in said] + news
    return news


def _said(row: dict[str, Any]) -> list[Any]:
    verdict = row["verdict"] or {"category": None}
    runs = [row[name] for name in ("source_run_id", "chosen_run_id", "rejected_run_id")]
    return [row["id"], *runs, row["cause"], row["replaced"], verdict["category"]]


def let_no_mass_vanish(before: Exports, after: Exports, lake: Lake, rows: int, share: float) -> None:
    """No more rows left than the tripwire lets pass only because they vanished (SPEC 3).

    That is, no scored row names their run any more, or none that has evidence. A row that is over the limit on its
    run's exports now leaves for that.
    """
    named: set[object] = set()
    joined: set[object] = set()
    for partition in lake.values():
        scored = {line.get("evidence_run_id") for line in _objects(partition.scored)}
        named |= scored
        joined |= scored & {line.get("run_id") for line in _objects(partition.evidence)}
    records = [
        row["source_record"]
        for row in map(json.loads, (line for lines in after.quarantined.values() for line in lines))
        if row["reason"] == "too_many_exports"
    ]
    over = {record.get(key) for record in records for key in ("evidence_run_id", "chosen_run_id", "rejected_run_id")}
    for dataset in Dataset:
        vanished = []
        for row in new_withdrawals(before, after, dataset):
            runs = {row["source_run_id"] or row["chosen_run_id"], row["source_run_id"] or row["rejected_run_id"]}
            alone = row["cause"] in ("evidence_changed", "displaced") and not runs <= joined and runs.isdisjoint(over)
            if not row["replaced"] and ((row["cause"] == "row_removed" and not runs <= named) or alone):
                vanished.append(row["id"])
        stood = len(before.exported[dataset])
        assert not (len(vanished) > rows and len(vanished) > share * stood), f"{dataset}: {vanished} vanished"


def _objects(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        value = parse_object(line).value
        if value is not None:
            yield value


def chain(root: Path, receipts: list[tuple[str, str]]) -> None:
    """The receipts on disk are those of the store, and each names the one before it (SPEC 4)."""
    previous = None
    for batch_id, text in receipts:
        content = (root / "reports/distillation" / batch_id / "receipt.json").read_bytes()
        assert content == text.encode()
        receipt = json.loads(content)
        assert receipt["previous_receipt_sha256"] == previous
        assert receipt["validation_pass"]
        previous = hashlib.sha256(content).hexdigest()
    assert sorted(batch_id for batch_id, _ in receipts) == [batch_id for batch_id, _ in receipts]


def add_up(store: sqlite3.Connection, exports: Exports) -> None:
    """The history of each dataset ends with what stands in its file, and each batch's rows follow from those before."""
    for dataset in Dataset:
        found = store.execute(
            "SELECT rows, added, withdrawn, quarantined FROM dataset_history WHERE dataset = ?", (dataset,)
        ).fetchall()
        if found:
            assert (found[0][0], found[0][3]) == (len(exports.exported[dataset]), len(exports.quarantined[dataset]))
        for (rows, added, withdrawn, _), (before, *_) in pairwise([*found, (0,)]):
            assert rows == before + added - withdrawn, f"the history of {dataset} does not add up"


def agree_with_the_receipt(root: Path, exports: Exports, receipt: dict[str, Any]) -> None:
    """The counts and digests of the newest receipt are those of the files."""
    for dataset in Dataset:
        per = receipt["record_counts"]["per_exporter"][dataset]
        assert per["rows"] == len(exports.exported[dataset])
        assert per["quarantine_rows"] == len(exports.quarantined[dataset])
        reasons = Counter(json.loads(line)["reason"] for line in exports.quarantined[dataset])
        assert per["by_reason"] == dict(reasons)
    for output in receipt["outputs"]:
        content = (root / output["path"]).read_bytes()
        assert digest_by_segments(content, output["segment_bytes"]) == output["sha256"]
        assert (len(content), content.count(b"\n")) == (output["bytes"], output["rows"])
