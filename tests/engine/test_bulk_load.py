"""New partitions taken in in one go come to what they come to the other way, whatever stands in them."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from distilld.core.datasets import rag
from distilld.core.firewall import RAG_GATES
from distilld.core.model import EXPORT_PATHS, Category, Dataset, Options, ProgramError, StatFacts, Trigger
from distilld.engine.bulk import load as intake
from distilld.engine.bulk.judge_partition import Order
from distilld.engine.bulk.load import Intake
from distilld.engine.bulk.workers import ProcessCrew, WorkerDied
from distilld.engine.engine import Engine
from distilld.inspection import oracle
from distilld.inspection.verify import frozen_of
from distilld.publish.commit import CommittedBatch
from distilld.store.queries import Exceptions
from tests.support import target_state as invariants
from tests.support.builders import jsonl
from tests.support.history_lake import A, B, C, HistoryLake, given, rag_id, run
from tests.support.running import until

D = "2026/04/30/delta.jsonl"
NEVER = 1 << 60

Fill = Callable[[HistoryLake], None]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No log lines, and no partition too small for this way."""
    monkeypatch.setattr(intake, "LEAST_BYTES", 0)
    with capture_logs():
        yield


def fill(lake: HistoryLake) -> None:
    """Partitions with all that is special: runs with several rows, ids that two runs share, lines of every kind."""
    lake.scored(
        A,
        run("plain"),
        run("again"),
        run("overruled"),
        b"not json",
        b"",
        run("partial", "partially_accepted", "task-plain"),
        run("review", "needs_human_review"),
        run("no-evidence"),
        run("rejected", "rejected", "task-plain"),
        run("a|b", provenance__sig_hash="c"),
        run("nameless", evidence_run_id=None),
        run("no-category", category="odd"),
        run("again"),
        run("blank"),
    )
    lake.evidence(
        A,
        given("plain"),
        given("again", "first"),
        b"[]",
        given("overruled"),
        given("partial"),
        given("review"),
        given("rejected"),
        given("a|b"),
        given("again", "second"),
        given("blank", " \n"),
        given("nobody asks"),
    )
    lake.both(B, run("clears", "rejected"), run("a", provenance__sig_hash="b|c"), run("again"), run("b"))
    lake.both(
        C, run("overruled", "rejected"), run("clears"), run("c", "accepted", "task-b"), run("d", "rejected", "task-b")
    )
    with lake.scored_path(C).open("ab") as file:
        file.write(jsonl([run("provisional")])[:-1])
    with lake.evidence_path(C).open("ab") as file:
        file.write(jsonl([given("provisional")]) + b'{"run_id":"torn')
    lake.evidence(D, given("only evidence"))
    lake.scored("2026/05/01/only-scored.jsonl", run("waits"), b'{"x":' + b"9" * 700 + b"}")


def taken_in(root: Path, *, fill: Fill = fill, **limits: Any) -> HistoryLake:
    """A lake after one pass."""
    lake = HistoryLake(root, Options(source_files_root="/", max_line_bytes=600), **limits)
    fill(lake)
    lake.go()
    return lake


def unstamped(content: bytes) -> list[bytes]:
    """The lines of a file without their times."""
    return re.sub(rb'"(created_at|recorded_at)":"[^"]*"', b"", content).splitlines()


def state(lake: HistoryLake) -> dict[str, list[tuple[Any, ...]]]:
    """What the store knows of the inputs, batch numbers and line digests, which depend on stamps, apart."""
    queries = {
        "scored": "SELECT walk, start_byte, length_bytes, digest, run_id, task_id, category, malformed, sample_key, rag, sft,"
        " evidence_found, kept FROM scored_rows ORDER BY walk",
        "evidence": "SELECT * FROM evidence_rows ORDER BY 1, 2",
        "files": "SELECT p.path, p.walk_base, kind, state, indexed_bytes, indexed_sha256, indexed_lines, judged_lines,"
        " malformed_lines, tail, tail_bytes, tail_digest FROM files JOIN partitions p USING (partition_id) ORDER BY 1, 3",
        "pairs": "SELECT task_id, slot, chosen_run_id, rejected_run_id, outcome FROM pairs ORDER BY 1, 2",
        "totals": "SELECT * FROM totals ORDER BY 1, 2, 3",
        "counters": "SELECT * FROM counters ORDER BY 1",
        "queues": "SELECT walk FROM rejudge_rows UNION ALL SELECT task_id FROM rejudge_tasks",
    }
    return {name: lake.ask(query) for name, query in queries.items()}


@pytest.mark.parametrize(
    ("limits", "from_bytes"),
    [({}, NEVER), ({"batch_rows": 14}, NEVER), ({"workers": 1}, 0), ({"workers": 3, "batch_rows": 14}, 0)],
    ids=["inline", "small batches", "one worker", "three workers"],
)
def test_result_is_that_of_the_other_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, Any], from_bytes: int
) -> None:
    """Files, their order, facts and outcomes are the same, in this process or in others, in one batch or in several."""
    with monkeypatch.context() as patch:
        patch.setattr(intake, "LEAST_BYTES", NEVER)
        expected = taken_in(tmp_path / "other")
    monkeypatch.setattr(intake, "PROCESSES_FROM", from_bytes)
    monkeypatch.setattr(intake, "ORDER_PARTITIONS", 2)
    monkeypatch.setattr(intake, "SPECIAL_SHARE", 1)
    with noted(monkeypatch) as used:
        actual = taken_in(tmp_path / "lake", **limits)
    assert used == [True]
    for name in EXPORT_PATHS:
        assert unstamped(actual.content(name)) == unstamped(expected.content(name)), name
    assert state(actual) == state(expected)
    actual.go()
    assert actual.engine.work.waiting().rows == 0
    for lake in (expected, actual):
        lake.stop()


@contextmanager
def noted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Notes whether new partitions were taken in in one go."""
    used: list[bool] = []
    begin = Intake.begin

    def noting(self: Intake, *arguments: Any) -> bool:
        used.append(begin(self, *arguments))
        return used[-1]

    with monkeypatch.context() as patch:
        patch.setattr(Intake, "begin", noting)
        yield used


def test_ids_that_two_runs_share_go_to_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """'a|b' with 'c' and 'a' with 'b|c' have one id: the first in walk order ships, the other is a duplicate."""
    monkeypatch.setattr(intake, "SPECIAL_SHARE", 1)
    lake = taken_in(tmp_path)
    shared = rag_id("a|b", "c")
    assert shared == rag_id("a", "b|c")
    assert [row["source_run_id"] for row in lake.rows(Dataset.RAG) if row["id"] == shared] == ["a|b"]
    assert lake.held(Dataset.RAG)["a"] == "duplicate_id"
    lake.stop()


def test_many_special_rows_go_the_other_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where most runs have several rows, judging them twice does not pay."""
    with noted(monkeypatch) as used:
        lake = taken_in(tmp_path)
    assert used == [False]
    lake.stop()


@pytest.mark.parametrize("known", ["row", "absent"])
def test_known_runs_go_the_other_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: str) -> None:
    """A new partition that speaks of a run that the store knows, present or absent, is not taken in in one go."""
    lake = HistoryLake(tmp_path)
    lake.both(A, run("one"), run("two"))
    lake.go()
    if known == "absent":
        lake.move_away(lake.scored_path(A))
        lake.go()
    with noted(monkeypatch) as used:
        lake.both(B, run("one", "rejected"), run("three"))
        lake.go()
    assert used in ([False], [])
    assert lake.shipped(Dataset.SFT) == {"two", "three"}
    lake.stop()


def test_unknown_runs_are_taken_in_beside_known_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New partitions with runs of their own are taken in in one go, whatever is there, and form pairs with it."""
    lake = HistoryLake(tmp_path)
    lake.both(B, run("one"), run("two"))
    lake.go()
    # As if the first files had been written long ago: a file that was looked at a moment later is looked at again.
    monkeypatch.setattr(StatFacts, "is_settled", lambda _: True)
    with noted(monkeypatch) as used:
        lake.both(A, run("three"), run("four", "rejected", "task-one"))
        lake.go()
    assert used == [True]
    assert lake.shipped(Dataset.SFT) == {"one", "two", "three"}
    assert lake.shipped(Dataset.PREFERENCE) == {"one>four"}
    lake.stop()


def test_file_that_changes_in_between_is_taken_in_the_other_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scored file that is rewritten behind the first look is read anew; what was in it before ships nowhere."""
    lake = HistoryLake(tmp_path, batch_rows=3)
    lake.both(A, run("one"), run("two"))
    lake.both(B, run("three"), run("four"))
    cut = Intake._cut

    def rewriting(self: Intake) -> Iterator[Any]:
        lake.both(B, run("three", "rejected"), run("four"))
        return cut(self)

    monkeypatch.setattr(Intake, "_cut", rewriting)
    lake.go()
    assert lake.shipped(Dataset.SFT) == {"one", "two", "four"}
    lake.stop()


def test_file_that_grows_in_between_is_read_to_its_end_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are appended behind the first look come with the next pass, and are not taken for known."""
    lake = HistoryLake(tmp_path)
    lake.both(A, run("one"))
    cut = Intake._cut

    def growing(self: Intake) -> Iterator[Any]:
        with lake.scored_path(A).open("ab") as file:
            file.write(jsonl([run("one", "rejected"), run("two")]))
        return cut(self)

    with monkeypatch.context() as patch:
        patch.setattr(Intake, "_cut", growing)
        lake.go()
    lake.go()
    assert lake.shipped(Dataset.SFT) == set()
    assert lake.held(Dataset.SFT) == {"one": "unsafe_sft_category", "two": "missing_source_run_id"}
    lake.stop()


def test_special_row_is_judged_again_when_its_other_row_never_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that was held for a verdict in a file that is gone before it was taken in ships."""
    monkeypatch.setattr(intake, "SPECIAL_SHARE", 1)
    lake = HistoryLake(tmp_path, batch_rows=3)
    lake.both(A, run("one"), run("two"))
    lake.both(B, run("one", "rejected"), run("three"))
    cut = Intake._cut

    def removing(self: Intake) -> Iterator[Any]:
        for path in lake.paths(B, "both"):
            path.unlink()
        return cut(self)

    monkeypatch.setattr(Intake, "_cut", removing)
    lake.go()
    lake.go()
    assert lake.shipped(Dataset.SFT) == {"one", "two"}
    lake.stop()


def equal_the_full_pass(lake: HistoryLake) -> None:
    """Hold the exports against a full pass over the inputs as they are."""
    exports = invariants.Exports.read(lake.root)
    frozen = frozen_of(Exceptions(lake.engine.store), exports.lines)
    expected = oracle.export(
        oracle.read_lake(lake.root, lake.options),
        lake.options,
        missing_files=invariants.path_check(lake.options),
        frozen=frozen,
    )
    invariants.equal_the_full_pass(exports, expected)


@contextmanager
def watched(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """After every batch, no row stands whose run has a forbidden verdict in the files; notes the batches."""
    batches: list[int] = []
    made_durable = Engine._made_durable

    def watching(self: Engine, *arguments: Any) -> CommittedBatch:
        committed = made_durable(self, *arguments)
        batches.append(committed.identity.sequence)
        verdicts = oracle.verdicts_in_force(oracle.read_lake(lake.root, lake.options), lake.options)
        invariants.ship_no_forbidden_run(invariants.Exports.read(lake.root), verdicts, lake.options)
        return committed

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "_made_durable", watching)
        yield batches


@pytest.mark.parametrize("include_review", [False, True])
def test_last_verdict_decides_wherever_a_batch_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, include_review: bool
) -> None:
    """A run's verdicts may come in any order, in one batch or in several: the last of all is in force from the first on.

    The story: a run that was accepted and rejected in one batch, and accepted again in a later one, shipped as it
    should; the second look knew of the rejection alone, refused the batch, and did so at every retry.
    """
    monkeypatch.setattr(intake, "SPECIAL_SHARE", 1)
    histories = [(f"run{number}", each) for number, each in enumerate(product([*Category, "odd"], repeat=3))]
    options = Options(source_files_root="/", include_review=include_review)
    lake = HistoryLake(tmp_path, options, batch_rows=2 * len(histories))
    for number, partition in enumerate((A, B, C)):
        lake.both(partition, *(run(run_id, categories[number]) for run_id, categories in histories))
    with noted(monkeypatch) as used, watched(lake, monkeypatch) as batches:
        lake.go()
    assert used == [True]
    assert len(batches) >= 2
    assert {run_id for run_id, categories in histories if categories == ("accepted", "rejected", "accepted")} <= (
        lake.shipped(Dataset.SFT)
    )
    equal_the_full_pass(lake)
    lake.stop()


@pytest.mark.parametrize("known", ["ships", "held behind the gate for ids", "vanished"])
@pytest.mark.parametrize("burst", [A, C])
def test_ids_of_known_rows_go_the_other_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: str, burst: str
) -> None:
    """A new partition with an id that a known row of another run has, live or frozen, is not taken in in one go.

    The story: 'a|b' with 'c' stood there, and 'a' with 'b|c' came. A live row made the batch fail at every retry, and
    beside a frozen one the id stood twice.
    """
    monkeypatch.setattr(intake, "SPECIAL_SHARE", 1)
    monkeypatch.setattr(StatFacts, "is_settled", lambda _: True)
    options = Options(source_files_root=str(tmp_path), check_source_files=True)
    lake = HistoryLake(tmp_path, options, tripwire_rows=0, tripwire_share=0.0)
    (tmp_path / "there").touch()
    lake.scored(B, run("a|b", provenance__sig_hash="c"), run("x"))
    lake.evidence(B, given("a|b", source_files=["gone" if known.startswith("held") else "there"]))
    lake.go()
    if known == "vanished":
        lake.scored(B, run("x"))
        lake.go()
        assert lake.engine.frozen.held_by_tripwire() == {"rag": 1, "sft": 1}
    lake.scored(burst, run("a", provenance__sig_hash="b|c"))
    lake.evidence(burst, given("a", source_files=["there"]))
    with noted(monkeypatch) as used:
        lake.go()
    assert used == [False]
    equal_the_full_pass(lake)
    lake.stop()


@pytest.mark.parametrize("known", [run("c|d"), run("other", provenance__sig_hash="x|y")], ids=["run", "signature"])
def test_ids_of_their_own_are_taken_in_beside_known_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: dict[str, Any]
) -> None:
    """That there is a '|' in a row, known or new, is no reason to go the other way."""
    monkeypatch.setattr(intake, "SPECIAL_SHARE", 1)
    monkeypatch.setattr(StatFacts, "is_settled", lambda _: True)
    lake = HistoryLake(tmp_path)
    lake.both(B, known, run("x"))
    lake.go()
    lake.both(A, run("a|b"), run("a", provenance__sig_hash="b|c"), run("y"))
    with noted(monkeypatch) as used:
        lake.go()
    assert used == [True]
    equal_the_full_pass(lake)
    lake.stop()


@pytest.mark.parametrize("named", ["ghost", "elsewhere"])
def test_ids_of_orphans_go_the_other_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    """A row of an older export may have an id that is not made of its run: a new row with it takes its place.

    The story: both stood in the file.
    """
    before = HistoryLake(tmp_path / "before")
    before.both(A, run("one" if named == "ghost" else "elsewhere"))
    before.go()
    before.stop()
    lake = HistoryLake(tmp_path / "lake")
    for dataset in (Dataset.RAG, Dataset.SFT):
        path = lake.root / EXPORT_PATHS[dataset]
        path.parent.mkdir(parents=True)
        path.write_bytes(before.content(dataset).replace(b'"source_run_id":"one"', b'"source_run_id":"ghost"'))
    lake.both(A, run("one"), run("two"))
    with noted(monkeypatch) as used:
        lake.go()
    assert used == [named == "elsewhere"]
    assert lake.shipped(Dataset.RAG) == {"one", "two"} | {"elsewhere"} & {named}
    equal_the_full_pass(lake)
    lake.stop()


@pytest.mark.parametrize(("how", "batches"), [("killed", 1), ("killed", 2), ("killed", 3), ("changed", 3)])
def test_row_that_ships_by_a_verdict_that_never_comes_leaves_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, batches: int
) -> None:
    """A row that shipped since a later verdict clears its run leaves with the next batch, if that verdict is gone.

    The story: it waited for its turn, behind what was new in earlier partitions, and batch after batch let it stand.
    """
    monkeypatch.setattr(intake, "SPECIAL_SHARE", 1)
    orders = list(product(("accepted", "needs_human_review", "rejected"), repeat=4))
    lake = HistoryLake(tmp_path, batch_rows=len(orders))
    for number, partition in enumerate((A, B, C, D)):
        lake.both(partition, *(run(f"run{place}", order[number]) for place, order in enumerate(orders)))
    finish = Intake._finish
    left = batches

    def ending(self: Intake, *arguments: Any) -> CommittedBatch:
        nonlocal left
        if how == "killed" and not left:
            raise KeyboardInterrupt
        committed = finish(self, *arguments)
        left -= 1
        if how == "changed" and not left:
            lake.both(D, run("other"))
        return committed

    with watched(lake, monkeypatch) as done, monkeypatch.context() as patch:
        patch.setattr(Intake, "_finish", ending)
        with pytest.raises(KeyboardInterrupt) if how == "killed" else nullcontext():
            lake.go()
        assert len(done) >= batches
        if how == "killed":
            lake.stop()
            lake.both(D, run("other"))
            lake.both("2026/04/01/earlier.jsonl", *(run(f"new{number}") for number in range(len(orders))))
            lake.go()
    assert len(done) > batches + 1
    equal_the_full_pass(lake)
    lake.stop()


def test_special_rows_wait_for_their_turn_when_all_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ships by a verdict of a later batch is judged again in batches of the usual size, once that verdict came."""
    monkeypatch.setattr(intake, "SPECIAL_SHARE", 1)
    lake = HistoryLake(tmp_path, batch_rows=2)
    for partition, category in ((A, "accepted"), (B, "rejected"), (C, "accepted")):
        lake.both(partition, run("one", category), run("two", category))
    waiting: list[tuple[int, int]] = []
    run_batch = Engine.run_batch

    def looking(self: Engine, *arguments: Any, **named: Any) -> CommittedBatch | None:
        waiting.extend(lake.ask("SELECT count(*), sum(forced) FROM rejudge_rows"))
        return run_batch(self, *arguments, **named)

    monkeypatch.setattr(Engine, "run_batch", looking)
    lake.go()
    assert waiting[0] == (6, 0)
    assert lake.shipped(Dataset.SFT) == {"one", "two"}
    lake.stop()


@pytest.mark.parametrize(
    "rows",
    [[("one", "accepted"), ("one", "needs_human_review")], [("one", "needs_human_review"), ("two", "accepted")]],
    ids=["verdict of a later batch", "own verdict"],
)
def test_second_look_refuses_what_the_gates_let_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[tuple[str, str]]
) -> None:
    """With the gates that look at categories switched off, no batch ships a run against its verdict in force."""
    monkeypatch.setattr(intake, "SPECIAL_SHARE", 1)
    monkeypatch.setattr(Options, "rag_allowed", property(lambda _: tuple(Category)))
    monkeypatch.setattr(rag, "RAG_GATES", tuple(gate for gate in RAG_GATES if gate.name != "revoked"))
    lake = HistoryLake(tmp_path, batch_rows=1)
    for partition, (run_id, category) in zip((A, B), rows, strict=True):
        lake.both(partition, run(run_id, category))
    with noted(monkeypatch) as used, pytest.raises(ProgramError, match="fails its checks: no_forbidden_verdict"):
        lake.go()
    assert used == [True]
    assert lake.ask("SELECT count(*) FROM batches") == [(0,)]
    lake.stop()


def test_worker_that_dies_is_an_error_of_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the batch is committed, nothing hangs, and the next pass does it."""
    monkeypatch.setattr(intake, "PROCESSES_FROM", 0)
    lake = HistoryLake(tmp_path, workers=2)
    lake.both(A, run("one"), run("two"))
    give = ProcessCrew.give

    def killing(self: ProcessCrew, order: Order) -> None:
        for worker in self._workers:
            os.kill(worker.process.pid, signal.SIGKILL)
            worker.process.wait()
        give(self, order)

    with monkeypatch.context() as patch:
        patch.setattr(ProcessCrew, "give", killing)
        with pytest.raises(WorkerDied, match="killed by signal 9"):
            lake.engine.run_pass(Trigger.ONCE)
    assert not any(lake.files().values())
    assert lake.ask("SELECT count(*) FROM batches") == [(0,)]
    lake.go()
    assert lake.shipped(Dataset.SFT) == {"one", "two"}
    lake.stop()


def test_signals_to_the_service_are_not_for_its_workers(tmp_path: Path) -> None:
    """The story: 'systemctl kill --signal=HUP' ended the workers, and the batch with them."""
    crew = ProcessCrew(tmp_path, Options(), tmp_path, 1)
    status = Path(f"/proc/{crew._workers[0].process.pid}/status")
    wanted = sum(1 << (number - 1) for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))

    def ignored() -> bool:
        mask = int(status.read_text().partition("SigIgn:")[2].split()[0], 16)
        return mask & wanted == wanted

    until(ignored, "the signals are ignored", seconds=10)
    crew.close()


def test_worker_ends_when_its_starter_is_gone(tmp_path: Path) -> None:
    """A worker whose channel is closed ends by itself."""
    crew = ProcessCrew(tmp_path, Options(), tmp_path, 1)
    (worker,) = crew._workers
    worker.socket.close()
    assert worker.process.wait(60) == 0
    crew.close()


@pytest.mark.parametrize("least_bytes", [0, NEVER], ids=["in one go", "the other way"])
def test_malformed_evidence_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least_bytes: int) -> None:
    """Evidence lines that are no JSON object are told of, with how many came and where the first one stands."""
    monkeypatch.setattr(intake, "LEAST_BYTES", least_bytes)
    lake = HistoryLake(tmp_path)
    lake.scored(A, run("one"))
    lake.evidence(A, given("one"), b"{torn", given("two"), b"null")
    with capture_logs() as logs:
        lake.go()
    told = [each for each in logs if each["event"] == "malformed_evidence"]
    assert [(each["path"], each["lines"], each["first_line"]) for each in told] == [(f"data/evidence/{A}", 2, 1)]
    lake.stop()
