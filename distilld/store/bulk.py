"""New partitions as they come in: which of their runs have other rows, and their facts and outcomes in one go.

The runs of a pass stand in temporary tables, which no commit makes durable: a pass that is cut off looks anew.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from typing import Any, Final

from distilld.core.line_facts import SHIPPED
from distilld.core.model import Dataset, InputKind, Options
from distilld.store.connection import Store
from distilld.store.inputs import FileRecord, Inputs, can_pair, forbidding_codes
from distilld.store.schema import BEHIND_ID

_PLACE_BITS: Final = 29
"""Of a place in walk order: 26 bits for the line, 3 for the category of the row."""
_IDS: Final = (
    ("scored_rows", "rag_ids", f"rag = {SHIPPED}"),
    ("scored_rows", "sft_ids", f"sft = {SHIPPED}"),
    ("scored_rows", "rag_behind", BEHIND_ID["rag"]),
    ("scored_rows", "sft_behind", BEHIND_ID["sft"]),
    ("frozen_rows", "frozen_rag_ids", f"rag = {SHIPPED}"),
    ("frozen_rows", "frozen_sft_ids", f"sft = {SHIPPED}"),
)
"""The known rows that another row with their id must be judged with: who has it, and who waits behind the gate for ids."""


class Arrivals:
    """The part of the store that takes new partitions in."""

    def __init__(self, store: Store, inputs: Inputs) -> None:
        self._inputs = inputs
        self._run = store.connection.execute
        self._many = store.connection.executemany

    # the first look

    def begin(self) -> None:
        """Begin to look at the runs of new partitions."""
        self.end()
        # place: the file's number, the line, the code of the category (0 for none).
        self._run("CREATE TEMP TABLE arriving_runs (run_id TEXT NOT NULL, place INTEGER NOT NULL)")
        self._run(
            "CREATE TEMP TABLE special_rows (file INTEGER, line INTEGER, verdict INTEGER, PRIMARY KEY (file, line))"
            " WITHOUT ROWID"
        )
        self._run("CREATE TEMP TABLE arriving_ids (key INTEGER NOT NULL)")

    def end(self) -> None:
        """Forget the runs."""
        self._run("DROP TABLE IF EXISTS temp.arriving_runs")
        self._run("DROP TABLE IF EXISTS temp.special_rows")
        self._run("DROP TABLE IF EXISTS temp.arriving_ids")

    def add_runs(self, file: int, runs: Iterable[tuple[str, int]]) -> None:
        """Note the runs that a scored file names: the run, and 8 times the line plus the code of the category."""
        base = file << _PLACE_BITS
        self._many(f"INSERT INTO arriving_runs VALUES (?1, ?2 + {base})", runs)

    def add_special(self, file: int, lines: Iterable[tuple[int, int | None]]) -> None:
        """Note lines whose ids others may share; the verdict is that of their own run, as far as it stands alone."""
        self._many(f"INSERT OR IGNORE INTO special_rows VALUES ({file}, ?, ?)", lines)

    def add_ids(self, keys: Iterable[int]) -> None:
        """Note ids that known rows of other runs may have."""
        self._many("INSERT INTO arriving_ids VALUES (?)", [(key,) for key in keys])

    def has_orphans(self) -> bool:
        """Whether rows of an older export are kept: their ids need not be made of the runs that they name."""
        return bool(self._run("SELECT EXISTS (SELECT 1 FROM frozen_rows WHERE kind = 'orphan')").fetchone()[0])

    def knows_any_id(self) -> bool:
        """Whether a known row, present or frozen, has one of the ids that were noted. Nothing may be departing."""
        return any(
            self._run(
                f"SELECT EXISTS (SELECT 1 FROM temp.arriving_ids a CROSS JOIN {table} INDEXED BY {index}"
                f" ON sample_key = a.key WHERE {has_it})"
            ).fetchone()[0]
            for table, index, has_it in _IDS
        )

    def knows_any_run(self) -> bool:
        """Whether the store knows one of the runs already, present or frozen."""
        for table, column in (
            ("scored_rows", "run_id"),
            ("frozen_rows", "run_id"),
            ("pairs", "chosen_run_id"),
            ("pairs", "rejected_run_id"),
        ):
            if not self._run(f"SELECT EXISTS (SELECT 1 FROM {table})").fetchone()[0]:
                continue
            found = self._run(
                f"SELECT EXISTS (SELECT 1 FROM temp.arriving_runs a CROSS JOIN {table} t ON t.{column} = a.run_id)"
            )
            if found.fetchone()[0]:
                return True
        return False

    def find_special(self) -> int:
        """Find the rows whose runs have several, and the verdicts in force for them; returns how many rows are special."""
        code = "CASE a.place & 7 WHEN 0 THEN NULL ELSE a.place END"
        self._run(
            "INSERT OR REPLACE INTO special_rows"
            f" SELECT a.place >> {_PLACE_BITS}, (a.place & {(1 << _PLACE_BITS) - 1}) >> 3, r.last & 7"
            " FROM temp.arriving_runs a JOIN"
            f" (SELECT a.run_id, max({code}) AS last FROM temp.arriving_runs a GROUP BY a.run_id HAVING count(*) > 1) r"
            " ON r.run_id = a.run_id"
        )
        return int(self._run("SELECT count(*) FROM special_rows").fetchone()[0])

    def specials(self, file: int) -> dict[int, int | None]:
        """The special rows of a file: the code of the verdict in force by line."""
        return dict(self._run("SELECT line, verdict FROM special_rows WHERE file = ?", (file,)).fetchall())

    # what was read and judged

    def add_rows(self, packed: bytes, batch: int) -> None:
        """Insert scored rows with their outcomes, as a worker packed them; all of ``batch``."""
        self.insert_rows(pickle.loads(packed), batch)  # noqa: S301  our own worker wrote it

    def insert_rows(self, rows: Iterable[tuple[Any, ...]], batch: int) -> None:
        """Insert scored rows: facts, whether they have evidence, code and line digest of RAG, then of SFT."""
        self._many(
            "INSERT INTO scored_rows (walk, start_byte, length_bytes, digest, run_id, task_id, category, malformed,"
            " sample_key, evidence_found, rag, rag_line, rag_batch, sft, sft_line, sft_batch)"
            f" VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, {batch}, ?, ?, {batch})",
            rows,
        )

    def add_evidence(self, partition_id: int, packed: bytes) -> None:
        """Insert evidence rows, as a worker packed them."""
        self._many(
            f"INSERT INTO evidence_rows VALUES ({partition_id}, ?, ?, ?, ?, ?)",
            pickle.loads(packed),  # noqa: S301  our own worker wrote it
        )

    def queue_again(self, walks: Iterable[int], options: Options) -> None:
        """Have the special rows of a batch judged once more when everything is in.

        What they were judged with may never come. Rows that ship although the last verdict so far forbids it come first.
        """
        rows = [(walk,) for walk in walks]
        self._many("INSERT OR IGNORE INTO rejudge_rows (walk, forced) VALUES (?, 0)", rows)
        if not options.revoke:
            return
        forbidding = forbidding_codes(options, Dataset.RAG, Dataset.SFT)
        self._many(
            "UPDATE rejudge_rows SET forced = 1 WHERE walk IN (SELECT s.walk FROM scored_rows v CROSS JOIN scored_rows s"
            f" ON s.run_id = v.run_id WHERE v.walk = ? AND v.category IN ({forbidding}) AND NOT EXISTS"
            " (SELECT 1 FROM scored_rows n WHERE n.run_id = v.run_id AND n.category IS NOT NULL AND n.walk > v.walk)"
            f" AND (s.rag = {SHIPPED} OR s.sft = {SHIPPED}))",
            rows,
        )

    def all_are_in(self) -> None:
        """All that the first look saw is in, every verdict with it: nothing that ships has to come first."""
        self._run("UPDATE rejudge_rows SET forced = 0 WHERE forced = 1")

    def close_partition(self, record: FileRecord, rows: int) -> None:
        """Record a file whose rows are all in and judged, and queue the tasks that may form pairs now."""
        self._inputs.write_file(record, judged=record.kind is InputKind.SCORED)
        self._inputs.note_input(record, "new", 0, record.indexed_lines, record.malformed_lines)
        if rows:
            self._inputs.count_rows(rows, 0)
            low = record.walk_base
            self._run(
                "INSERT OR IGNORE INTO rejudge_tasks SELECT DISTINCT s.task_id, 0 FROM scored_rows s"
                f" WHERE {can_pair(low, low + record.indexed_lines)}"
            )
