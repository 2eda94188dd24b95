"""``--dry-run``: a normal pass on a copy of the state store that is deleted afterwards (SPEC 5).

Nothing is written below the root or in the store: inputs are only read, decisions are applied to the copy, and the
committer skips the exports, the receipts and the recovery. A dry run rehearses neither a take-over nor a restoration:
its figures assume the exports that the store knows, and none if it knows none.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Final

from distilld.config.settings import Settings
from distilld.core.model import Committed, DistilldError, OperatorError, StatFacts, UsageError
from distilld.engine.engine import Engine
from distilld.engine.pass_result import Progress
from distilld.publish.commit import Committer
from distilld.publish.exports import Exports
from distilld.publish.new_file import Written
from distilld.publish.receipt import ExportWrite
from distilld.service.lock import holder, refuse_other_store
from distilld.store.connection import Store, is_kept
from distilld.store.read_only import copy_store, file_facts

_ATTEMPTS: Final = 5


class DryCommitter(Committer):
    """Applies decisions to the store alone; the store must be a copy."""

    writes: ClassVar[bool] = False

    def __init__(self, root: Path, store: Store) -> None:
        super().__init__(root, store, Exports(root))

    def _write(self, write: ExportWrite, known: Committed) -> Written:
        """Report the file as written; count its rows, but not its bytes."""
        return Written(known.size, "", StatFacts(0, 0, known.size, 0, 0), write.change.leaving.total())

    def finish(self) -> None:
        """Do nothing: no file was written that must be put in place."""

    def recover(self) -> bool:
        """Return whether the next real run completes or undoes a batch first; here the copy only forgets that batch."""
        needed = self.needs_recovery()
        with self._store.transaction():
            self._records.drop_intents()
        return needed


@contextmanager
def rehearsal(
    settings: Settings, *, take_over: bool = False, progress: Callable[[Progress], None] | None = None
) -> Iterator[Engine]:
    """Yield an engine that can do everything and changes nothing; it may work while a writer runs.

    Raises:
        UsageError: The lake is kept with another store, or the folder for temporary files is below the root.
        OperatorError: The store cannot be read or copied.
    """
    if not take_over:
        refuse_other_store(holder(settings.root), settings.root, settings.state)
    with tempfile.TemporaryDirectory(prefix="distilld-dry-run-") as name:
        folder = Path(name).resolve()
        if folder.is_relative_to(settings.root):
            raise UsageError(
                f"a dry run changes nothing below the root, and its temporary files would go to {folder.parent}",
                hint="set TMPDIR to a folder elsewhere",
            )
        store = _open_copy(settings, folder / "distilld.db")
        try:
            yield Engine(
                settings.root,
                store,
                settings.options(),
                # Joining a cluster writes a file below the root, to see whether workers can read it.
                settings.limits()._replace(executor=""),
                progress=progress,
                committer=DryCommitter(settings.root, store),
                spool_folder=folder,
            )
        finally:
            store.close()


def damaged_exports(engine: Engine) -> Iterator[str]:
    """Yield what the next run restores first and a rehearsal does not: each damaged export, and what is wrong with it.

    ``engine`` is that of a rehearsal that has not begun. While a writer runs, nothing is yielded.

    Raises:
        OperatorError: An export cannot be read.
    """
    if holder(engine.root).running or engine.receipts.last_batch() is None:
        return
    cut_off = {intent.name for intent in engine.export_records.intents()}
    cut_off.update(name for name, record in engine.export_records.exports().items() if record.pending_temp is not None)
    for error in engine.restorer.damaged(apart_from=cut_off).values():
        yield f"{error.path} {error.problem}"


def _open_copy(settings: Settings, copy: Path) -> Store:
    if is_kept(settings.state):
        _copy(settings, copy)
    try:
        return Store.open(copy, settings.root)
    except DistilldError as error:
        # Name the store in the message: it is at fault, not its copy.
        error.args = (str(error).replace(str(copy), str(settings.state)),)
        raise


def _copy(settings: Settings, copy: Path) -> None:
    """Copy the store as of one moment; copy it again if it was written to meanwhile."""
    for _ in range(_ATTEMPTS):
        before = holder(settings.root), file_facts(settings.state)
        copy_store(settings.state, copy, writer_runs=before[0].running)
        if before[0].running or before == (holder(settings.root), file_facts(settings.state)):
            return
        for path in copy.parent.glob(copy.name + "*"):
            path.unlink()
    raise OperatorError(
        f"the state store {settings.state} was written to whenever it was copied", hint="try again when it is quiet"
    )
