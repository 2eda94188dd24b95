"""Places in walk order: partitions that come in any order stand where their paths say."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distilld.core.line_facts import LINES_END, RowFacts
from distilld.core.model import InputKind, StatFacts, Trigger
from distilld.store import walk_order
from distilld.store.connection import Store
from distilld.store.inputs import FileRecord, Inputs
from distilld.store.scored_rows import ScoredRows
from distilld.store.walk_order import BASE_START, BASE_STEP, NEAR_STEP, place_partitions
from tests.support.builders import PROPERTY
from tests.support.committed import accounted, at_rest, committed_and_whole
from tests.support.histories import Inputs as Producer
from tests.support.histories import Lake, run
from tests.support.new_store import migrate_or_copy

make_tables = migrate_or_copy()


def facts_of(number: int) -> RowFacts:
    """A row that can be told from others."""
    return RowFacts(number, 0, 0, b"", f"run-{number}", None, None, None, None)


class Placing:
    """A store into which partitions come in any order, each with some rows, some of them queued."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.rows: list[tuple[str, int]] = []

    def add(self, paths: list[str]) -> None:
        """Place some partitions at once, then add their rows."""
        new = [path for path in paths if path not in {known for known, _ in self.rows}]
        with self.store.transaction():
            places = place_partitions(self.store, paths)
            for path in new:
                record = FileRecord(*places[path], path, InputKind.SCORED, "present", StatFacts(0, 0, 0, 0, 0))
                ScoredRows(self.store, Inputs(self.store)).add(record, [facts_of(number) for number in range(3)])
                self.store.connection.execute(
                    "INSERT INTO rejudge_rows (walk, forced) VALUES (?, 0)", (record.walk_base + 1,)
                )
                self.rows += [(path, number) for number in range(3)]

    def check(self) -> None:
        """Every row stands where its path and line say, and what was queued is still queued."""
        ordered = sorted(self.rows, key=lambda row: (row[0].split("/"), row[1]))
        run = self.store.connection.execute
        assert run("SELECT partition, line FROM row_places ORDER BY walk").fetchall() == ordered
        queued = run("SELECT partition, line FROM row_places JOIN rejudge_rows USING (walk) ORDER BY walk").fetchall()
        assert queued == [row for row in ordered if row[1] == 1]
        bases = [base for (base,) in run("SELECT walk_base FROM partitions ORDER BY walk_base")]
        assert all(base % LINES_END == 0 and base > 0 for base in bases)
        assert all(high - low >= LINES_END for low, high in pairwise(bases))

    @property
    def relabels(self) -> int:
        """How often all places were spread anew."""
        found = self.store.connection.execute("SELECT value FROM counters WHERE name = 'walk_relabels'").fetchone()
        return int(found[0])


@contextmanager
def placing() -> Iterator[Placing]:
    """A store in memory."""
    with closing(Store(Path("memory"), sqlite3.connect(":memory:", isolation_level=None))) as store:
        make_tables(store.connection)
        yield Placing(store)


class TestPlaces:
    """A partition that comes late stands where its path says, for the price of a look-up, now and then of a spread."""

    def bases(self, places: Placing) -> list[int]:
        """The places of all partitions, from that of the first one on."""
        return [base for (base,) in places.store.connection.execute("SELECT walk_base FROM partitions ORDER BY 1")]

    def test_those_that_come_between_two_stand_near_the_newer(self) -> None:
        """The first ones stand in the middle; nobody is moved. The next ones come beside the newest, or take what is left."""
        with placing() as places:
            for names in ("a", "z", "m", "n", "l", "o", "p q", "b", "mm"):
                places.add([f"2026/04/{name}/a.jsonl" for name in names.split()])
            places.check()
            middle = BASE_START + BASE_STEP // 2
            near = {"b": -2, "l": -1, "m": 0, "mm": 0.5, "n": 1, "o": 2, "p": 3, "q": 4}
            assert self.bases(places) == [
                BASE_START, *(middle + int(at * NEAR_STEP) for at in near.values()), BASE_START + BASE_STEP
            ]  # fmt: skip
            assert places.relabels == 0

    def test_those_that_come_at_an_end_take_whole_steps(self) -> None:
        """One by one or together, behind all others or before them."""
        with placing() as places:
            for names in ("m", "no", "p", "l", "jk", "i"):
                places.add([f"2026/04/{name}/a.jsonl" for name in names])
            places.check()
            assert self.bases(places) == [BASE_START + number * BASE_STEP for number in range(-4, 4)]

    def test_many_that_come_first_leave_half_of_the_range(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """They stand as far from each other as that allows."""
        monkeypatch.setattr(walk_order, "BASE_END", BASE_START + 99 * BASE_STEP)
        with placing() as places, places.store.transaction():
            place_partitions(places.store, [f"1/1/1/{number:05}.jsonl" for number in range(199)])
            distances = {high - low for low, high in pairwise(self.bases(places))}
            assert distances == {BASE_STEP // 4}
            assert places.relabels == 0

    @pytest.mark.parametrize("falling", [False, True], ids=["rising", "falling"])
    @pytest.mark.parametrize(
        "around", [["9/9/9/z.jsonl"], ["0/0/0/a.jsonl", "9/9/9/z.jsonl"]], ids=["before", "between"]
    )
    @pytest.mark.parametrize("names", ["a", "abc"], ids=["one a day", "three a day"])
    def test_year_of_days_spreads_nothing(self, around: list[str], names: str, *, falling: bool) -> None:
        """The story: one partition that sorted last let each 17th new day move all rows of the store."""
        with placing() as places, places.store.transaction():
            place_partitions(places.store, around)
            for day in sorted(range(365 if names == "a" else 160), reverse=falling):
                place_partitions(places.store, [f"2026/{day // 31:02}/{day % 31:02}/{name}.jsonl" for name in names])
            assert places.relabels == 0
            found = places.store.connection.execute("SELECT path FROM partitions ORDER BY walk_base").fetchall()
            assert found == sorted(found, key=lambda row: row[0].split("/"))

    def test_end_of_the_range_spreads_all_now_and_then(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where whole steps no longer fit, many partitions still come before the next spread, which makes room again."""
        monkeypatch.setattr(walk_order, "BASE_END", BASE_START + 8 * BASE_STEP)
        with placing() as places, places.store.transaction():
            spread: list[int] = []
            for number in range(1500):
                place_partitions(places.store, [f"1/1/1/{number:05}.jsonl"])
                spread += [number] if places.relabels > len(spread) else []
            assert len(spread) == 1
            assert spread[0] > 500

    def test_partitions_that_come_in_no_order_spread_all(self) -> None:
        """Each comes between the two before it: the gap is halved until it is used up; no row is lost or out of order."""
        with placing() as places:
            places.add(["0/0/0/a.jsonl", "9/9/9/z.jsonl"])
            low, high = 0, 1 << 60
            for number in range(60):
                middle = (low + high) // 2
                places.add([f"5/5/5/{middle:020}.jsonl"])
                places.check()
                low, high = (middle, high) if number % 2 else (low, middle)
            assert places.relabels >= 2

    def test_a_spread_makes_room_for_those_that_come_together(self) -> None:
        """Several groups in one call, some of which find room and some do not."""
        with placing() as places:
            places.add(["0/0/0/a.jsonl", "5/5/5/a.jsonl", "9/9/9/z.jsonl"])
            for number in range(500):
                places.add([f"1/1/1/{number:03}.jsonl"])
            places.add(
                [*(f"1/1/1/499-{number}.jsonl" for number in range(900)), *(f"6/6/6/{n}.jsonl" for n in range(9))]
            )
            places.check()
            assert places.relabels == 1

    @settings(PROPERTY, max_examples=60)
    @given(
        st.lists(st.lists(st.text("ab-", min_size=1, max_size=6), max_size=5), max_size=25),
        st.integers(1, 6),
        st.integers(0, 7),
    )
    def test_any_order_of_coming_is_the_walk_order(
        self, groups: list[list[str]], step_bits: int, near_bits: int
    ) -> None:
        """With gaps so small that a spread is an everyday thing."""
        with pytest.MonkeyPatch.context() as patch, placing() as places:
            patch.setattr(walk_order, "BASE_STEP", LINES_END << step_bits)
            patch.setattr(walk_order, "NEAR_STEP", LINES_END << near_bits)
            for group in groups:
                places.add(sorted({f"2026/04/{name}/x.jsonl" for name in group}))
                places.check()

    def test_known_partitions_keep_their_places(self) -> None:
        """Asking again gives the same answer and writes nothing."""
        with placing() as places, places.store.transaction():
            first = place_partitions(places.store, ["b", "a"])
            assert place_partitions(places.store, ["a", "b"]) == first
            assert first["a"][1] < first["b"][1]

    def test_a_lake_that_grows_at_the_wrong_end_is_as_one_read_at_once(
        self, lake: Lake, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Partitions that come in falling order, and spreads: the files are those of a fresh pass."""
        monkeypatch.setattr(walk_order, "BASE_STEP", 16 * LINES_END)
        producer = Producer(lake.root / "data")
        with lake.opened() as engine:
            for number in range(24, 0, -1):
                file = producer.scored(f"2026/04/27/beside-{number:02}.jsonl")
                producer.append(file, run("a3", "two", "accepted"), run(f"n{number}", "n", "rejected"))
                engine.run_pass(Trigger.WATCH)
            assert engine.ledger.counter("walk_relabels") > 0
        committed_and_whole(lake.root)
        accounted(lake.root)
        grown = at_rest(lake.root)
        lake.reset()
        lake.start()
        assert grown == at_rest(lake.root)
