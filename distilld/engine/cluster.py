"""A Dask cluster that does the jobs of a pass (SPEC 8): joined when there is much to read, left when the pass ends.

Each job carries what a worker must have in common with the process that commits. The worker compares it before each
job, so workers that join later are checked too. Jobs and answers are pickled here, so Dask handles only bytes.
Dask is imported only to join a cluster. Anyone who can reach the cluster can run code on it, and in this process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import platform
import secrets
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple, ParamSpec, TypeVar

from distilld import __version__
from distilld.core.model import RULES_VERSION, InputKind, OperatorError, Options, UsageError
from distilld.core.remedies import remedy_of, remedy_of_missing
from distilld.engine.jobs import JobFailed
from distilld.engine.pool import Joined
from distilld.files.durable import open_in_folder
from distilld.lake.scan import TREES

SCHEME: Final = "dask://"
NONCE: Final = ".seen-by-workers-"
"""Prefix of the name of the empty file that a worker must see in the spool folder.

The name is new each time, so no mount can show an older state. The next join removes files that a kill left.
"""
JOIN_SECONDS: Final = 10
"""Seconds to wait for the scheduler, and again for the first worker."""
LOOK_SECONDS: Final = 0.5
"""Seconds between checks, during a job, that the scheduler is still there."""
LEAVE_SECONDS: Final = 5

P = ParamSpec("P")
T = TypeVar("T")


class ClusterAway(OperatorError):
    """The scheduler cannot be reached, went away or has no worker."""

    def __init__(self, address: str, why: str) -> None:
        super().__init__(
            f"the cluster at {address} {why}",
            hint="start its scheduler and workers, or set executor to empty; the next run goes on",
        )


class UnfitWorker(OperatorError, UsageError):
    """A worker must not judge: it has other versions, or does not see the lake (exit code 2)."""

    def __init__(self, why: str) -> None:
        super().__init__(why, hint="correct the worker and start it again; nothing that it did was used")


class Terms(NamedTuple):
    """What a worker must have in common with the process that commits; there, no folder in ``folders`` is empty."""

    versions: dict[str, str]
    nonce: str
    folders: tuple[str, ...]


def refuse_without_dask(address: str) -> None:
    """Refuse an address that needs Dask if Dask is not installed.

    Raises:
        UsageError: Dask is not installed.
    """
    if address and find_spec("distributed") is None:
        raise UsageError(f"executor = {address!r} needs Dask, which is not installed", hint=remedy_of_missing("dask"))


def join(address: str, root: Path, folder: Path, options: Options) -> Joined:
    """Join the cluster at ``dask://HOST:PORT``; ``folder``, below the root, gets the file that workers must see.

    Raises:
        ClusterAway: The scheduler does not answer or has no worker.
        OperatorError: The file cannot be written.
        UsageError: Dask is not installed.
    """
    refuse_without_dask(address)
    nonce = folder / f"{NONCE}{secrets.token_hex(16)}"
    try:
        for left in folder.glob(f"{NONCE}*"):
            left.unlink(missing_ok=True)
        os.close(open_in_folder(nonce, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    except OSError as error:
        raise OperatorError(f"cannot write in {folder}: {error.strerror}", hint=remedy_of(error)) from error
    folders = [root / TREES[kind] for kind in InputKind]
    if options.check_source_files:
        folders.append(Path(options.source_files_root))
    terms = Terms(_versions(), str(nonce), tuple(str(each) for each in folders if _has_any(each)))
    cluster = Cluster(address, terms)
    return Joined(cluster, cluster.connect())


class Cluster(Executor):
    """The client's side: an event loop in its own thread, with one coroutine for each job."""

    def __init__(self, address: str, terms: Terms) -> None:
        self._address = address
        self._terms = terms
        self._client: Any = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cluster", daemon=True)
        self._thread.start()

    def connect(self) -> int:
        """Find the scheduler and a worker; return how many jobs the workers do at a time."""
        try:
            return self._run(self._connect()).result()
        except BaseException:
            self.shutdown()
            raise

    async def _connect(self) -> int:
        try:
            from distributed import Client
        except OSError as error:
            # Its import reads /proc/meminfo.
            raise OperatorError(f"Dask cannot be loaded: {error}", hint="set ProcSubset=all in the unit") from error
        for name in ("asyncio", "distributed", "distributed.client", "distributed.gc", "tornado.application"):
            # Standard error is for our own log; failures here are raised as errors of the pass.
            logging.getLogger(name).setLevel(logging.CRITICAL)
        scheduler = self._address.replace(SCHEME, "tcp://", 1)
        try:
            self._client = await Client(
                scheduler, asynchronous=True, timeout=JOIN_SECONDS, set_as_default=False, direct_to_workers=True
            )
        except (OSError, TimeoutError) as error:
            raise ClusterAway(self._address, "does not answer") from error
        try:
            await self._client.wait_for_workers(1, timeout=JOIN_SECONDS)
        except TimeoutError as error:
            raise ClusterAway(self._address, "has no worker") from error
        return sum((await self._client.nthreads()).values())

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a worker compare the terms and then call a function.

        The future raises :class:`UnfitWorker`, :class:`ClusterAway`, JobFailed, or BrokenExecutor where workers were
        killed several times.
        """
        return self._run(self._answer(pickle.dumps((fn, args, kwargs), pickle.HIGHEST_PROTOCOL)))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        """Leave the cluster; drop its unfinished jobs."""
        if self._thread.is_alive():
            self._run(self._leave()).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
        with suppress(OSError):
            os.unlink(self._terms.nonce)

    def _run(self, task: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(task, self._loop)

    async def _answer(self, packed: bytes) -> Any:
        from distributed import KilledWorker

        given = self._client.submit(work, tuple(self._terms), packed, pure=False)
        answer = asyncio.ensure_future(given.result())
        try:
            while not (await asyncio.wait({answer}, timeout=LOOK_SECONDS))[0]:
                if self._client.status != "running":
                    raise ClusterAway(self._address, "went away")
            content = answer.result()
        except KilledWorker as error:
            raise BrokenExecutor(str(error)) from error
        except (JobFailed, ClusterAway):
            raise
        except Exception as error:
            if given.status != "error":
                raise ClusterAway(self._address, "went away") from error
            why = str(error).partition("\n")[0]
            raise UnfitWorker(f"the cluster at {self._address} cannot do distilld's jobs: {why}") from error
        finally:
            answer.cancel()
        if isinstance(content, str):
            raise UnfitWorker(content)
        return pickle.loads(content)  # noqa: S301  from our own function

    async def _leave(self) -> None:
        if self._client is not None:
            with suppress(Exception):
                await asyncio.wait_for(self._client.close(), LEAVE_SECONDS)
        others = {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


# what a worker does


def work(terms: tuple[Any, ...], packed: bytes) -> bytes | str:
    """Call the packed function and pack its result; return a text instead if this process is unfit, saying why."""
    unfit = _why_unfit(Terms(*terms))
    if unfit:
        return f"the worker on {platform.node()} {unfit}"
    function, arguments, named = pickle.loads(packed)  # noqa: S301  from the client, whose code runs here anyway
    return pickle.dumps(function(*arguments, **named), pickle.HIGHEST_PROTOCOL)


def _why_unfit(terms: Terms) -> str:
    ours = _versions()
    others = [f"{name} {ours.get(name)}, not {each}" for name, each in terms.versions.items() if ours.get(name) != each]
    if others:
        return f"has other versions: {'; '.join(others)}"
    if not os.path.exists(terms.nonce):
        return f"does not see the root: nothing is at {terms.nonce}"
    missing = [folder for folder in terms.folders if not _has_any(Path(folder))]
    return f"sees nothing in {missing[0]}" if missing else ""


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    """Return the versions that decide the bytes of a row: Python has its own character tables and number formats."""
    of_python = ".".join(platform.python_version_tuple()[:2])
    libraries = {name: version(name) for name in ("orjson", "pydantic")}
    return {"distilld": __version__, "rules": str(RULES_VERSION), "python": of_python, **libraries}


def _has_any(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return False
