"""Whatever happens to a lake, what a cluster judges is byte for byte what this process judges (SPEC 8)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from hypothesis import seed

from distilld.core.model import EXPORT_PATHS, Options, Trigger
from distilld.engine.cluster import Cluster, join
from distilld.engine.engine import Engine
from distilld.engine.pass_result import PassResult
from distilld.engine.pool import Pool
from distilld.store.connection import Store
from tests.property import test_histories
from tests.property.test_histories import Histories, KeepHistories, run
from tests.support.dask_cluster import A_MINUTE_AHEAD, dask_cluster, needs_dask

OF_A_BATCH = re.compile(rb'"(created_at|recorded_at|withdrawn_at|withdrawn_batch|shipped_batch)":"[^"]*"')


def exports_of(root: Path) -> dict[str, bytes]:
    """The nine files, without times and batch ids."""
    paths = {name: root / path for name, path in EXPORT_PATHS.items()}
    return {name: OF_A_BATCH.sub(b"", path.read_bytes()) for name, path in paths.items() if path.exists()}


class BesideLocal(Engine):
    """An engine that is compared after each pass with one that does all itself, on a lake with the same inputs."""

    local: Engine

    def run_pass(self, trigger: Trigger) -> PassResult:
        """One pass of each."""
        result = super().run_pass(trigger)
        self.local.options = self.options
        self.local.run_pass(trigger)
        assert exports_of(self.root) == exports_of(self.local.root)
        return result

    def give_up(self, *args: Any, **named: Any) -> Any:
        """Let go of the rows of both; a pass follows."""
        self.local.give_up(*args, **named)
        return super().give_up(*args, **named)


class ClusterHistories(KeepHistories):
    """The histories of a lake that a cluster judges, whose workers have their own mount of it."""

    address = ""
    answers = 0

    def __init__(self) -> None:
        super().__init__()
        self.beside = self.folder.with_name(f"{self.folder.name}-local")
        self.beside.mkdir()
        (self.beside / "data").symlink_to(self.folder / "data")
        self.cluster = join(self.address, self.folder, self.folder, Options()).executor
        self.local: Engine | None = None

    def teardown(self) -> None:
        self.cluster.shutdown()
        if self.local is not None:
            self.local.store.close()
        super().teardown()

    def refuse(self, *_: Any, **__: Any) -> None:
        """No rule here: what is refused to this process is not refused to a worker."""

    def refuse_to_list(self, *_: Any, **__: Any) -> None:
        """No rule here, as above."""

    def restart(self) -> None:
        """Restart both."""
        super().restart()
        if self.local is not None:
            self.local.store.close()
        assert self.engine is not None
        store = Store.open(self.beside / "state" / "distilld.db", self.beside)
        self.local = Engine(self.beside, store, self.options, self.engine_limits())
        self.local.committer.recover()
        self.engine.__class__ = BesideLocal
        self.engine.local = self.local  # type: ignore[attr-defined]
        self.engine.executor = self.cluster


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[type[Histories]]:
    """Histories over two workers, each with a mount of its own and a clock that is a minute ahead."""
    lakes, folder = (tmp_path_factory.mktemp(name) for name in ("lakes", "cluster"))
    submit = Cluster.submit

    def counted(self: Cluster, *args: Any, **named: Any) -> Future[Any]:
        ClusterHistories.answers += 1
        return submit(self, *args, **named)

    with dask_cluster(folder) as cluster, pytest.MonkeyPatch.context() as patch:
        for _ in range(2):
            cluster.start_worker(lakes, preload=A_MINUTE_AHEAD)
        patch.setattr(test_histories, "QUICK_FOLDER", str(lakes))
        patch.setattr(ClusterHistories, "address", cluster.address)
        patch.setattr(Cluster, "submit", counted)
        patch.setattr(Pool, "_take_back", lambda *_: False)
        yield ClusterHistories


@needs_dask
def test_cluster_gives_the_bytes_of_a_local_run(mounted: type[ClusterHistories]) -> None:
    """Exports, quarantine and withdrawals are equal after every pass of random histories, times and batch ids aside."""
    done = run(mounted, steps=20, max_examples=8, derandomize=True)
    assert done.passes > 40
    assert mounted.answers > 40


@needs_dask
@pytest.mark.slow
def test_cluster_gives_the_bytes_of_a_local_run_for_a_thousand_steps(mounted: type[ClusterHistories]) -> None:
    """The same for longer."""
    steps = 0
    while steps < 1_000:
        steps += run(seed(steps)(type("Histories", (mounted,), {})), steps=40, max_examples=10).steps
