"""Writes the files of a snapshot, counts rows and bytes, computes the sha256, and fsyncs on close."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson

from distilld.core.columns import Column
from distilld.core.model import UsageError
from distilld.core.remedies import remedy_of_missing
from distilld.files.durable import FILE_MODE, closed_after, make_folder, write_all
from distilld.files.regular import open_regular

_ROW_GROUP_BYTES: Final = 1 << 20
_PIECE_ROWS: Final = 200


class FileFacts(NamedTuple):
    """What a manifest says of a file; ``rows`` is None for a file that is not made of rows."""

    path: str
    rows: int | None
    bytes: int
    sha256: str


class JsonLines:
    """Writes rows as JSONL."""

    def __init__(self, folder: Path, path: str) -> None:
        self.path = path
        self.rows = self._bytes = 0
        self._sha = hashlib.sha256()
        self._descriptor = create(folder / path)

    def add(self, rows: list[bytes]) -> None:
        """Write rows, given as JSON without line feeds, at once."""
        block = b"\n".join((*rows, b""))
        self._sha.update(block)
        write_all(self._descriptor, block)
        self.rows += len(rows)
        self._bytes += len(block)

    def close(self) -> FileFacts:
        """Fsync and close the file; return its facts."""
        try:
            os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)
        return FileFacts(self.path, self.rows, self._bytes, self._sha.hexdigest())


class Parquet:
    """Writes rows as Parquet with zstd; a row group holds a little over 1 MiB of JSON."""

    def __init__(self, folder: Path, path: str, columns: tuple[Column, ...]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = path
        self.rows = 0
        self._folder = folder
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._file = os.fdopen(create(folder / path), "wb")
        self._schema = pa.schema(_fields(columns))
        self._arrow = pa
        # The other pools never return memory to the system: a snapshot of any size must fit into 200 MiB.
        pa.set_memory_pool(pa.system_memory_pool())
        self._writer = pq.ParquetWriter(self._file, self._schema, compression="zstd", use_dictionary=False)

    def add(self, rows: list[bytes]) -> None:
        """Add rows, given as JSON without line feeds; they are written as full row groups."""
        self._held += rows
        self._held_bytes += sum(map(len, rows))
        self.rows += len(rows)
        if self._held_bytes > _ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        """Write a row group. Rows are many times larger as Python objects, so convert a few at a time."""
        pieces = (self._held[at : at + _PIECE_ROWS] for at in range(0, len(self._held), _PIECE_ROWS))
        batches = [
            self._arrow.RecordBatch.from_pylist(list(map(orjson.loads, piece)), schema=self._schema) for piece in pieces
        ]
        if batches:
            self._writer.write_table(self._arrow.Table.from_batches(batches))
        self._held, self._held_bytes = [], 0

    def close(self) -> FileFacts:
        """Write the last row group, fsync and close the file; return its facts."""
        with self._file:
            self._flush()
            self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())
        return facts_of(self._folder, self.path, self.rows)


RowFile = JsonLines | Parquet


def _fields(columns: tuple[Column, ...]) -> list[Any]:
    import pyarrow as pa

    scalars = {"string": pa.string(), "int64": pa.int64(), "bool": pa.bool_()}

    def kind(column: Column) -> Any:
        inner = pa.struct(_fields(column.fields)) if column.fields else scalars[column.kind]
        return pa.list_(inner) if column.is_list else inner

    return [pa.field(column.name, kind(column), nullable=column.nullable) for column in columns]


def refuse_without_parquet() -> None:
    """Refuse, before anything is written, if the extra for Parquet is missing.

    Raises:
        UsageError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise UsageError("--parquet needs pyarrow, which is not installed", hint=remedy_of_missing("parquet")) from None


def create(path: Path) -> int:
    """Create a file, and its folder if needed; return its descriptor."""
    make_folder(path.parent)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)


def write_file(folder: Path, path: str, content: bytes) -> FileFacts:
    """Write a whole file, and fsync; return its facts."""
    with closed_after(create(folder / path)) as descriptor:
        write_all(descriptor, content)
        os.fsync(descriptor)
    return FileFacts(path, None, len(content), hashlib.sha256(content).hexdigest())


def facts_of(folder: Path, path: str, rows: int | None) -> FileFacts:
    """Return the facts of an existing file; read it once."""
    with open_regular(folder / path, follow_link=True) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return FileFacts(path, rows, os.fstat(file.fileno()).st_size, sha256)
