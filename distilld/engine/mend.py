"""Make exports and store agree before anything is judged: adopt older exports, restore damaged ones."""

from __future__ import annotations

import time
from typing import Final

from distilld.engine.lake_context import LakeContext
from distilld.publish.restore import AnotherWriterError

CHECKS_IN_A_PASS: Final = 3
"""How often a pass checks the exports and restores what is damaged; later damage is another writer's."""


class ExportMender:
    """Checks the exports in one pass."""

    def __init__(self, context: LakeContext) -> None:
        self._lake = context
        self._checks = 0

    def mend(self, *, patient: bool = False) -> None:
        """Recover, take over what is there without a store, and restore what is damaged.

        ``patient`` leaves exports that are damaged again and again alone for a while.

        Raises:
            AnotherWriterError: They are damaged after the checks that a pass allows.
        """
        lake = self._lake
        if not lake.committer.writes:
            return
        lake.committer.keep_lock()
        if lake.committer.needs_recovery():
            lake.committer.recover()
        now_ns = time.time_ns()
        if lake.restorer.take_over(now_ns, lake.options):
            lake.inputs.forget_files()
        self._checks += 1
        if self._checks > CHECKS_IN_A_PASS and lake.restorer.damaged():
            raise AnotherWriterError(
                "another writer changes exports/ whenever they are restored",
                hint="find out who writes below exports/ and stop it; see export_tampered in the log",
            )
        lake.restorer.check(now_ns, patient=patient)
