"""The progress of working off the queues, to display during a long pass."""

from __future__ import annotations

from distilld.engine.pass_result import Progress
from distilld.store.work import Work


class Judging:
    """Counts what is worked off. Pairs come last; until their tasks are known, their number is estimated."""

    def __init__(self, work: Work, files: int) -> None:
        self._work = work
        self._files = files
        waiting = work.waiting()
        self._rows, self._tasks = waiting.rows, max(waiting.tasks, waiting.rows // 8)
        self._done = self._bytes = 0
        self._asked = False

    def progress(self, done: int, size: int) -> Progress:
        """Return the progress after ``done`` more rows or tasks, for which ``size`` bytes were read."""
        self._done, self._bytes = self._done + done, self._bytes + size
        if self._done >= self._rows and not self._asked:
            self._asked = True
            self._tasks = self._work.waiting().tasks
        whole = max(self._rows + self._tasks, self._done)
        return Progress("judge", self._done, whole, self._files, min(self._done, self._rows), self._bytes)

    def end(self) -> Progress:
        """Return the progress when all is done."""
        whole = max(self._rows + self._tasks, self._done)
        return Progress("judge", whole, whole, self._files, min(self._done, self._rows), self._bytes)
