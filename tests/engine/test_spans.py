"""However rows are cut into spans, jobs and batches, and whoever judges them, they come to the same."""

from __future__ import annotations

import os
import pickle
import re
import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from distilld.core.datasets import rag
from distilld.core.firewall import RAG_GATES
from distilld.core.model import EXPORT_PATHS, Category, Dataset, Options, ProgramError, Trigger
from distilld.engine import batch, index, pool, span_queue
from distilld.engine.ingest import Ingest
from distilld.engine.pool import Pool, WorkerDied
from distilld.engine.work_off import QueueWorker
from distilld.inspection import oracle
from distilld.inspection.oracle_exceptions import retained_of
from distilld.lake.source_files import path_check
from distilld.publish.commit import CommittedBatch
from distilld.store.queries import Exceptions
from tests.support import target_state as invariants
from tests.support.builders import jsonl
from tests.support.history_lake import A, B, C, HistoryLake, believe_facts, given, history_lake, rag_id, run
from tests.support.running import until
from tests.support.target_state import read_lake

D = "2026/04/30/delta.jsonl"
NEVER = 1 << 60

Fill = Callable[[HistoryLake], None]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No log lines, and no evidence too little to be left unread until its rows are judged."""
    monkeypatch.setattr(index, "LEAVE_FROM", 0)
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
        run("many", provenance__sig_hash="m1"),
        run("many", provenance__sig_hash="m2"),
    )
    lake.evidence(
        A,
        given("many"),
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
        C,
        run("overruled", "rejected"),
        run("clears"),
        run("c", "accepted", "task-b"),
        run("d", "rejected", "task-b"),
        run("many", provenance__sig_hash="m3"),
    )
    with lake.scored_path(C).open("ab") as file:
        file.write(jsonl([run("provisional")])[:-1])
    with lake.evidence_path(C).open("ab") as file:
        file.write(jsonl([given("provisional")]) + b'{"run_id":"torn')
    lake.evidence(D, given("only evidence"))
    lake.scored("2026/05/01/only-scored.jsonl", run("waits"), b'{"x":' + b"9" * 700 + b"}")


def taken_in(root: Path, *, fill: Fill = fill, **limits: Any) -> HistoryLake:
    """A lake after one pass."""
    lake = HistoryLake(root, Options(source_files_root="/", max_line_bytes=600, max_exports_per_run=2), **limits)
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
        " evidence_found FROM scored_rows ORDER BY walk",
        "evidence": "SELECT * FROM evidence_rows ORDER BY 1, 2",
        "files": "SELECT p.path, p.walk_base, kind, state, indexed_bytes, indexed_sha256, indexed_lines, judged_lines,"
        " malformed_lines, tail, tail_bytes, tail_digest FROM files JOIN partitions p USING (partition_id) ORDER BY 1, 3",
        "pairs": "SELECT task_id, slot, chosen_run_id, rejected_run_id, outcome FROM pairs ORDER BY 1, 2",
        "totals": "SELECT * FROM totals ORDER BY 1, 2, 3",
        "counters": "SELECT * FROM counters ORDER BY 1",
        "queues": "SELECT walk FROM rejudge_rows UNION ALL SELECT task_id FROM rejudge_tasks",
    }
    return {name: lake.ask(query) for name, query in queries.items()}


@pytest.mark.parametrize("unread", [0, NEVER], ids=["read with the rows", "read before"])
@pytest.mark.parametrize(
    ("limits", "small"),
    [({}, False), ({"batch_rows": 4}, True), ({"workers": 1}, True), ({"workers": 3, "batch_rows": 14}, True)],
    ids=["inline", "small batches", "one worker", "three workers"],
)
def test_result_does_not_depend_on_who_judges_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, Any], small: bool, unread: int
) -> None:
    """Files, their order, facts and outcomes are the same, in this process or in others, in one batch or in several."""
    with monkeypatch.context() as patch:
        patch.setattr(index, "LEAVE_FROM", NEVER)
        expected = taken_in(tmp_path / "other")
    monkeypatch.setattr(index, "LEAVE_FROM", unread)
    monkeypatch.setattr(pool, "PROCESSES_FROM", 0 if "workers" in limits else NEVER)
    if small:
        monkeypatch.setattr(span_queue, "JOB_ROWS", 3)
        monkeypatch.setattr(span_queue, "PAGE_ROWS", 5)
        monkeypatch.setattr(span_queue, "JOB_SPANS", 2)
    actual = taken_in(tmp_path / "lake", **limits)
    for name in EXPORT_PATHS:
        assert unstamped(actual.content(name)) == unstamped(expected.content(name)), name
    assert state(actual) == state(expected)
    assert actual.content("quarantine_rag").count(b'"too_many_exports"') == 1
    actual.go()
    assert actual.engine.work.waiting().rows == 0
    for lake in (expected, actual):
        lake.stop()


def test_ids_that_two_runs_share_go_to_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """'a|b' with 'c' and 'a' with 'b|c' have one id: the first in walk order ships, the other is a duplicate."""
    lake = taken_in(tmp_path)
    shared = rag_id("a|b", "c")
    assert shared == rag_id("a", "b|c")
    assert [row["source_run_id"] for row in lake.rows(Dataset.RAG) if row["id"] == shared] == ["a|b"]
    assert lake.quarantined(Dataset.RAG)["a"] == "duplicate_id"
    lake.stop()


@pytest.mark.parametrize("known", ["row", "absent"])
def test_known_runs_that_new_files_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: str) -> None:
    """A new partition may speak of a run that the store knows, present or absent."""
    lake = HistoryLake(tmp_path)
    lake.both(A, run("one"), run("two"))
    lake.go()
    if known == "absent":
        lake.move_away(lake.scored_path(A))
        lake.go()
    lake.both(B, run("one", "rejected"), run("three"))
    lake.go()
    assert lake.exported(Dataset.SFT) == {"two", "three"}
    lake.stop()


def test_unknown_runs_beside_known_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New partitions with runs of their own form pairs with what is there."""
    lake = HistoryLake(tmp_path)
    lake.both(B, run("one"), run("two"))
    lake.go()
    # As if the first files had been written long ago: a file that was looked at a moment later is looked at again.
    believe_facts(monkeypatch)
    lake.both(A, run("three"), run("four", "rejected", "task-one"))
    lake.go()
    assert lake.exported(Dataset.SFT) == {"one", "two", "three"}
    assert lake.exported(Dataset.PREFERENCE) == {"one>four"}
    lake.stop()


@contextmanager
def between(monkeypatch: pytest.MonkeyPatch, change: Callable[[], None]) -> Iterator[None]:
    """Something happens once, when all changed files were looked at and no row is judged yet."""
    trip = Ingest._trip
    left = [change]

    def tripping(self: Ingest, *given: Any) -> None:
        if left:
            left.pop()()
        trip(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Ingest, "_trip", tripping)
        yield


def test_file_that_changes_before_its_rows_are_judged_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scored file that is rewritten behind the look is read anew; what was in it before ships nowhere."""
    lake = HistoryLake(tmp_path, batch_rows=3)
    lake.both(A, run("one"), run("two"))
    lake.both(B, run("three"), run("four"))
    with between(monkeypatch, lambda: lake.both(B, run("three", "rejected"), run("four"))):
        lake.engine.run_pass(Trigger.ONCE)
    assert lake.exported(Dataset.SFT) <= {"one", "two", "four"}
    lake.go()
    assert lake.exported(Dataset.SFT) == {"one", "two", "four"}
    lake.stop()


def test_file_that_grows_in_between_is_read_to_its_end_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are appended behind the look come with the next pass, and are not taken for known."""
    lake = HistoryLake(tmp_path)
    lake.both(A, run("one"))

    def grow() -> None:
        with lake.scored_path(A).open("ab") as file:
            file.write(jsonl([run("one", "rejected"), run("two")]))

    with between(monkeypatch, grow):
        lake.go()
    lake.go()
    assert lake.exported(Dataset.SFT) == set()
    assert lake.quarantined(Dataset.SFT) == {"one": "unsafe_sft_category", "two": "missing_source_run_id"}
    lake.stop()


def test_new_partition_with_a_hole_is_judged_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest of a file counts its holes in another way, and so does who reads the file as a whole again."""
    monkeypatch.setattr(index, "LEAVE_FROM", 0)
    lake = HistoryLake(tmp_path)
    lake.both(A, run("one"), run("two"))
    with lake.scored_path(A).open("ab") as file:
        file.write(bytes(1 << 18) + b"\n" + jsonl([run("three", "rejected")]))
    assert lake.engine.run_pass(Trigger.ONCE).changed_inputs == ()
    assert lake.exported(Dataset.SFT) == {"one", "two"}
    assert lake.quarantined(Dataset.SFT)["three"] == "unsafe_sft_category"
    lake.stop()


@pytest.mark.parametrize("how", ["gone", "refused", "other"])
def test_evidence_that_cannot_be_read_with_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """New evidence is read with its rows; where it cannot be, they are judged as rows without it, and all others go on."""
    lake = HistoryLake(tmp_path)
    lake.both(A, run("one"))
    lake.both(B, run("two"), run("three", "rejected", "task-two"))
    path = lake.evidence_path(B)

    def change() -> None:
        if how == "gone":
            path.unlink()
        elif how == "refused":
            path.unlink()
            path.mkdir()
        else:
            path.write_bytes(jsonl([given("three")]))

    with between(monkeypatch, change):
        lake.engine.run_pass(Trigger.ONCE)
    assert lake.exported(Dataset.SFT) == {"one"}
    if how == "refused":
        path.rmdir()
    lake.evidence(B, given("two"), given("three"))
    lake.go()
    assert lake.exported(Dataset.SFT) == {"one", "two"}
    assert lake.exported(Dataset.PREFERENCE) == {"two>three"}
    equal_the_full_pass(lake)
    lake.stop()


def equal_the_full_pass(lake: HistoryLake) -> None:
    """Hold the exports against a full pass over the inputs as they are."""
    exports = invariants.Exports.read(lake.root)
    retained = retained_of(Exceptions(lake.engine.store), exports.lines)
    expected = oracle.export(
        read_lake(lake.root, lake.options),
        lake.options,
        missing_files=path_check(lake.options),
        retained=retained,
    )
    invariants.equal_the_full_pass(exports, expected)


@contextmanager
def watched(lake: HistoryLake, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """After every batch, no row stands whose run has a forbidden verdict in the files; notes the batches."""
    batches: list[int] = []
    made_durable = QueueWorker._made_durable

    def watching(self: QueueWorker, *arguments: Any) -> CommittedBatch:
        committed = made_durable(self, *arguments)
        batches.append(committed.identity.sequence)
        verdicts = oracle.verdicts_in_force(read_lake(lake.root, lake.options), lake.options)
        invariants.ship_no_forbidden_run(invariants.Exports.read(lake.root), verdicts, lake.options)
        return committed

    with monkeypatch.context() as patch:
        patch.setattr(QueueWorker, "_made_durable", watching)
        yield batches


@pytest.mark.parametrize("include_review", [False, True])
def test_last_verdict_decides_wherever_a_batch_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, include_review: bool
) -> None:
    """A run's verdicts may come in any order, in one batch or in several: the last of all is in force from the first on.

    The story: a run that was accepted and rejected in one batch, and accepted again in a later one, exported as it
    should; the second look knew of the rejection alone, refused the batch, and did so at every retry.
    """
    histories = [(f"run{number}", each) for number, each in enumerate(product([*Category, "odd"], repeat=3))]
    options = Options(source_files_root="/", include_review=include_review)
    lake = HistoryLake(tmp_path, options, batch_rows=2 * len(histories))
    for number, partition in enumerate((A, B, C)):
        lake.both(partition, *(run(run_id, categories[number]) for run_id, categories in histories))
    with watched(lake, monkeypatch) as batches:
        lake.go()
    assert len(batches) >= 2
    assert {run_id for run_id, categories in histories if categories == ("accepted", "rejected", "accepted")} <= (
        lake.exported(Dataset.SFT)
    )
    equal_the_full_pass(lake)
    lake.stop()


@pytest.mark.parametrize("known", ["ships", "held behind the gate for ids", "vanished"])
@pytest.mark.parametrize("burst", [A, C])
def test_ids_of_known_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: str, burst: str) -> None:
    """A new partition may have an id that a known row of another run has, live or retained.

    The story: 'a|b' with 'c' stood there, and 'a' with 'b|c' came. A live row made the batch fail at every retry, and
    beside a retained one the id stood twice.
    """
    believe_facts(monkeypatch)
    options = Options(source_files_root=str(tmp_path), check_source_files=True)
    lake = HistoryLake(tmp_path, options, tripwire_rows=0, tripwire_share=0.0)
    (tmp_path / "there").touch()
    lake.scored(B, run("a|b", provenance__sig_hash="c"), run("x"))
    lake.evidence(B, given("a|b", source_files=["gone" if known.startswith("held") else "there"]))
    lake.go()
    if known == "vanished":
        lake.scored(B, run("x"))
        lake.go()
        assert lake.engine.retained.kept_by_tripwire() == {"rag": 1, "sft": 1}
    lake.scored(burst, run("a", provenance__sig_hash="b|c"))
    lake.evidence(burst, given("a", source_files=["there"]))
    lake.go()
    equal_the_full_pass(lake)
    lake.stop()


@pytest.mark.parametrize("known", [run("c|d"), run("other", provenance__sig_hash="x|y")], ids=["run", "signature"])
def test_ids_of_their_own_beside_known_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: dict[str, Any]
) -> None:
    """Beside known rows with a '|', ids that new rows share go to the first of these."""
    believe_facts(monkeypatch)
    lake = HistoryLake(tmp_path)
    lake.both(B, known, run("x"))
    lake.go()
    lake.both(A, run("a|b"), run("a", provenance__sig_hash="b|c"), run("y"))
    lake.go()
    equal_the_full_pass(lake)
    lake.stop()


@pytest.mark.parametrize("named", ["ghost", "elsewhere"])
def test_ids_of_orphans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str) -> None:
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
    lake.go()
    assert lake.exported(Dataset.RAG) == {"one", "two"} | {"elsewhere"} & {named}
    equal_the_full_pass(lake)
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
    monkeypatch.setattr(Options, "rag_allowed", property(lambda _: tuple(Category)))
    monkeypatch.setattr(rag, "RAG_GATES", tuple(gate for gate in RAG_GATES if gate.name != "revoked"))
    lake = HistoryLake(tmp_path, batch_rows=1)
    for partition, (run_id, category) in zip((A, B), rows, strict=True):
        lake.both(partition, run(run_id, category))
    with pytest.raises(ProgramError, match="fails its checks: no_forbidden_verdict"):
        lake.go()
    assert lake.ask("SELECT count(*) FROM batches") == [(0,)]
    lake.stop()


def test_second_look_passes_over_an_unreviewed_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With include_review, the rejection before it is the one that counts in RAG."""
    monkeypatch.setattr(rag, "RAG_GATES", tuple(gate for gate in RAG_GATES if gate.name != "revoked"))
    lake = HistoryLake(tmp_path, Options(include_review=True))
    lake.both(A, run("one"))
    lake.scored(B, run("one", "rejected"), run("one", "fine"))
    with pytest.raises(ProgramError, match="fails its checks: no_forbidden_verdict"):
        lake.go()
    lake.stop()


def test_worker_that_dies_is_an_error_of_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the batch is committed, nothing hangs, and the next pass does it."""
    monkeypatch.setattr(pool, "PROCESSES_FROM", 0)
    lake = HistoryLake(tmp_path, workers=2)
    lake.both(A, run("one"), run("two"))
    expect = Pool.expect

    def killing(self: Pool, size: int) -> None:
        expect(self, size)
        for process in (self._executor._processes or {}).values():  # type: ignore[union-attr]
            os.kill(process.pid, signal.SIGKILL)
            process.join()

    with monkeypatch.context() as patch:
        patch.setattr(Pool, "expect", killing)
        with pytest.raises(WorkerDied):
            lake.engine.run_pass(Trigger.ONCE)
    assert not any(lake.files().values())
    assert lake.ask("SELECT count(*) FROM batches") == [(0,)]
    lake.go()
    assert lake.exported(Dataset.SFT) == {"one", "two"}
    lake.stop()


def test_worker_that_dies_while_a_job_was_taken_back_ends_in_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Python 3.11 sets its error on a cancelled future too: a traceback stood in the log, and semaphores were left."""
    monkeypatch.setattr(pool, "PROCESSES_FROM", 0)
    lake = HistoryLake(tmp_path, workers=1)
    for number in range(20):
        lake.both(A.replace("alpha", f"file-{number}"), run(f"run-{number}"))
    take_back = Pool._take_back
    taken: list[int] = []

    def killing(self: Pool, under_way: deque[Any], options: Options) -> bool:
        if taken or not take_back(self, under_way, options):
            return False
        taken.append(len(under_way))
        for process in (self._executor._processes or {}).values():  # type: ignore[union-attr]
            os.kill(process.pid, signal.SIGKILL)
        return True

    with monkeypatch.context() as patch:
        patch.setattr(Pool, "_take_back", killing)
        with pytest.raises(WorkerDied):
            lake.engine.run_pass(Trigger.ONCE)
    assert taken
    assert "Traceback" not in capfd.readouterr().err
    lake.go()
    assert len(lake.exported(Dataset.SFT)) == 20
    lake.stop()


def children() -> set[str]:
    """The processes that this one started."""
    return {pid for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}


def test_nothing_is_left_of_the_workers(tmp_path: Path) -> None:
    """The story: a process of the library that looks after semaphores stayed beside the daemon for good."""
    before = children()
    workers = Pool(tmp_path, tmp_path, workers=1)
    workers.expect(pool.PROCESSES_FROM)
    assert children() > before
    workers.close()
    assert children() == before


def test_signals_to_the_service_are_not_for_its_workers(tmp_path: Path) -> None:
    """The story: 'systemctl kill --signal=HUP' ended the workers, and the batch with them."""
    workers = Pool(tmp_path, tmp_path, workers=1)
    workers.expect(pool.PROCESSES_FROM)
    (process,) = workers._executor._processes  # type: ignore[union-attr]
    status = Path(f"/proc/{process}/status")
    wanted = sum(1 << (number - 1) for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))

    def ignored() -> bool:
        mask = int(status.read_text().partition("SigIgn:")[2].split()[0], 16)
        return mask & wanted == wanted

    until(ignored, "the signals are ignored")
    workers.close()


@pytest.mark.parametrize("unread", [0, NEVER])
def test_any_executor_does_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unread: int) -> None:
    """Jobs and results are plain values, and lines come back with the answer."""
    monkeypatch.setattr(index, "LEAVE_FROM", unread)
    expected = taken_in(tmp_path / "other")

    class Elsewhere(ThreadPoolExecutor):
        def submit(self, fn: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
            function, values = pickle.loads(pickle.dumps((fn, arguments)))
            return super().submit(lambda: pickle.loads(pickle.dumps(function(*values, **named))))

    with Elsewhere(2) as executor:
        actual = taken_in(tmp_path / "lake", executor=executor)
    for name in EXPORT_PATHS:
        assert unstamped(actual.content(name)) == unstamped(expected.content(name)), name
    assert state(actual) == state(expected)
    for lake in (expected, actual):
        lake.stop()


def test_two_runs_with_one_64_bit_id(tmp_path: Path) -> None:
    """They are two claimants of one id, in a first pass and later: the first in walk order holds it.

    The story: a first pass that met both failed for ever, for the store lets no id ship twice.
    """
    one, other = "run-064a3fb43f8b23ef", "run-33eb7ac6ecac46cc"
    assert rag_id(one, "s") == rag_id(other, "s")
    lake = HistoryLake(tmp_path)
    lake.both(A, run(other, provenance__sig_hash="s"), run("plain"))
    lake.both(B, run(one, provenance__sig_hash="s"))
    lake.go()
    assert lake.exported(Dataset.RAG) == lake.exported(Dataset.SFT) == {other, "plain"}
    assert lake.quarantined(Dataset.RAG) == lake.quarantined(Dataset.SFT) == {one: "duplicate_id"}
    equal_the_full_pass(lake)
    lake.both("2026/04/01/earlier.jsonl", run(one, provenance__sig_hash="s"))
    lake.go()
    assert lake.exported(Dataset.RAG) == {one, "plain"}
    equal_the_full_pass(lake)
    lake.scored("2026/04/01/earlier.jsonl", run(one, "rejected", provenance__sig_hash="s"))
    lake.go()
    assert lake.exported(Dataset.RAG) == {other, "plain"}
    equal_the_full_pass(lake)
    lake.stop()


@pytest.mark.parametrize("unread", [0, NEVER])
def test_malformed_evidence_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unread: int) -> None:
    """Evidence lines that are no JSON object are told of, with how many came and where the first one stands."""
    monkeypatch.setattr(index, "LEAVE_FROM", unread)
    lake = HistoryLake(tmp_path)
    lake.scored(A, run("one"))
    lake.evidence(A, given("one"), b"{torn", given("two"), b"null")
    with capture_logs() as logs:
        lake.go()
    told = [each for each in logs if each["event"] == "malformed_evidence"]
    assert [(each["path"], each["lines"], each["first_line"]) for each in told] == [(f"data/evidence/{A}", 2, 1)]
    lake.stop()


@pytest.mark.parametrize(("runs", "whole"), [(1, False), (10, True)])
def test_text_that_rows_repeat_is_judged_in_spans_by_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: int, whole: bool
) -> None:
    """A hundred rows of one run with a text of 7 MB took 1.4 GB: their evidence was read with them, in one piece."""
    monkeypatch.setattr(index, "LEAVE_FROM", 0)
    monkeypatch.setattr(index, "LEAVE_REPEATED_BYTES", 40_000)
    monkeypatch.setattr(batch, "BATCH_BYTES", 16_000)
    with history_lake(tmp_path) as lake:
        lake.scored(A, *(run(f"r{number % runs}", provenance__sig_hash=f"s{number}") for number in range(10)))
        lake.evidence(A, *(given(f"r{number}", "x" * 8_000) for number in range(runs)))
        assert (len(lake.go().batches) == 1) == whole
        assert len(lake.rows("rag")) == 10
