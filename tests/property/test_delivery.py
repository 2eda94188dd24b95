"""Whatever happens to a lake, whoever keeps a copy by changes alone has the dataset, and a snapshot knows what left it."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from typing import Any, Final

from hypothesis import strategies as st
from hypothesis.stateful import rule

from distilld.core.model import DATASET_PATHS, Dataset, InputKind, Options, Trigger
from distilld.delivery.changes import changes
from distilld.delivery.check import check
from distilld.delivery.snapshot import Wanted, make
from distilld.engine.engine import Engine
from distilld.publish import restore
from distilld.store import export_records
from distilld.store.connection import Store
from tests.property.model import joined_rows
from tests.property.test_histories import Histories, number, run
from tests.support.limits import limits

Row = dict[str, Any]
WHERE_LINES: Final = ("first", "middle", "last")


class Mirror:
    """A copy of a dataset that knows nothing but what 'distilld changes' tells it."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.since = "0"

    def apply(self, lines: list[Row]) -> None:
        """Apply changes as docs/consumers.md says."""
        begin, *told, end = lines
        assert (begin["type"], end["type"], begin["since"]) == ("begin", "end", self.since)
        kinds = [line["type"] for line in told]
        assert kinds == ["delete"] * end["deletes"] + ["upsert"] * end["upserts"]
        assert len({line["id"] for line in told}) == len(told)
        for line in told:
            if line["type"] == "delete":
                self.rows.pop(line["id"], None)
            else:
                assert line["row"]["id"] == line["id"]
                self.rows[line["id"]] = line["row"]
        self.since = end["through"]


def unstamped(row: Row) -> Row:
    """A row without its two timestamps."""
    return {**row, "created_at": "", "provenance": {**row["provenance"], "recorded_at": ""}}


class Deliveries(Histories):
    """Histories with lost stores, damaged exports and pruning; what the exports should hold is tested elsewhere."""

    batch_by_batch = False  # until all batches are committed, lines of a damaged export may be missing

    def __init__(self) -> None:
        super().__init__()
        self.mirrors = {dataset: Mirror() for dataset in Dataset}
        self.snapshot: dict[Dataset, dict[str, Row]] | None = None
        self.limits.setattr(restore, "TAMPERINGS_AN_HOUR", 1 << 30)
        self.limits.setattr(export_records, "TAMPERINGS_AN_HOUR", 1 << 30)

    def here(self, options: Options) -> Options:
        return replace(super().here(options), on_delete=options.on_delete)

    @rule()
    def restart(self) -> None:
        if self.store is not None:
            self.store.close()
        self.store = Store.open(self.folder / "state" / "distilld.db", self.folder)
        self.engine = Engine(self.folder, self.store, self.options, limits(batch_rows=self.batch_rows))
        self.engine.committer.recover()

    @rule()
    def rebuild(self) -> None:
        assert self.engine is not None
        self.engine.run_pass(Trigger.REBUILD)
        self.check_pass()

    @rule()
    def prune(self) -> None:
        assert self.engine is not None
        self.check_pass()
        self.engine.give_up(None)
        self.engine.run_pass(Trigger.PRUNE)
        self.check_pass()

    def refuse(self, partition: int, kinds: list[InputKind], other: int, both: Any) -> None:
        """No rule here."""

    def lose_sources(self, partition: int, both: Any, again: bool, options: Options) -> None:
        """No rule here."""

    @rule()
    def lose_the_store(self) -> None:
        assert self.store is not None
        self.store.close()
        self.store = None
        shutil.rmtree(self.folder / "state")
        if self.snapshot is not None:
            self.check_snapshot()
        self.restart()
        self.check_pass()

    @rule(dataset=st.sampled_from(Dataset), partition=number, both=joined_rows())
    def damage_an_export(self, dataset: Dataset, partition: int, both: Any) -> None:
        """Somebody cuts a dataset in half while rows come in; it is restored before the pass."""
        path = self.folder / DATASET_PATHS[dataset]
        if path.exists():
            os.truncate(path, path.stat().st_size // 2)
        self.history.append(InputKind.SCORED, partition, both[0])
        self.history.append(InputKind.EVIDENCE, partition, both[1])
        self.check_pass()

    @rule()
    def take_snapshot(self) -> None:
        self.check_pass()
        if all(mirror.since == "0" for mirror in self.mirrors.values()):
            return
        folder = self.folder / "snapshot"
        shutil.rmtree(folder, ignore_errors=True)
        make(self.folder, self.folder / "state" / "distilld.db", folder, Wanted(("raw",)))
        self.snapshot = {dataset: self.rows(dataset) for dataset in Dataset}

    def rows(self, dataset: Dataset) -> dict[str, Row]:
        path = self.folder / DATASET_PATHS[dataset]
        lines = path.read_bytes().splitlines() if path.exists() else []
        return {row["id"]: row for row in map(json.loads, lines)}

    def check_snapshot(self) -> None:
        assert self.snapshot is not None
        found = check(self.folder, self.folder / "state" / "distilld.db", self.folder / "snapshot")
        assert not found.damaged
        expected = {}
        for dataset, rows in self.snapshot.items():
            now = self.rows(dataset)
            for id_, row in rows.items():
                if id_ not in now or unstamped(now[id_]) != unstamped(row):
                    expected[id_] = id_ in now
        assert {each.id: each.replaced for each in found.changed} == expected
        assert all(each.cause and each.withdrawn_batch for each in found.changed)

    def check_pass(self) -> None:
        assert self.engine is not None
        self.engine.run_pass(Trigger.WATCH)
        type(self).passes += 1
        if self.engine.receipts.last_batch() is None:
            return
        for dataset, mirror in self.mirrors.items():
            with changes(self.folder, self.folder / "state" / "distilld.db", dataset, mirror.since) as found:
                mirror.apply([json.loads(line) for line in b"".join(found).splitlines()])
            assert mirror.rows == self.rows(dataset)
        if self.snapshot is not None:
            self.check_snapshot()


def test_copies_and_snapshots_follow_every_history() -> None:
    """After every step of many histories a copy by changes alone is the dataset, and a snapshot names what changed."""
    done = run(Deliveries, steps=25, max_examples=28, derandomize=True)
    assert done.passes > 300
