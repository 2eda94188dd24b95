"""A progress bar for a long pass, shown if standard error is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distilld.engine.pass_result import Progress


@contextmanager
def progress_bar(*, wanted: bool = True) -> Iterator[Callable[[Progress], None] | None]:
    """Yield a function to call with the engine's progress, or None if no bar is shown.

    Text that is written to ``sys.stderr`` meanwhile appears above the bar.
    """
    if not (wanted and sys.stderr.isatty()):
        yield None
        return

    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from distilld.tables import Size

    labels = {"read": "reading", "judge": "judging"}
    tasks: dict[str, TaskID] = {}
    with Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[rows]:,} rows  {task.fields[size]}  {task.fields[rate]:,} rows/s"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:

        def tell(progress: Progress) -> None:
            if progress.phase not in tasks:
                if not progress.whole:
                    return
                tasks[progress.phase] = bar.add_task(labels[progress.phase], total=None, size=Size(0), rows=0, rate=0)
            task = bar.tasks[tasks[progress.phase]]
            if progress.done < task.completed:  # another pass
                bar.reset(task.id)
            rate = round(progress.rows / task.elapsed) if task.elapsed else 0
            bar.update(
                task.id,
                completed=progress.done,
                total=max(progress.whole, progress.done),
                size=Size(progress.bytes),
                rows=progress.rows,
                rate=rate,
            )

        yield tell
