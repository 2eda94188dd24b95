"""A small lake that goes through a history: passes over inputs that change, with an engine that lives on between them.

Stamps come from a clock that moves a minute at each pass, so that a row which was written anew shows.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

import pytest
import structlog

from distilld.core.model import CARD, EXPORT_PATHS, Dataset, Options, Trigger
from distilld.engine import lake_context
from distilld.engine.engine import Engine
from distilld.engine.pass_result import PassResult
from distilld.files.git import GitState
from distilld.store import inputs
from distilld.store.connection import Store
from distilld.store.retained import Only
from tests.support.builders import evidence, jsonl, scored
from tests.support.limits import limits

A: Final = "2026/04/27/alpha.jsonl"
B: Final = "2026/04/28/beta.jsonl"
C: Final = "2026/04/29/gamma.jsonl"
START_NS: Final = 1_777_000_000_000_000_000
MINUTE_NS: Final = 60 * 10**9

WITHDRAWAL_KEYS: Final = (
    "id", "source_run_id", "chosen_run_id", "rejected_run_id", "cause", "replaced", "verdict", "shipped_batch",
    "withdrawn_batch", "withdrawn_at",
)  # fmt: skip


def run(run_id: str, category: str = "accepted", task_id: str | None = None, **changes: Any) -> dict[str, Any]:
    """A scored row with a signature of its own; its task is its own too, if none is given."""
    own = {"evidence_run_id": run_id, "evidence_task_id": task_id or f"task-{run_id}", "category": category}
    return scored(**{**own, "provenance__sig_hash": f"sig-{run_id}", **changes})


def given(run_id: str, text: str | None = None, **changes: Any) -> dict[str, Any]:
    """The evidence of a run; its answer is its own."""
    return evidence(run_id=run_id, text=f"# Answer of {run_id}" if text is None else text, **changes)


def rag_id(run_id: str, signature: str | None = None) -> str:
    """The id of a run's RAG row."""
    return "rag-" + hashlib.sha256(f"{run_id}|{signature or f'sig-{run_id}'}".encode()).hexdigest()[:16]


def sft_id(run_id: str) -> str:
    """The id of a run's SFT row."""
    return rag_id(run_id).replace("rag-", "sft-")


class HistoryLake:
    """A root, its inputs, and the one writer on it."""

    def __init__(self, root: Path, options: Options | None = None, **limits: Any) -> None:
        self.root = root
        self.options = options or Options(source_files_root=str(root))
        self.limits = limits
        self.now_ns = START_NS
        self._engine: Engine | None = None
        for tree in ("scored-runs", "evidence"):
            (root / "data" / tree).mkdir(parents=True, exist_ok=True)

    # inputs

    def scored_path(self, partition: str) -> Path:
        """The file of a scored partition."""
        return self.root / "data" / "scored-runs" / partition

    def evidence_path(self, partition: str) -> Path:
        """The file of an evidence partition."""
        return self.root / "data" / "evidence" / partition

    def paths(self, partition: str, trees: str) -> list[Path]:
        """The files of a partition in the 'scored' tree, the 'evidence' tree, or 'both'."""
        both = {"scored": self.scored_path(partition), "evidence": self.evidence_path(partition)}
        return [path for tree, path in both.items() if trees in (tree, "both")]

    def scored(self, partition: str, *rows: dict[str, Any] | bytes) -> None:
        """Write a scored partition anew."""
        _write(self.scored_path(partition), jsonl(rows))

    def evidence(self, partition: str, *rows: dict[str, Any] | bytes) -> None:
        """Write an evidence partition anew."""
        _write(self.evidence_path(partition), jsonl(rows))

    def both(self, partition: str, *rows: dict[str, Any]) -> None:
        """Write a scored partition anew, and the evidence of every run in it."""
        self.scored(partition, *rows)
        self.evidence(partition, *(given(row["evidence_run_id"]) for row in rows))

    def move_away(self, *paths: Path) -> None:
        """Take input files out of the lake, to be brought back."""
        for path in paths:
            os.rename(path, self._away(path))

    def bring_back(self, *paths: Path) -> None:
        """Put files that were moved away in their places again."""
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.rename(self._away(path), path)

    def _away(self, path: Path) -> Path:
        return self.root / f"away-{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"

    # the writer

    @property
    def engine(self) -> Engine:
        """The writer; it is started, and recovers, where none runs."""
        if self._engine is None:
            store = Store.open(self.state, self.root)
            # An executor, or the address of one.
            given = self.limits.get("executor")
            other = {"executor": given} if isinstance(given, str) else {}
            chosen = limits(**{**self.limits, "executor": "", **other})
            executor = None if other else given
            self._engine = Engine(self.root, store, self.options, chosen, clock=lambda: self.now_ns, executor=executor)
            self._engine.committer.recover()
        return self._engine

    @property
    def state(self) -> Path:
        """Where the state store stands."""
        return self.root / "state" / "distilld.db"

    def stop(self) -> None:
        """Stop the writer; the next pass starts another."""
        if self._engine is not None:
            self._engine.store.close()
            self._engine = None

    def restart(self, options: Options | None = None, **limits: Any) -> None:
        """Stop the writer; the next one may have other options or limits."""
        self.stop()
        self.options = options or self.options
        self.limits |= limits

    def lose_store(self) -> None:
        """Stop the writer and delete its store."""
        self.stop()
        shutil.rmtree(self.state.parent)

    def go(self, trigger: Trigger = Trigger.ONCE) -> PassResult:
        """One pass, a minute after the last; what must hold after every pass is looked at."""
        self.now_ns += MINUTE_NS
        result = self.engine.run_pass(trigger)
        self.check()
        return result

    def prune(self, glob: str | None = None, *, only: Only | None = None) -> PassResult:
        """Prune, a minute after the last pass."""
        self.now_ns += MINUTE_NS
        self.engine.give_up(glob, only)
        result = self.engine.run_pass(Trigger.PRUNE)
        self.check()
        return result

    # what stands there

    def content(self, name: str) -> bytes:
        """The bytes of an export; none where there is no file."""
        path = self.root / EXPORT_PATHS[name]
        return path.read_bytes() if path.exists() else b""

    def files(self) -> dict[str, bytes]:
        """The bytes of the nine exports."""
        return {name: self.content(name) for name in EXPORT_PATHS}

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of an export, in order."""
        return [json.loads(line) for line in self.content(name).splitlines()]

    def lines(self, name: str) -> Counter[bytes]:
        """The lines of an export, whatever their order."""
        return Counter(self.content(name).splitlines())

    def exported(self, dataset: Dataset | str) -> set[str]:
        """The runs that a dataset has rows of; of a pair both, with ``>`` between them."""
        if dataset == Dataset.PREFERENCE:
            return {f"{row['chosen_run_id']}>{row['rejected_run_id']}" for row in self.rows(dataset)}
        return {row["source_run_id"] for row in self.rows(dataset)}

    def retained(self) -> Counter[str]:
        """How many exported rows and pairs are retained, by kind."""
        found: Counter[str] = Counter()
        for _, kind, rows in self.engine.retained.counts():
            found[kind] += rows
        return found

    def quarantined(self, dataset: Dataset | str) -> dict[str, str]:
        """The reason of each run that a quarantine holds."""
        return {
            row["source_record"].get("evidence_run_id") or row["source_record"].get("run_id"): row["reason"]
            for row in self.rows(f"quarantine_{dataset}")
        }

    def withdrawn(self, dataset: Dataset | str) -> list[dict[str, Any]]:
        """The withdrawals from a dataset, each with all keys."""
        found = self.rows(f"withdrawals_{dataset}")
        for row in found:
            assert tuple(row) == WITHDRAWAL_KEYS
        return found

    def causes(self, dataset: Dataset | str) -> list[str]:
        """The causes of the withdrawals from a dataset, in order; ``+`` behind one says that the row was replaced."""
        return [row["cause"] + "+" * row["replaced"] for row in self.withdrawn(dataset)]

    def stamps(self, dataset: Dataset | str) -> dict[str, str]:
        """When each row of a dataset was written, by id."""
        return {row["id"]: row["created_at"] for row in self.rows(dataset)}

    def ask(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """What the store answers."""
        return self.engine.store.connection.execute(query, values).fetchall()

    def check(self) -> None:
        """What holds after every pass: accounting, ids, and nothing in a dataset's folder but its file and its card."""
        totals = self.engine.ledger.totals()
        for dataset in Dataset:
            ids = [row["id"] for row in self.rows(dataset)]
            assert len(ids) == len(set(ids)) == totals.exported(dataset)
            assert len(self.rows(f"quarantine_{dataset}")) == totals.quarantined(dataset)
            gone = len(self.rows(f"withdrawals_{dataset}"))
            assert [(gone,)] == self.ask("SELECT count(*) FROM withdrawals WHERE dataset = ?", dataset.value)
            path = self.root / EXPORT_PATHS[dataset]
            picked_up = [each.name for each in path.parent.glob("*") if not each.name.startswith(".")]
            assert sorted(picked_up) in ([CARD, path.name], []), f"{path.parent} holds something else"
        actual = self.ask(
            "SELECT dataset, 'retained', outcome, count(*) FROM (SELECT 'rag' AS dataset, rag AS outcome FROM retained_rows"
            " UNION ALL SELECT 'sft', sft FROM retained_rows UNION ALL SELECT 'preference', outcome FROM pairs"
            " WHERE retained IS NOT NULL) WHERE outcome IS NOT NULL GROUP BY 1, 3"
            " UNION ALL SELECT dataset, 'live', outcome, count(*) FROM (SELECT 'rag' AS dataset, rag AS outcome"
            " FROM scored_rows UNION ALL SELECT 'sft', sft FROM scored_rows UNION ALL SELECT 'preference', outcome"
            " FROM pairs WHERE retained IS NULL) WHERE outcome IS NOT NULL GROUP BY 1, 3"
        )
        assert sorted(actual) == sorted(self.ask("SELECT dataset, state, outcome, rows FROM totals WHERE rows <> 0"))


def believe_facts(patch: pytest.MonkeyPatch) -> None:
    """From now on the facts of a file that was read prove its bytes, as they do of one that has long been at rest."""
    patch.setattr(inputs, "SURE_AFTER_NS", -(1 << 62))


def _drop(*_: object) -> NoReturn:
    raise structlog.DropEvent


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@contextmanager
def history_lake(root: Path, options: Options | None = None, **limits: Any) -> Iterator[HistoryLake]:
    """A lake in memory where the machine has a folder there, for fsync is all that these tests would wait for.

    Nothing is logged, and no git is asked; the writer is stopped at the end.
    """
    memory = Path("/dev/shm")
    folder = memory if os.access(memory, os.W_OK | os.X_OK) else root
    structlog.configure(processors=[_drop])
    try:
        with (
            tempfile.TemporaryDirectory(prefix="distilld-", dir=folder) as name,
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr(lake_context, "git_state", lambda _: GitState())
            lake = HistoryLake(Path(name), options, **limits)
            try:
                yield lake
            finally:
                lake.stop()
    finally:
        structlog.reset_defaults()
