"""The options that the store was judged with, and the work to do again if they have changed (SPEC 5.1)."""

from __future__ import annotations

import orjson
import structlog

from distilld.core.model import InputKind, Options
from distilld.core.plan import FileKey
from distilld.engine.indexed import Indexed
from distilld.lake.scan import Scan
from distilld.store.connection import Store
from distilld.store.inputs import Inputs
from distilld.store.queues import Queues

log = structlog.get_logger()


class JudgedWith:
    """Knows the options of the last full judgement, those being applied now, and files last read with other ones."""

    def __init__(self, store: Store, inputs: Inputs) -> None:
        self._store = store
        self._inputs = inputs
        self._queues = Queues(store)

    def take(self, options: Options, *, again: bool) -> str | None:
        """Queue everything if the options are not those that the store was judged with; return what changed."""
        recorded = self._store.recall("options_sha256")
        in_hand = self._store.recall("options_in_hand")
        if recorded == options.sha256 and in_hand is None:
            if again:
                with self._store.transaction():
                    self._queues.add_all(options)
            return None
        lines = _lines(options)
        read_with = self._store.recall("options_lines")
        other_lines = read_with not in (None, lines)
        if in_hand != options.sha256 or again:
            with self._store.transaction():
                self._queues.add_all(options)
                self._store.remember("options_in_hand", options.sha256)
                # Until all is read again, no line counts as read with these options only.
                self._store.remember("options_lines", "unsettled" if other_lines else lines)
            if recorded is not None:
                log.info("options_changed", options_sha256=options.sha256)
        return "lines" if other_lines else "rules"

    def settle(self, options: Options) -> None:
        """Record that everything is judged with these options and that none are being applied any more."""
        if self._store.recall("options_sha256") != options.sha256 or self._store.recall("options_in_hand") is not None:
            with self._store.transaction():
                self._store.remember("options_sha256", options.sha256)
                self._store.remember("options_in_hand", None)
                self._store.remember("options_lines", _lines(options))

    def owed_readings(self) -> set[FileKey]:
        """Return known files that were not read when every line had to be read with other options."""
        owed = orjson.loads(self._store.recall("files_to_read_again") or "[]")
        return {(InputKind(kind), path) for kind, path in owed}

    def owe_readings(
        self, options: Options, scan: Scan, indexed: Indexed, owed: set[FileKey], *, read_again: bool
    ) -> None:
        """Remember the files whose lines were last read with other options; all others are read with these."""
        if not (owed or read_again):
            return
        read = {file.key for file in scan.files}.difference(indexed.unsettled, indexed.unreadable)
        left = ((set(self._inputs.files()) if read_again else owed) - read).intersection(self._inputs.files())
        if left != owed or read_again:
            with self._store.transaction():
                self._store.remember("files_to_read_again", orjson.dumps(sorted(left)).decode())
                if read_again:
                    self._store.remember("options_lines", _lines(options))


def _lines(options: Options) -> str:
    """Return what decides how a line is read."""
    return f"max_line_bytes {options.max_line_bytes}, rules {options.rules_version}"
