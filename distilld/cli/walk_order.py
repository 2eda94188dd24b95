"""What ``rebuild`` and ``compact`` did: a pass of the lake's writer that ends by putting the files in walk order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from distilld.config.settings import Settings
    from distilld.core.model import Trigger
    from distilld.engine.pass_result import Progress
    from distilld.service.run_once import RunReport
    from distilld.store.work import Waiting


class Ordered(NamedTuple):
    """The report of the run, what still waits to be judged after it, and how much white space it removed."""

    report: RunReport
    waiting: Waiting
    space_bytes_removed: int

    def as_json(self) -> dict[str, Any]:
        """Return the report for ``--json``."""
        from distilld.cli.output import plain

        shown: dict[str, Any] = plain(self.report)
        del shown["withdrawn"]
        return {**shown, "receipt": self.report.receipt, "in_walk_order": not self.waiting.anything}

    def say(self, did: str) -> None:
        """Print ``did`` and that the files are in order; but what was not read, and what waits, if anything does."""
        from distilld.cli.output import say
        from distilld.tables import counted

        left = [f"{counted(len(self.report.not_read), 'input')} could not be read"] if self.report.not_read else []
        if self.waiting.anything:
            rows = self.waiting.rows + self.waiting.departures + self.waiting.retained
            waits = f"{counted(rows, 'row')} and {counted(self.waiting.tasks, 'task')} wait to be judged"
            say("; ".join([*left, f"{waits}, so the files were not put in walk order"]))
        else:
            say("; ".join([*(left or [did]), "the files are in walk order"]))


def put_in_order(settings: Settings, trigger: Trigger, progress: Callable[[Progress], None] | None = None) -> Ordered:
    """Do a pass that ends by putting the files in walk order, unless rows still wait to be judged."""
    from distilld.service.run_once import bring_up_to_date, on_whole_store, writer

    def ordered() -> Ordered:
        with writer(settings, progress=progress) as engine:

            def spaces() -> int:
                return sum(record.committed.spaces for record in engine.export_records.exports().values())

            before = spaces()
            report = bring_up_to_date(engine, trigger)
            return Ordered(report, engine.work.waiting(), max(0, before - spaces()))

    return on_whole_store(ordered)
