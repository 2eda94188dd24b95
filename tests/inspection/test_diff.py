"""A/B against another exporter's file (SPEC 5, 'diff')."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distilld.config.load import load
from distilld.config.settings import Settings
from distilld.core.model import EXPORT_PATHS, Dataset, OperatorError, UsageError
from distilld.core.remedies import BY_ERRNO
from distilld.inspection.diff import Difference, DifferentRow, compare, differing_keys
from tests.support.history_lake import A, B, HistoryLake, history_lake, rag_id, run

PHASE4 = Path(__file__).parents[1] / "data" / "phase4"


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[HistoryLake]:
    """A lake with three RAG rows."""
    with history_lake(tmp_path) as made:
        made.both(A, run("r1", task_id="t"), run("r2", "partially_accepted"), run("r3"), run("r4", "rejected", "t"))
        made.go()
        yield made


def settings_of(lake: HistoryLake) -> Settings:
    """The settings that the lake is kept with."""
    return load(flags={"root": lake.root, "state": lake.state}, environ={}, config_file=None, cwd=lake.root)


def other(lake: HistoryLake, rows: list[Any]) -> Path:
    """Another exporter's file; bytes go in as they are."""
    path = lake.root / "other.jsonl"
    path.write_bytes(b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows))
    return path


def diff(lake: HistoryLake, rows: list[Any], dataset: Dataset | None = None, limit: int | None = 20) -> Difference:
    """Our dataset against these rows."""
    return compare(settings_of(lake), other(lake, rows), dataset, limit)


def test_export_that_is_restored_in_part_is_refused(lake: HistoryLake) -> None:
    """Rows of a damaged export that are yet to be written again are not told as rows of the other file alone."""
    rows = lake.rows("rag")
    path = lake.root / EXPORT_PATHS["rag"]
    os.truncate(path, path.stat().st_size // 2)
    lake.engine.restorer.check(lake.now_ns)
    with pytest.raises(OperatorError, match="is being restored"):
        diff(lake, rows)
    lake.go()
    assert diff(lake, rows).equal


@pytest.mark.parametrize("dataset", Dataset)
def test_older_exporters_files_are_equal(lake: HistoryLake, dataset: Dataset) -> None:
    """The older exporters' files equal ours on their own lake; their ids tell the dataset."""
    shutil.rmtree(lake.root / "data")
    shutil.copytree(PHASE4 / "data", lake.root / "data")
    lake.go()
    lake.prune()
    found = compare(settings_of(lake), PHASE4 / "expected" / EXPORT_PATHS[dataset].removeprefix("exports/"), None, 20)
    assert found.dataset is dataset
    assert found.equal
    assert found.same == found.rows_here == found.rows_there > 0


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
def test_dataset_that_is_no_file_is_an_error(lake: HistoryLake, make: Callable[[Path], None]) -> None:
    """What stands in our file's place and is no file is named; nothing waits for it."""
    rows = lake.rows("rag")
    ours = lake.root / EXPORT_PATHS["rag"]
    ours.unlink()
    make(ours)
    with pytest.raises(OperatorError, match=f"{EXPORT_PATHS['rag']} cannot be read: is no regular file"):
        diff(lake, rows)


def test_order_of_rows_and_keys_does_not_count(lake: HistoryLake) -> None:
    """The same rows in another order, with their keys in another order and other times, are equal."""
    rows = [dict(reversed(row.items())) | {"created_at": "then"} for row in reversed(lake.rows("rag"))]
    for row in rows:
        row["provenance"] |= {"recorded_at": "then"}
    assert diff(lake, rows).equal


def test_each_kind_of_difference_is_counted_and_listed(lake: HistoryLake) -> None:
    """Rows only here, only there, and with other content are told apart; keys that differ are named."""
    first, second, third = lake.rows("rag")
    changed = second | {"title": "x", "provenance": second["provenance"] | {"line_offset": None}, "more": 1}
    del changed["tags"]
    found = diff(lake, [first, changed, third | {"id": "rag-0000000000000000"}])
    assert not found.equal
    assert (found.same, found.only_here, found.only_there, found.different) == (1, 1, 1, 1)
    assert found.ids_only_here == [rag_id("r3")]
    assert found.ids_only_there == ["rag-0000000000000000"]
    assert found.different_rows == [DifferentRow(rag_id("r2"), ("title", "tags", "provenance.line_offset", "more"))]
    assert found.by_key == {"title": 1, "tags": 1, "provenance.line_offset": 1, "more": 1}


@pytest.mark.parametrize("line", [b"no JSON\n", b"[1]\n", b'{"no":"id"}\n', b'{"id":7}\n', b'{"id":"rag-', b"\xff\n"])
def test_lines_that_are_no_rows_are_counted(lake: HistoryLake, line: bytes) -> None:
    """A line that is no row makes the files differ, and stops nothing."""
    found = diff(lake, [*lake.rows("rag"), line])
    assert (found.same, found.unreadable, found.equal) == (3, 1, False)


def test_second_copies_are_counted(lake: HistoryLake) -> None:
    """An id that stands twice in the other file makes the files differ; only its first row is compared."""
    rows = lake.rows("rag")
    found = diff(lake, [*rows, rows[0] | {"title": "x"}])
    assert (found.same, found.different, found.repeated, found.equal) == (3, 0, 1, False)


def test_lists_are_bounded_and_counts_are_not(lake: HistoryLake) -> None:
    """A limit cuts each list; None lists everything."""
    rows = [{"id": f"rag-{number:016x}"} for number in range(9)]
    found = diff(lake, rows, limit=2)
    assert (len(found.ids_only_there), found.only_there, len(found.ids_only_here), found.only_here) == (2, 9, 2, 3)
    assert len(diff(lake, rows, limit=None).ids_only_there) == 9


@pytest.mark.parametrize("dataset", Dataset)
def test_dataset_is_guessed_by_ids(lake: HistoryLake, dataset: Dataset) -> None:
    """The first id with a known prefix tells the dataset, whatever stands before it."""
    assert diff(lake, [b"junk\n", {"id": "x"}, *lake.rows(dataset)]).dataset is dataset


@pytest.mark.parametrize("rows", [[], [{"id": "x-1"}], [b"junk\n"] * 200])
def test_unguessable_dataset_must_be_given(lake: HistoryLake, rows: list[Any]) -> None:
    """A file that does not tell is wrong usage; with the dataset given it is compared."""
    with pytest.raises(UsageError, match="does not tell which dataset"):
        diff(lake, rows)
    assert diff(lake, rows, Dataset.SFT).rows_here == 2


def test_empty_file_equals_a_dataset_without_rows(lake: HistoryLake) -> None:
    """No rows on both sides are equal, a dataset that never had a file too."""
    lake.scored(A, run("r2", "partially_accepted"))
    lake.go()
    assert diff(lake, [], Dataset.SFT).equal
    (lake.root / EXPORT_PATHS["sft"]).unlink()
    assert diff(lake, [], Dataset.SFT).equal


def test_other_file_may_be_a_pipe(lake: HistoryLake) -> None:
    """The other file is read once from its start."""
    pipe = lake.root / "pipe"
    os.mkfifo(pipe)
    thread = threading.Thread(target=lambda: pipe.write_bytes(lake.content("rag")))
    thread.start()
    assert compare(settings_of(lake), pipe, None, 20).equal
    thread.join()


def test_missing_file_and_missing_store_are_errors(lake: HistoryLake) -> None:
    """Neither a missing file nor a missing store is a difference."""
    with pytest.raises(OperatorError, match="cannot read") as caught:
        compare(settings_of(lake), lake.root / "nothing", None, 20)
    assert caught.value.hint == BY_ERRNO[errno.ENOENT]
    rows = lake.rows("rag")
    lake.lose_store()
    with pytest.raises(OperatorError, match="there is no state store"):
        diff(lake, rows)


def test_ours_ends_at_its_committed_length(lake: HistoryLake) -> None:
    """What a writer has appended and not committed is not compared."""
    rows = lake.rows("rag")
    with (lake.root / EXPORT_PATHS["rag"]).open("ab") as file:
        file.write(lake.content("rag")[:500])
    assert diff(lake, rows).equal
    lake.go()
    lake.both(B, run("r5"))
    lake.scored(A, run("r1", task_id="t"))
    lake.go()
    assert diff(lake, lake.rows("rag")).equal


@pytest.mark.parametrize(
    ("one", "two", "keys"),
    [
        ({"a": 1}, {"a": 1.0}, ()),
        ({"a": 1}, {"a": True}, ("a",)),
        ({"a": None}, {}, ("a",)),
        ({"a": [1, 2]}, {"a": [2, 1]}, ("a",)),
        ({"created_at": "x"}, {}, ()),
        ({"provenance": {"recorded_at": "x", "b": 1}}, {"provenance": {"b": 2}}, ("provenance.b",)),
        ({"provenance": {"b": 1}}, {"provenance": None}, ("provenance.b", "provenance")),
    ],
)
def test_what_differs(one: dict[str, Any], two: dict[str, Any], keys: tuple[str, ...]) -> None:
    """Keys differ by JSON value; a missing key differs from null; timestamps do not count."""
    assert differing_keys(one, two) == keys
