"""One start and one pass, in a process that strace can kill: ``python -m tests.crash.one_pass ROOT``."""

from __future__ import annotations

import sys
from pathlib import Path

import structlog

from distilld.core.model import Options, Trigger
from distilld.engine.engine import Engine
from distilld.store.connection import Store
from tests.support.limits import limits


def main(root: Path) -> None:
    """What a start of the program does."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    store = Store.open(root / "state" / "distilld.db", root)
    engine = Engine(root, store, Options(source_files_root="/"), limits())
    engine.committer.recover()
    engine.run_pass(Trigger.ONCE)
    store.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
