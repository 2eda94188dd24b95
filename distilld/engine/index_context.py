"""What the steps of one look at the inputs share: the store's facts about files, and what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from time import monotonic_ns
from typing import Final

from distilld.core.line_facts import OddLines
from distilld.core.model import InputChanged, OperatorError, Options, StatFacts
from distilld.core.plan import FileKey, Look
from distilld.engine.file_reading import FileReading
from distilld.engine.indexed import FileChange, Indexed
from distilld.engine.read_file import Reading
from distilld.lake.lines import Line
from distilld.lake.scan import PartitionFile
from distilld.store.connection import Store
from distilld.store.inputs import FileRecord, Inputs
from distilld.store.walk_order import place_partitions

ROWS_PER_TRANSACTION: Final = 20_000


class IndexContext:
    """One look at the inputs."""

    def __init__(
        self,
        root: Path,
        store: Store,
        inputs: Inputs,
        options: Options,
        *,
        is_still: Callable[[FileKey, StatFacts], bool],
        progress: Callable[[int, int], None],
    ) -> None:
        self.root = root
        self.store = store
        self.inputs = inputs
        self.options = options
        self.is_still = is_still
        self.found = Indexed()
        self.is_fresh = True
        """Whether nothing was judged yet: then new rows affect no others."""
        self.read_again = False
        self.owed: Set[FileKey] = frozenset()
        self.began_ns = monotonic_ns()
        self._progress = progress
        self._rows_in_transaction = 0

    def is_read_again(self, key: FileKey) -> bool:
        """Return whether a file is read from its start, whatever its facts say."""
        return self.read_again or key in self.owed

    def places(self, paths: list[str]) -> dict[str, tuple[int, int]]:
        """Return the places in walk order of partitions of new files, and update the known ones, which may move."""
        if not paths:
            return {}
        places = place_partitions(self.store, paths)
        for record in self.inputs.files().values():
            record.walk_base = places[record.path][1]
        return places

    # transactions

    @contextmanager
    def transactions(self) -> Iterator[None]:
        """Run transactions of bounded size around many files; what one file needs as a whole is never split."""
        try:
            with self.store.transaction():
                yield
        except BaseException:
            self.inputs.forget_files()
            raise

    def count_rows(self, rows: int) -> None:
        """Begin another transaction if this one has indexed many rows."""
        self._rows_in_transaction += rows
        if self._rows_in_transaction >= ROWS_PER_TRANSACTION:
            self.store.connection.execute("COMMIT")
            self.store.connection.execute("BEGIN IMMEDIATE")
            self._rows_in_transaction = 0

    # reading block by block

    def reading(self, file: PartitionFile, known: FileRecord | None, look: Look) -> FileReading:
        """Begin to read a file block by block."""
        return FileReading(
            self.root,
            file,
            known,
            look,
            self.options,
            whole=self.is_read_again(file.key),
            is_still=self.is_still,
            began_ns=self.began_ns,
        )

    def blocks(self, reading: FileReading, most_bytes: int | None = None) -> Iterator[list[Line]]:
        """Yield the blocks with new lines, at least so many bytes further unless the file ends before; report each."""
        others, before = self.found.bytes_read, reading.bytes_read
        try:
            for block in reading.blocks:
                self.found.bytes_read = others + reading.bytes_read - before
                # Of a file that is read in turns, all that was read so far is shown.
                self.show(others + reading.bytes_read)
                if block:
                    yield block
                if most_bytes is not None and reading.bytes_read - before >= most_bytes:
                    return
        finally:
            self.found.bytes_read = others + reading.bytes_read - before

    @contextmanager
    def noting_problems(self, key: FileKey) -> Iterator[None]:
        """Note that a file changed or could not be read, and go on with others."""
        try:
            yield
        except InputChanged:
            self.inputs.forget_files()
            self.found.unsettled.append(key)
            self.found.names_gone = True
        except OperatorError as error:
            self.inputs.forget_files()
            self.found.problems.append(error)
            self.found.unreadable.append(key)

    # what was found

    def note_read(self, record: FileRecord, read: Reading) -> None:
        """Note a new file that was read as a whole for logs and for the next receipt."""
        self.inputs.note_input(record, "new", 0, read.content.lines, read.malformed)
        self._tell(record, "new", read, read.content.lines)

    def note_reading(self, record: FileRecord, reading: FileReading, *, noted: bool = False) -> None:
        """Note what became of a file for logs, and for the next receipt unless only its unterminated end changed.

        Lines that were ``noted`` block by block are not counted again.
        """
        change = reading.change(record)
        if change is None:
            return
        if change != "tail":
            lines, malformed = (0, 0) if noted else (reading.new_lines, reading.malformed)
            self.inputs.note_input(record, change, reading.from_offset, lines, malformed)
        self._tell(record, change, reading.result, reading.new_lines)

    def _tell(self, record: FileRecord, change: str, read: Reading, lines: int) -> None:
        if read.first_malformed is not None:
            self.found.malformed.append(OddLines(*record.key, read.malformed, read.first_malformed))
        self.found.changes.append(FileChange(*record.key, change, lines))

    def note_gone(self, record: FileRecord) -> None:
        """Note that a file is absent."""
        self.inputs.note_input(record, "absent", 0, 0, 0)
        self.found.changes.append(FileChange(*record.key, "absent"))

    def pulse(self) -> None:
        """Report the progress so far."""
        self.show(self.found.bytes_read)

    def show(self, bytes_read: int) -> None:
        """Report so many bytes."""
        self._progress(len(self.found.changes), bytes_read)
