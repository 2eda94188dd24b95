"""Garbage in, reasons out: whatever stands in the inputs, no traceback, exact accounts, and the good rows ship."""

from __future__ import annotations

import json
import os
import resource
from collections import Counter
from itertools import product
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest

from distilld.core.model import Dataset, Options, Trigger
from distilld.engine.engine import Engine
from distilld.engine.pass_result import PassResult
from distilld.files.git import GitState
from distilld.store.connection import Store
from tests.engine.test_garbage_rows import GARBAGE, paths
from tests.support.builders import STAMP, changed, evidence, export, jsonl, scored
from tests.support.committed import accounted, committed_and_whole, outcome, rows_of
from tests.support.deaths import in_child
from tests.support.histories import Inputs, given, run
from tests.support.limits import limits

PARTITION = "2026/04/27/garbage.jsonl"
QUARANTINES = ("quarantine_rag", "quarantine_sft")


@pytest.fixture(autouse=True)
def _no_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distilld.engine.lake_context.git_state", lambda _: GitState())


class Box:
    """A root, and the passes over it."""

    def __init__(self, root: Path, **options: Any) -> None:
        self.root = root
        self.inputs = Inputs(root / "data")
        self.options = Options(source_files_root=str(root), **options)

    def go(self) -> PassResult:
        """One pass, after which everything is committed and accounted for."""
        store = Store.open(self.root / "state" / "distilld.db", self.root)
        try:
            engine = Engine(self.root, store, self.options, limits())
            passed = engine.run_pass(Trigger.ONCE)
        finally:
            store.close()
        committed_and_whole(self.root)
        return passed

    def good(self) -> set[str]:
        """The good rows' runs that ship to RAG and to SFT both."""
        exported = [{row["source_run_id"] for row in rows_of(self.root, name) or []} for name in ("rag", "sft")]
        return {run_id for run_id in exported[0] & exported[1] if run_id.startswith("good-")}

    def quarantined(self, dataset: Dataset) -> dict[int, tuple[str, list[str]]]:
        """Reason and errors of the held rows, by line."""
        rows = rows_of(self.root, f"quarantine_{dataset}") or []
        return {row["location"]["line_offset"]: (row["reason"], row["errors"]) for row in rows}


@pytest.fixture
def box(tmp_path: Path) -> Box:
    """An empty root."""
    return Box(tmp_path)


def good(number: int) -> dict[str, Any]:
    """A row that ships."""
    return run(f"good-{number}", f"good:{number}", "accepted")


def between_good_rows(lines: list[bytes]) -> tuple[bytes, set[str]]:
    """Each line of garbage between two rows that ship; the file, and the runs of those rows."""
    content = jsonl([good(0)])
    for number, line in enumerate(lines, 1):
        content += line + b"\n" + jsonl([good(number)])
    return content, {f"good-{number}" for number in range(len(lines) + 1)}


def write(box: Box, content: bytes, runs: set[str]) -> None:
    """A partition, and evidence for the good rows in it."""
    box.inputs.scored(PARTITION).write_bytes(content)
    box.inputs.append(box.inputs.evidence(PARTITION), *(given(run_id, "good") for run_id in sorted(runs)))


ROW = json.dumps(run("bad", "bad", "accepted"))
NOT_JSON, NOT_AN_OBJECT = "not JSON", "not a JSON object"
MALFORMED = {
    "torn": (ROW[:-20].encode(), NOT_JSON),
    "two rows": (f"{ROW}{ROW}".encode(), NOT_JSON),
    "text": (b"hello", NOT_JSON),
    "white space": (b" \t ", NOT_JSON),
    "carriage return": (b"\r", NOT_JSON),
    "null": (b"null", NOT_AN_OBJECT),
    "true": (b"true", NOT_AN_OBJECT),
    "number": (b"42", NOT_AN_OBJECT),
    "string": (b'"a string"', NOT_AN_OBJECT),
    "array": (f"[{ROW}]".encode(), NOT_AN_OBJECT),
    "NaN": (ROW.replace('"schema_version": 1', '"schema_version": NaN').encode(), NOT_JSON),
    "Infinity": (ROW.replace('"schema_version": 1', '"schema_version": -Infinity').encode(), NOT_JSON),
    "1e999": (ROW.replace('"schema_version": 1', '"schema_version": 1e999').encode(), "number out of range"),
    "byte order mark": (b"\xef\xbb\xbf" + ROW.encode(), NOT_JSON),
    "NUL bytes": (b"\0" * 64, NOT_JSON),
    "NUL bytes before": (b"\0\0" + ROW.encode(), NOT_JSON),
    "control character": (ROW.replace("bad", "b\x01d").encode(), NOT_JSON),
    "single quotes": (ROW.replace('"', "'").encode(), NOT_JSON),
    "trailing comma": (ROW[:-1].encode() + b",}", NOT_JSON),
    "no-break space": (b"\xc2\xa0" + ROW.encode(), NOT_JSON),
    "1,000 deep": (b'{"x":' + b"[" * 1000 + b"]" * 1000 + b"}", "nested deeper than 200"),
    "100,000 deep": (b"[" * 100_000, "nested deeper than 200"),
    "1,000 objects deep": (b'{"x":' * 1000 + b"1" + b"}" * 1000, "nested deeper than 200"),
    "UTF-16": (ROW.encode("utf-16-le").replace(b"\n\0", b""), NOT_JSON),
}


def test_malformed_lines_are_held_and_the_rows_around_them_ship(box: Box) -> None:
    """Each kind, between two good rows: schema_violation with distilld's own words, and never the parser's."""
    content, runs = between_good_rows([line for line, _ in MALFORMED.values()])
    write(box, content, runs)
    passed = box.go()
    accounted(box.root)
    assert box.good() == runs
    for dataset in (Dataset.RAG, Dataset.SFT):
        expected = {2 * at + 1: ("schema_violation", [error]) for at, (_, error) in enumerate(MALFORMED.values())}
        assert box.quarantined(dataset) == expected
    (told,) = passed.batches[0].receipt["inputs"][1:]
    assert (told["lines"], told["malformed_lines"]) == (2 * len(MALFORMED) + 1, len(MALFORMED))


def test_malformed_lines_keep_their_first_200_units(box: Box) -> None:
    """And where they stand, in RAG and SFT alike."""
    write(box, jsonl([good(0), "😀x".encode() * 200]), {"good-0"})
    box.go()
    for name in QUARANTINES:
        (row,) = rows_of(box.root, name) or []
        assert row["source_record"] == {"_raw": "😀x" * 66 + "😀"}
        assert row["source_provenance"] == {"source_file": f"data/scored-runs/{PARTITION}", "line_offset": 1}
        assert row["location"] == {"partition": PARTITION, "line_offset": 1}


def test_blank_lines_and_crlf_harm_nobody(box: Box) -> None:
    """Empty lines do not count, not even in offsets; a carriage return at the end is white space to JSON."""
    content = b"\n\n" + jsonl([good(0)]).replace(b"\n", b"\r\n") + b"\n\n\nnull\n\n" + jsonl([good(1)]) + b"\n\n"
    write(box, content, {"good-0", "good-1"})
    passed = box.go()
    accounted(box.root)
    assert box.good() == {"good-0", "good-1"}
    assert box.quarantined(Dataset.RAG) == {1: ("schema_violation", [NOT_AN_OBJECT])}
    assert passed.batches[0].receipt["inputs"][1]["lines"] == 3
    (row,) = [row for row in rows_of(box.root, "rag") or [] if row["source_run_id"] == "good-0"]
    assert "\r" not in json.dumps(row)


BAD_TEXT = {
    "lone surrogate": rb"\ud800",
    "reversed surrogates": rb"\udc00\ud800",
    "not UTF-8": b"\xff\xfe",
    "torn UTF-8": b"\xf0\x9f\x98",
    "UTF-8 of a surrogate": b"\xed\xa0\x80",
}


@pytest.mark.parametrize("where", ["scored", "evidence"])
def test_text_that_is_no_unicode_is_marked_and_not_shipped(box: Box, where: str) -> None:
    """The row fails the schema gate where it would ship; with U+FFFD in its place it goes into no dataset."""
    names = [f"odd-{number}" for number in range(len(BAD_TEXT))]
    rows, given_rows = [good(0)], [given("good-0", "good")]
    scored_lines, evidence_lines = jsonl(rows), jsonl(given_rows)
    for name, bad in zip(names, BAD_TEXT.values(), strict=True):
        line = jsonl([run(name, "t", "accepted", reasons=["BAD"])])
        text = jsonl([given(name, "t", "BAD text")])
        if where == "scored":
            line = line.replace(b"BAD", bad)
        else:
            text = text.replace(b"BAD", bad)
        scored_lines, evidence_lines = scored_lines + line, evidence_lines + text
    box.inputs.scored(PARTITION).write_bytes(scored_lines + jsonl([good(1)]))
    box.inputs.evidence(PARTITION).write_bytes(evidence_lines + jsonl([given("good-1", "good")]))
    box.go()
    accounted(box.root)
    assert box.good() == {"good-0", "good-1"}
    for dataset in (Dataset.RAG, Dataset.SFT):
        assert {reason for reason, _ in box.quarantined(dataset).values()} == {"schema_violation"}
        assert len(box.quarantined(dataset)) == len(BAD_TEXT)


def test_a_rejection_in_bad_text_still_revokes(box: Box) -> None:
    """A line that cannot be exported can forbid: its verdict counts."""
    rejection = jsonl([run("good-1", "t", "rejected", reasons=["BAD"])]).replace(b"BAD", b"\xff")
    write(box, jsonl([good(0), good(1)]) + rejection, {"good-0", "good-1"})
    box.go()
    assert box.good() == {"good-0"}
    assert box.quarantined(Dataset.SFT)[1][0] == "unsafe_sft_category"


def test_the_wrong_type_in_every_field_of_a_scored_row(box: Box) -> None:
    """Each field of a scored row with each kind of value: what comes out is what the naive pass over it gives."""
    fields = list(paths(scored()))
    rows: list[dict[str, Any] | bytes] = []
    for number, (field, value) in enumerate(product(fields, GARBAGE.values())):
        own = {"evidence_run_id": f"row-{number}", "provenance__sig_hash": f"s{number}"}
        rows += [good(number), changed(scored(**own), {field: value})]
    runs = [f"row-{number}" for number in range(len(rows) // 2)] + [
        f"good-{number}" for number in range(len(rows) // 2)
    ]
    _equals_the_naive_pass(box, rows, [evidence(run_id=run_id) for run_id in runs])
    assert box.good() == {f"good-{number}" for number in range(len(rows) // 2)}


def test_the_wrong_type_in_every_field_of_an_evidence_row(box: Box) -> None:
    """The same for evidence."""
    fields = [field for field in paths(evidence()) if field != "run_id"]
    rows: list[dict[str, Any] | bytes] = []
    found: list[dict[str, Any] | bytes] = []
    for number, (field, value) in enumerate(product(fields, GARBAGE.values())):
        rows += [good(number), scored(evidence_run_id=f"row-{number}", provenance__sig_hash=f"s{number}")]
        found += [given(f"good-{number}", "good"), changed(evidence(run_id=f"row-{number}"), {field: value})]
    _equals_the_naive_pass(box, rows, found)
    assert box.good() == {f"good-{number}" for number in range(len(rows) // 2)}


def _equals_the_naive_pass(box: Box, rows: list[Any], found: list[Any]) -> None:
    box.inputs.append(box.inputs.scored(PARTITION), *rows)
    box.inputs.append(box.inputs.evidence(PARTITION), *found)
    box.go()
    accounted(box.root)
    content = {PARTITION: (box.inputs.scored(PARTITION).read_bytes(), box.inputs.evidence(PARTITION).read_bytes())}
    naive = export(content, box.options).files(STAMP)
    written = outcome(box.root)
    for dataset in Dataset:
        for name, key in ((dataset.value, dataset.value), (f"quarantine_{dataset}", f"-{dataset}")):
            lines = [json.loads(line) for line in naive[key].splitlines()]
            for row in lines:
                row.pop("created_at", None)
                row.pop("recorded_at", None)
                if isinstance(row.get("provenance"), dict):
                    row["provenance"].pop("recorded_at", None)
            assert Counter(map(json.dumps, written[name] or [])) == Counter(map(json.dumps, lines)), name


EVIDENCE_GARBAGE = [b"null", b"[]", b'{"run_id":', b"\0" * 10, b'{"run_id":7}', b'{"run_id":""}', b"{}", b" "]


def test_garbage_among_the_evidence_holds_no_run(box: Box) -> None:
    """It is counted in the receipt; the evidence around it is found."""
    found: list[Any] = [given("good-0", "good")]
    for number, garbage in enumerate(EVIDENCE_GARBAGE, 1):
        found += [garbage, given(f"good-{number}", "good")]
    rows = [good(number) for number in range(len(EVIDENCE_GARBAGE) + 1)]
    box.inputs.append(box.inputs.scored(PARTITION), *rows)
    box.inputs.append(box.inputs.evidence(PARTITION), *found)
    passed = box.go()
    accounted(box.root)
    assert len(box.good()) == len(rows)
    assert rows_of(box.root, "quarantine_rag") is None
    told = passed.batches[0].receipt["inputs"][0]
    assert (told["kind"], told["lines"], told["malformed_lines"]) == ("evidence", len(found), 5)


TAILS = {
    "half a row": ROW[:-30].encode(),
    "a scalar": b"42",
    "null": b"null",
    "NUL bytes": b"\0" * 4096,
    "half a rune": ROW[:40].encode() + b"\xf0\x9f",
    "white space": b"  ",
}


@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS.keys())
def test_an_unfinished_last_line_waits(box: Box, tail: bytes) -> None:
    """It is neither consumed nor quarantined, but told; what comes in its place is judged."""
    write(box, jsonl([good(0)]) + tail, {"good-0", "good-1"})
    passed = box.go()
    assert passed.batches[0].receipt["pending_tails"] == [{"path": f"data/scored-runs/{PARTITION}", "bytes": len(tail)}]
    assert box.good() == {"good-0"}
    assert rows_of(box.root, "quarantine_rag") is None
    box.inputs.scored(PARTITION).write_bytes(jsonl([good(0), good(1)]))
    box.go()
    accounted(box.root)
    assert box.good() == {"good-0", "good-1"}


def test_a_whole_row_without_a_line_feed_ships_for_the_time_being(box: Box) -> None:
    """And is judged again as what it has become."""
    write(box, jsonl([good(0), good(1)])[:-1], {"good-0", "good-1"})
    box.go()
    assert box.good() == {"good-0", "good-1"}
    with box.inputs.scored(PARTITION).open("ab") as file:
        file.write(b"garbage\n")
    box.go()
    accounted(box.root)
    assert box.good() == {"good-0"}
    assert box.quarantined(Dataset.RAG) == {1: ("schema_violation", [NOT_JSON])}


@pytest.mark.parametrize("place", ["before", "between", "behind"])
def test_a_line_of_100_mib_costs_its_row_and_no_memory(box: Box, place: str) -> None:
    """It is held with its first 200 characters; the rows around it ship."""
    lines = [jsonl([good(0)]), jsonl([good(1)])]
    at = ("before", "between", "behind").index(place)
    with box.inputs.scored(PARTITION).open("wb") as file:
        for number in range(3):
            if number == at:
                file.write(b'{"evidence_run_id":"long","text":"')
                for _ in range(100):
                    file.write(b"x" * (1 << 20))
                file.write(b'"}\n')
            file.write(lines[number] if number < 2 else b"")
    box.inputs.append(box.inputs.evidence(PARTITION), given("good-0", "g"), given("good-1", "g"))

    def go() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        box.go()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 60 << 10  # KiB

    # Other tests that ran in this process may have left one.
    resource_tracker.ensure_running()
    assert in_child(go) == 0
    assert box.good() == {"good-0", "good-1"}
    assert box.quarantined(Dataset.RAG) == {at: ("schema_violation", ["longer than 8388608 bytes"])}
    (row,) = rows_of(box.root, "quarantine_rag") or []
    assert row["source_record"]["_raw"].startswith('{"evidence_run_id":"long"')
    assert len(row["source_record"]["_raw"]) == 200
    for name in QUARANTINES:
        assert len(rows_of(box.root, name) or []) == 1


def test_what_is_no_partition_is_told_and_stops_nothing(box: Box) -> None:
    """A FIFO, a folder and a link named x.jsonl, and hostile names, beside a partition whose rows ship."""
    write(box, jsonl([good(0)]), {"good-0"})
    folder = box.inputs.scored(PARTITION).parent
    os.mkfifo(folder / "fifo.jsonl")
    (folder / "folder.jsonl").mkdir()
    (folder / "link.jsonl").symlink_to(folder / "garbage.jsonl")
    for name in (b"\xff.jsonl", b"line\nfeed.jsonl", b"esc\x1b]0;title\x07.jsonl"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(jsonl([good(9)]))
    os.mkfifo(box.inputs.evidence(PARTITION).parent / "fifo.jsonl")
    passed = box.go()
    assert [row["source_run_id"] for row in rows_of(box.root, "rag") or []] == ["good-0"]
    assert passed.scan is not None
    base = "data/scored-runs/2026/04/27"
    assert {oddity.path for oddity in passed.scan.oddities} == {
        f"{base}/fifo.jsonl",
        f"{base}/folder.jsonl",
        f"{base}/link.jsonl",
        f"{base}/\\xff.jsonl",
        f"{base}/line\\x0afeed.jsonl",
        f"{base}/esc\\x1b]0;title\\x07.jsonl",
        "data/evidence/2026/04/27/fifo.jsonl",
    }
    assert not box.go().changed


def test_a_partition_that_turns_into_something_else_keeps_its_rows(box: Box) -> None:
    """A FIFO in its place is told, nothing waits for it, and what exported is retained like an absent partition's."""
    write(box, jsonl([good(0)]), {"good-0"})
    box.go()
    before = outcome(box.root)
    box.inputs.scored(PARTITION).unlink()
    os.mkfifo(box.inputs.scored(PARTITION))
    box.go()
    assert outcome(box.root)["rag"] == before["rag"]
