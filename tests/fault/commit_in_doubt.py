"""One pass in a process whose syncs are made to fail from outside (see test_commit_in_doubt).

    python -m tests.fault.commit_in_doubt FOLDER

Goes over the lake that stands in FOLDER. If the pass fails, the process recovers, and is killed when it has undone the
exports, before it says so in the store. Prints what happened.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import structlog

from distilld.core.model import OperatorError, Options, Trigger
from distilld.engine.engine import Engine
from distilld.store.connection import Store
from distilld.store.export_records import ExportRecords
from tests.support.limits import limits


def main(root: Path) -> None:
    """A pass, and what follows if it fails."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    try:
        store = Store.open(root / "state" / "distilld.db", root)
    except OperatorError:
        os.kill(os.getpid(), signal.SIGKILL)
        raise
    engine = Engine(root, store, Options(source_files_root="/"), limits())
    try:
        engine.committer.recover()
        engine.run_pass(Trigger.ONCE)
    except OperatorError as error:
        print(f"failed: {error}", flush=True)
    else:
        print("done", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    def die(_: Any) -> None:
        print("undone", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    ExportRecords.drop_intents = die  # type: ignore[assignment,method-assign]
    engine.committer.recover()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
