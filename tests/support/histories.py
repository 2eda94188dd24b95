"""The lakes that the crash and fault tests work on, and the changes that they go through.

``data`` is a link to a folder outside of the root: a root can then be copied while its input files stay the same files,
with the same inodes and times, as they would for a process that is killed and started again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from distilld.core.model import DATASET_PATHS, Dataset, OnDelete, Options, Trigger
from distilld.engine.engine import Engine
from distilld.engine.pass_result import PassResult
from distilld.store.connection import Store
from tests.support.builders import evidence, jsonl, scored
from tests.support.limits import limits

A: Final = "2026/04/27/alpha.jsonl"
B: Final = "2026/04/28/beta.jsonl"
BATCH_ROWS: Final = 50_000


def run(run_id: str, task_id: str, category: str, **changes: Any) -> dict[str, Any]:
    """A scored row of a run that has a signature of its own."""
    own = {"evidence_run_id": run_id, "evidence_task_id": task_id, "category": category}
    return scored(**own, provenance__sig_hash=f"sig-{run_id}", **changes)


def given(run_id: str, task_id: str, text: str | None = None) -> dict[str, Any]:
    """The evidence of a run."""
    return evidence(run_id=run_id, task_id=task_id, text=text or f"# Answer of {run_id}\n\nWith some words.")


class Inputs:
    """The two input trees of a lake, changed as a producer does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def scored(self, partition: str) -> Path:
        """The file of a scored partition."""
        return self._file("scored-runs", partition)

    def evidence(self, partition: str) -> Path:
        """The file of an evidence partition."""
        return self._file("evidence", partition)

    def _file(self, tree: str, partition: str) -> Path:
        path = self.folder / tree / partition
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def append(self, path: Path, *rows: dict[str, Any] | bytes) -> None:
        """Append rows to a file."""
        with path.open("ab") as file:
            file.write(jsonl(rows))

    def replace(self, path: Path, old: bytes, new: bytes) -> None:
        """Overwrite bytes in place, once."""
        content = path.read_bytes()
        assert content.count(old) >= 1
        path.write_bytes(content.replace(old, new, 1))


def write_first(inputs: Inputs) -> None:
    """Two partitions in which each of the six export files has rows."""
    inputs.append(
        inputs.scored(A),
        run("a1", "one", "accepted"),
        run("a2", "one", "rejected"),
        run("a3", "two", "accepted"),
        b'{"torn":',
        run("a4", "two", "partially_accepted"),
        run("a5", "five", "accepted"),
        run("a6", "three", "accepted"),
        run("a7", "three", "rejected"),
    )
    inputs.append(
        inputs.evidence(A),
        *(given(f"a{number}", task) for number, task in ((1, "one"), (2, "one"), (3, "two"), (4, "two"))),
        given("a6", "three", "the same words"),
        given("a7", "three", "the same words"),
    )
    inputs.append(
        inputs.scored(B),
        run("b1", "b", "accepted"),
        run("b1", "b", "accepted"),
        run("b2", "b", "needs_human_review"),
        run("b3", "b", "rejected"),
    )
    inputs.append(inputs.evidence(B), given("b1", "b"), given("b2", "b"), given("b3", "b"))


def append_rows(inputs: Inputs) -> None:
    """New rows, a new pair and a new hold, behind what is there."""
    inputs.append(inputs.evidence(B), given("b4", "c"), given("b5", "c"))
    inputs.append(
        inputs.scored(B), run("b4", "c", "accepted"), run("b5", "c", "rejected"), run("b6", "c", "accepted"), b"null"
    )


def rescore(inputs: Inputs) -> None:
    """A run that exported everywhere is rejected, in place and at the same length: its rows and its pair leave."""
    inputs.replace(inputs.scored(A), b'"category":"accepted"', b'"category":"rejected"')


def touch_all_nine(inputs: Inputs) -> None:
    """Rows leave each dataset and each quarantine file, others come, and each withdrawal log grows."""
    rescore(inputs)
    inputs.append(inputs.evidence(A), given("a5", "five"), given("a7", "three", "other words"))
    append_rows(inputs)


def lose_partitions(inputs: Inputs) -> None:
    """A scored file and another one's evidence disappear."""
    inputs.scored(A).unlink()
    inputs.evidence(B).unlink()


def rename_and_shuffle(inputs: Inputs) -> None:
    """A partition goes by another name, and the lines of the other one stand in another order."""
    other = "2026/04/26/before.jsonl"
    for file_of in (inputs.scored, inputs.evidence):
        file_of(A).rename(file_of(other))
    lines = inputs.scored(B).read_bytes().splitlines(keepends=True)
    inputs.scored(B).write_bytes(b"".join(reversed(lines)))


def nothing(_: Any) -> None:
    """No change."""


def lose_the_store(root: Path) -> None:
    """The state store is gone; the exports have an orphan, a torn line, a second copy of an id, and a faulty row."""
    shutil.rmtree(root / "state")
    rag = root / DATASET_PATHS[Dataset.RAG]
    lines = rag.read_bytes().splitlines(keepends=True)
    orphan = b'{"schema_version":1,"id":"rag-0123456789abcdef"' + lines[0][47:].replace(b'"a1"', b'"of old"')
    faulty = lines[1].replace(b"some words", b"other words")
    rag.write_bytes(b"".join([lines[0], faulty, orphan, *lines[2:], lines[0], lines[1][:20]]))


def damage_the_exports(root: Path) -> None:
    """Somebody edited a dataset and deleted a quarantine file."""
    sft = root / DATASET_PATHS[Dataset.SFT]
    sft.write_bytes(sft.read_bytes().replace(b"some words", b"SOME WORDS", 1))
    (root / "exports/quarantine/rag.jsonl").unlink()


def run_once(engine: Engine) -> PassResult:
    """One pass."""
    return engine.run_pass(Trigger.ONCE)


def rebuild(engine: Engine) -> PassResult:
    """A pass that reads and judges everything again."""
    return engine.run_pass(Trigger.REBUILD)


def pass_and_prune(engine: Engine) -> PassResult:
    """A pass that freezes, and what an operator does then."""
    engine.run_pass(Trigger.ONCE)
    engine.give_up(None)
    return engine.run_pass(Trigger.PRUNE)


@dataclass(frozen=True)
class History:
    """What a lake has gone through when the work under test begins, and what that work is."""

    name: str
    change: Callable[[Inputs], None] = nothing
    """What happened to the inputs since the first pass."""
    mishap: Callable[[Path], None] = nothing
    """What was done to the root; if anything, its exports are not what its store says until the work has begun."""
    work: Callable[[Engine], PassResult] = run_once
    before: Callable[[Inputs], None] | None = write_first
    """What a first pass found before the change; None where there was none."""
    batch_rows: int = BATCH_ROWS
    options: Options = field(default_factory=lambda: Options(source_files_root="/"))
    """Those of the work; the pass before it had the usual ones."""
    limits: dict[str, int] = field(default_factory=dict)
    """Constants of the program, by their dotted names, that are made small."""

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


SMALL: Final = {
    "distilld.engine.index_context.ROWS_PER_TRANSACTION": 3,
    "distilld.lake.lines.BLOCK_BYTES": 700,
    "distilld.files.segments.BLOCK_BYTES": 700,
    "distilld.files.spool.MEMORY_BYTES": 1,
    "distilld.store.connection.CACHE_KIB": 4,
}

ONE_GO: Final = {**SMALL, "distilld.engine.index.LEAVE_FROM": 0}
"""New evidence is read when its rows are judged, little as it is."""

IN_PLACE: Final = {
    "distilld.publish.exports.LEAST_BYTES": 0,
    "distilld.publish.live_files.SEGMENT_BYTES": 1500,
    "distilld.publish.overwrite.MOST_SPACE_SHARE": 9,
}
"""Rows leave small exports in place, too."""

FIRST: Final = History("first", write_first, before=None)
APPEND: Final = History("append", append_rows)
NINE: Final = History("nine", touch_all_nine)
NINE_IN_PLACE: Final = History("nine in place", touch_all_nine, limits=IN_PLACE)
HISTORIES: Final = (
    FIRST,
    APPEND,
    History("rescore", rescore),
    NINE,
    NINE_IN_PLACE,
    History("first in small steps", write_first, before=None, batch_rows=2, limits=SMALL),
    History("first in one go", write_first, before=None, batch_rows=7, limits=ONE_GO),
    History("nine in small steps", touch_all_nine, batch_rows=2, limits=SMALL),
    History("nine in place in small steps", touch_all_nine, batch_rows=2, limits={**SMALL, **IN_PLACE}),
    History("rebuild", append_rows, work=rebuild),
    History("take over", rescore, mishap=lose_the_store),
    History("restore", append_rows, mishap=damage_the_exports),
)
MORE_HISTORIES: Final = (
    History("absent", lose_partitions),
    History("withdraw", lose_partitions, options=Options(source_files_root="/", on_delete=OnDelete.WITHDRAW)),
    History("prune", lose_partitions, work=pass_and_prune),
    History("rename", rename_and_shuffle),
    History("options", options=Options(source_files_root="/", include_partial=True, include_review=True)),
    History("line limit", options=Options(source_files_root="/", max_line_bytes=350), batch_rows=3, limits=SMALL),
)
"""For those who have more time."""


class Lake:
    """A lake before the pass under test. Each try begins with the root as it stood then, on the same input files."""

    def __init__(self, history: History, folder: Path) -> None:
        self.history = history
        self.options = Options(source_files_root="/")
        self.root = folder / "root"
        self._base = folder / "base"
        inputs = Inputs(folder / "inputs")
        self.root.mkdir()
        (self.root / "data").symlink_to(inputs.folder)
        if history.before is not None:
            history.before(inputs)
            with self.opened() as engine:
                engine.run_pass(Trigger.ONCE)
        self.options = history.options
        history.change(inputs)
        history.mishap(self.root)
        shutil.copytree(self.root, self._base, symlinks=True)

    def reset(self) -> None:
        """Put the root back to what it was before the pass under test."""
        shutil.rmtree(self.root)
        shutil.copytree(self._base, self.root, symlinks=True)

    @contextmanager
    def opened(self) -> Iterator[Engine]:
        """An engine on the root, with a store that is closed again."""
        store = Store.open(self.root / "state" / "distilld.db", self.root)
        try:
            yield Engine(
                self.root,
                store,
                self.options,
                limits(batch_rows=self.history.batch_rows),
            )
        finally:
            store.close()

    def start(self) -> PassResult:
        """What a start of the program does: recovery, then the work under test."""
        with self.opened() as engine:
            engine.committer.recover()
            return self.history.work(engine)

    def recover(self) -> None:
        """The first half of a start."""
        with self.opened() as engine:
            engine.committer.recover()
