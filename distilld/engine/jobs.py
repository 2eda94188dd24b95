"""Jobs that any process can do: jobs and results are plain values that pickle.

An executor calls only :func:`answer`. All else that a job needs is below the root, or below ``source_files_root`` if
source files are checked; its process must see both under the same paths.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

from distilld.core.model import InputChanged, InputKind, Options, UnreadableError
from distilld.engine.judge_span import SpanJudge
from distilld.engine.judge_task import PlainTasks, TaskDone, TaskJudge, TaskOrder
from distilld.engine.read_file import FileRead, ShortRows, read_file
from distilld.engine.sink import Sink
from distilld.engine.spans import FailedRow, Failure, Span, SpanDone
from distilld.files.durable import append_all, closed_after
from distilld.lake.source_files import path_check


class ReadJob(NamedTuple):
    """Read a whole input file; the result has the facts of its lines."""

    kind: InputKind
    path: str
    size: int


class SpanJob(NamedTuple):
    """Judge some spans; ``stamp`` is the time of the batch that their lines belong to."""

    spans: tuple[Span, ...]
    stamp: str
    size: int


class TaskJob(NamedTuple):
    """Judge the pairs of some tasks; the lines of plain tasks belong to the batch with this number and time.

    ``paths`` are those of the partitions with the tasks' rows; of those with ``failures``, only the beginning was read.
    ``over_limit`` are the rows over ``max_exports_per_run``.
    """

    tasks: tuple[TaskOrder, ...]
    paths: dict[int, str]
    failures: dict[int, Failure]
    over_limit: set[int]
    batch: int
    stamp: str
    size: int


Job = ReadJob | SpanJob | TaskJob


@dataclass(frozen=True, slots=True)
class SpoolFault:
    """The lines of a job could not be written."""

    errno: int | None
    why: str


Result = FileRead | ShortRows | Failure | list[SpanDone] | list[PlainTasks | TaskDone] | SpoolFault


class JobFailed(Exception):
    """A job failed with an error of the program; it has the traceback as text, which any process can unpickle."""


def answer(root: str, options: Options, jobs: Sequence[Job], file: str | None) -> list[Result]:
    """Do jobs for another process, in order.

    Raises:
        JobFailed: Instead of any other exception, since many do not unpickle.
    """
    try:
        return [perform(root, options, job, file) for job in jobs]
    except Exception as error:
        raise JobFailed("".join(traceback.format_exception(error))) from error


def could_not_read(job: Job, result: Result) -> bool:
    """Return whether a part of the result is missing because a file could not be read or had changed."""
    if isinstance(job, SpanJob) and isinstance(result, list):
        return any(map(_is_incomplete, job.spans, result))
    if isinstance(result, list):
        return any(isinstance(done, TaskDone) and done.failure is not None for done in result)
    return not isinstance(result, FileRead | ShortRows)


def _is_incomplete(span: Span, done: SpanDone | PlainTasks | TaskDone) -> bool:
    assert isinstance(done, SpanDone)  # noqa: S101  a SpanJob returns this
    is_unread = span.new is not None and done.evidence is None
    return is_unread or any(type(item) is FailedRow for item in done.items)


def perform(root: str, options: Options, job: Job, file: str | None) -> Result:
    """Do a job; append finished lines to ``file``, or return them with the answer if it is None."""
    if isinstance(job, ReadJob):
        try:
            return read_file(Path(root), job.kind, job.path, options.max_line_bytes)
        except (UnreadableError, InputChanged) as error:
            return Failure.of(error)
    try:
        if file is None:
            return _judge(root, options, job, Sink(None))
        with closed_after(os.open(file, os.O_WRONLY | os.O_CLOEXEC)) as descriptor:
            return _judge(root, options, job, Sink(partial(append_all, descriptor)))
    except OSError as error:
        return SpoolFault(error.errno, error.strerror or str(error))


def _judge(root: str, options: Options, job: SpanJob | TaskJob, sink: Sink) -> Result:
    spans, pairs = _judges(root, options)
    if isinstance(job, TaskJob):
        return pairs.judge(job.tasks, job.paths, job.failures, job.over_limit, job.batch, job.stamp, sink)
    return [spans.judge(span, job.stamp, sink) for span in job.spans]


@lru_cache(maxsize=2)
def _judges(root: str, options: Options) -> tuple[SpanJudge, TaskJudge]:
    missing = path_check(options)
    return SpanJudge(Path(root), options, missing), TaskJudge(Path(root), options, missing)
