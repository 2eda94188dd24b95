"""The sample lake: the same each time, and with everything in it that a lake can hold."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distilld.core.model import SFT_NEVER, Category, Reason
from distilld.demo.sample_lake import RESCORED_RUN_ID, append_rows, rescore_in_place
from tests.support.sample import SampleLake

SOURCES = {
    "scrum_reviews",
    "mode_experiments",
    "auto_apply",
    "audits",
    "observer_reviews",
    "contract_analyses",
    "outcomes",
    "distilled_facts",
    "audit_facts",
}
SCORED_KEYS = [
    "schema_version",
    "evidence_run_id",
    "evidence_task_id",
    "category",
    "reasons",
    "scored_at",
    "scorer_version",
    "provenance",
]
EVIDENCE_KEYS = [
    "schema_version",
    "run_id",
    "task_id",
    "timestamp",
    "model_name",
    "model_role",
    "text",
    "source_files",
    "retrieved_context",
    "metadata",
    "provenance",
]

Row = dict[str, Any]


@pytest.fixture
def lake(tmp_path: Path) -> SampleLake:
    return SampleLake.write(tmp_path)


def read_lines(path: Path) -> list[str]:
    """The lines of a file, which must end with a newline."""
    content = path.read_text(encoding="utf-8")
    assert content.endswith("\n")
    return content.removesuffix("\n").split("\n")


def parse(line: str) -> Row | None:
    """The row on a line, None where the line is malformed."""
    try:
        row: Row = json.loads(line)
    except ValueError:
        return None
    return row


def rows_of(path: Path) -> list[Row]:
    return [row for line in read_lines(path) if (row := parse(line)) is not None]


def all_scored(lake: SampleLake) -> list[Row]:
    """Every scored row that parses, in walk order."""
    return [row for partition in lake.partitions for row in rows_of(lake.scored_path(partition))]


def joined(lake: SampleLake) -> Iterator[tuple[Row, Row | None]]:
    """Every scored row that parses, in walk order, with its evidence."""
    for partition in lake.partitions:
        evidence = {row["run_id"]: row for row in rows_of(lake.evidence_path(partition))}
        for row in rows_of(lake.scored_path(partition)):
            yield row, evidence.get(row.get("evidence_run_id"))


def files_below(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def reasons_for(lake: SampleLake) -> Counter[Reason]:
    """How often the lake gives cause for each reason: a short reading of the gates that knows no order among them."""
    found: Counter[Reason] = Counter()
    verdicts = {
        row["evidence_run_id"]: Category(row["category"]) for row in all_scored(lake) if "evidence_run_id" in row
    }
    lines = [line for partition in lake.partitions for line in read_lines(lake.scored_path(partition))]
    found[Reason.SCHEMA_VIOLATION] = sum(parse(line) is None for line in lines)

    ids = set()
    texts: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for row, evidence in joined(lake):
        run_id, category, provenance = row.get("evidence_run_id"), row["category"], row["provenance"]
        text = (evidence or {}).get("text", "").strip()
        files = (evidence or {}).get("source_files", [])
        texts[row["evidence_task_id"], category].add(text)
        if category in SFT_NEVER:
            found[Reason.UNSAFE_SFT_CATEGORY] += 1
            found[Reason.CATEGORY_DISALLOWED] += 1
            continue
        if evidence is None:
            found[Reason.MISSING_SOURCE_RUN_ID] += 1
        elif not text:
            found[Reason.EMPTY_CONTENT] += 1
        if "sig_hash" not in provenance:
            found[Reason.MISSING_PROVENANCE] += 1
        elif run_id is not None:
            found[Reason.DUPLICATE_ID] += (run_id, provenance["sig_hash"]) in ids
            ids.add((run_id, provenance["sig_hash"]))
        if run_id is not None and verdicts[run_id] is Category.REJECTED:
            found[Reason.UNSAFE_RAG_CATEGORY] += 1
        if not all((lake.root / file).is_file() for file in files):
            found[Reason.HALLUCINATED_FILE_PATH] += 1
    found[Reason.INVALID_PREFERENCE_PAIRING] = sum(
        len(chosen & texts[task, Category.REJECTED])
        for (task, category), chosen in list(texts.items())
        if category == Category.ACCEPTED
    )
    return found


class TestWriteSampleLake:
    def test_every_source_and_category_occurs(self, lake: SampleLake) -> None:
        """Each of the nine sources has a partition a day, and each category has rows."""
        assert Counter(Path(partition).stem for partition in lake.partitions) == dict.fromkeys(SOURCES, 3)
        assert {row["category"] for row in all_scored(lake)} == set(Category)

    def test_every_reason_occurs(self, lake: SampleLake) -> None:
        """There is cause for every reason but two.

        One is reserved; the other takes a run of a thousand rows.
        """
        found = reasons_for(lake)
        assert {reason for reason, count in found.items() if count} == set(Reason) - {
            Reason.SELF_PAIRING,
            Reason.TOO_MANY_EXPORTS,
        }

    def test_one_malformed_line(self, lake: SampleLake) -> None:
        """Every line parses but one, which is the first half of a scored row."""
        malformed = [
            line
            for partition in lake.partitions
            for path in (lake.scored_path(partition), lake.evidence_path(partition))
            for line in read_lines(path)
            if parse(line) is None
        ]
        assert len(malformed) == 1
        assert malformed[0].startswith('{"schema_version":1,"evidence_run_id":"outcome:')

    def test_lines_are_as_javascript_writes_them(self, lake: SampleLake) -> None:
        """A row stands on its line as JSON.stringify would put it there: no space between tokens, nothing escaped."""
        lines = [line for partition in lake.partitions for line in read_lines(lake.evidence_path(partition))]
        assert all(line == json.dumps(json.loads(line), ensure_ascii=False, separators=(",", ":")) for line in lines)
        assert any(not line.isascii() for line in lines)

    def test_keys_stand_in_the_producers_order(self, lake: SampleLake) -> None:
        """Rows have the fields of the real producers, in their order; some evidence goes without the optional ones."""
        for row, evidence in joined(lake):
            assert list(row) == [key for key in SCORED_KEYS if key in row]
            if evidence is not None:
                assert list(evidence) == [key for key in EVIDENCE_KEYS if key in evidence]

    def test_run_ids_are_unique(self, lake: SampleLake) -> None:
        """No two evidence rows are of one run, those that are appended included."""
        append_rows(lake.root)
        runs = Counter(row["run_id"] for partition in lake.partitions for row in rows_of(lake.evidence_path(partition)))
        assert set(runs.values()) == {1}

    def test_review_that_ends_well(self, lake: SampleLake) -> None:
        """One run at least needs a human review first and is accepted in a later row."""
        verdicts = defaultdict(list)
        for row in all_scored(lake):
            verdicts[row.get("evidence_run_id")].append(row["category"])
        assert [Category.NEEDS_HUMAN_REVIEW, Category.ACCEPTED] in verdicts.values()


class TestAppendRows:
    def test_appends_to_the_last_day(self, lake: SampleLake) -> None:
        """Twelve scored rows, each with evidence, are added to the last day, and nothing else changes."""
        before, rows = files_below(lake.root), len(all_scored(lake))
        written = append_rows(lake.root)
        after = files_below(lake.root)
        changed = {lake.root / name for name in after if after[name] != before.get(name)}
        assert changed == set(written)
        assert all("/2026/03/04/" in str(path) for path in written)
        assert all(after[name].startswith(before[name]) for name in before)
        assert len(all_scored(lake)) == rows + 12

    def test_evidence_comes_first(self, lake: SampleLake) -> None:
        """The evidence files are written before the scored files."""
        trees = [path.relative_to(lake.root / "data").parts[0] for path in append_rows(lake.root)]
        assert trees == sorted(trees)

    def test_first_two_rows_are_a_pair(self, lake: SampleLake) -> None:
        """The first two rows answer one task, the one rejected and the other accepted."""
        append_rows(lake.root)
        rejected, accepted = rows_of(lake.scored_path("2026/03/04/scrum_reviews.jsonl"))[-2:]
        assert (rejected["category"], accepted["category"]) == (Category.REJECTED, Category.ACCEPTED)
        assert rejected["evidence_task_id"] == accepted["evidence_task_id"]


class TestRescoreInPlace:
    def test_leaves_no_trace_but_the_verdict(self, lake: SampleLake) -> None:
        """The rescored file keeps its size, inode and mtime, and only the word accepted in it is another one."""
        before, stats = files_below(lake.root), {path: path.stat() for path in lake.root.rglob("*")}
        path = rescore_in_place(lake.root)
        after, stat = files_below(lake.root), path.stat()
        assert (stat.st_size, stat.st_ino, stat.st_mtime_ns) == (
            stats[path].st_size,
            stats[path].st_ino,
            stats[path].st_mtime_ns,
        )
        name = str(path.relative_to(lake.root))
        assert {key for key in after if after[key] != before[key]} == {name}
        (old,) = [line for line in before[name].splitlines() if line not in after[name].splitlines()]
        (new,) = [line for line in after[name].splitlines() if line not in before[name].splitlines()]
        assert new == old.replace(b'"category":"accepted"', b'"category":"rejected"')
        assert json.loads(new)["evidence_run_id"] == RESCORED_RUN_ID

    def test_run_to_rescore_is_one_of_a_pair(self, lake: SampleLake) -> None:
        """The run that is rescored has one row, is accepted, and answers a task whose only other run is rejected."""
        append_rows(lake.root)
        (row,) = [row for row in all_scored(lake) if row.get("evidence_run_id") == RESCORED_RUN_ID]
        task = [other for other in all_scored(lake) if other["evidence_task_id"] == row["evidence_task_id"]]
        assert [other["category"] for other in task] == [Category.REJECTED, Category.ACCEPTED]
