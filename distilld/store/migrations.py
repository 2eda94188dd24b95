"""The state store's migrations: named, append-only, each applied in one transaction with its own record.

The first creates the tables of :mod:`distilld.store.schema`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from distilld.core.line_facts import CATEGORIES, DUPLICATE, EXPORTED, LIKE_REJECTED, REASON_CODES, REASONS, UNREVIEWED
from distilld.core.model import Dataset, Reason
from distilld.store.schema import HALF_JUDGED, HOLDS_RAG, TABLES, VIEWS

if TYPE_CHECKING:
    import sqlite3

    from sqlite_utils import Database

MIGRATION_SET: Final = "distilld"
MIGRATIONS_TABLE: Final = "_sqlite_migrations"
_STATES: Final = ("live", "frozen", "departing")
_NOT_NEEDED: Final = ("pandas", "numpy")


def _run_script(db: Database, script: str) -> None:
    # executescript() would commit the migration's transaction.
    for statement in script.split(";\n"):
        if statement.strip():
            db.conn.execute(statement)


def m001_first_version(db: Database) -> None:
    """Create everything that version 0.1 stores."""
    _run_script(db, TABLES)
    _run_script(db, VIEWS)
    codes: list[tuple[str, list[tuple[int, Any]]]] = [
        ("outcomes", [(EXPORTED, "shipped"), *((code, reason.value) for code, reason in REASONS.items())]),
        ("categories", [(code, category.value) for code, category in CATEGORIES.items()]),
    ]
    for table, rows in codes:
        db.conn.executemany(f"INSERT INTO {table} VALUES (?, ?)", rows)
    every = [
        (dataset.value, state, code, 0) for dataset in Dataset for state in _STATES for code in (EXPORTED, *REASONS)
    ]
    db.conn.executemany("INSERT INTO totals VALUES (?, ?, ?, ?)", every)
    db.conn.executemany(
        "INSERT INTO counters VALUES (?, 0)", [("scored_rows",), ("unjudged_rows",), ("walk_relabels",)]
    )


def m002_indexes_of_exceptions(db: Database) -> None:
    """Index kept and retained rows: each pass, status and health check asks for them, without reading every row."""
    _run_script(
        db,
        "CREATE INDEX kept_rows ON scored_rows (kept) WHERE kept <> 0;\n"
        "CREATE INDEX frozen_pairs ON pairs (frozen, accepted, outcome) WHERE frozen IS NOT NULL;\n"
        "CREATE INDEX frozen_rows_by_kind ON frozen_rows (kind, accepted, rag, sft);\n"
        "CREATE INDEX emptied_rows ON frozen_rows (kind) WHERE kind <> 'absent' AND rag IS NULL AND sft IS NULL;\n",
    )


def m003_segments(db: Database) -> None:
    """Store a digest for each segment of an export; a withdrawn row is overwritten in place after COMMIT.

    A file without known segments has the sha256 of all its bytes; the next start reads it once.
    """
    _run_script(
        db,
        "ALTER TABLE export_files ADD COLUMN segment_bytes INTEGER;\n"
        "ALTER TABLE export_files ADD COLUMN space_bytes INTEGER NOT NULL DEFAULT 0;\n"
        "CREATE TABLE export_segments (name TEXT NOT NULL, segment INTEGER NOT NULL, sha256 BLOB NOT NULL,"
        " space_bytes INTEGER NOT NULL, line_marks BLOB NOT NULL, PRIMARY KEY (name, segment)) STRICT, WITHOUT ROWID;\n"
        "CREATE TABLE overwrites (name TEXT NOT NULL, start_byte INTEGER NOT NULL, length_bytes INTEGER NOT NULL,"
        " PRIMARY KEY (name, start_byte)) STRICT, WITHOUT ROWID;\n",
    )


def m004_claimants_of_an_id(db: Database) -> None:
    """Find all rows with an id, judged or not, by one index, which replaces four that had only judged rows."""
    _run_script(
        db,
        "CREATE INDEX scored_rows_by_key ON scored_rows (sample_key) WHERE sample_key IS NOT NULL;\n"
        "DROP INDEX rag_waiting;\nDROP INDEX sft_waiting;\nDROP INDEX rag_behind;\nDROP INDEX sft_behind;\n",
    )


def m005_verdicts_in_malformed_lines(db: Database) -> None:
    """Store by digest which runs a malformed scored line names: it may forbid them."""
    _run_script(
        db,
        "CREATE TABLE malformed_runs (run_id TEXT NOT NULL, digest BLOB NOT NULL, PRIMARY KEY (run_id, digest))"
        " STRICT, WITHOUT ROWID;\nCREATE INDEX malformed_runs_by_digest ON malformed_runs (digest);\n",
    )
    db.conn.executemany(
        "INSERT INTO categories VALUES (?, ?)", [(LIKE_REJECTED, "like rejected"), (UNREVIEWED, "unreviewed")]
    )


def m006_own_looks(db: Database) -> None:
    """Decide by our looks, not its server's clock, whether a file's facts prove its bytes; all are read again."""
    _run_script(
        db,
        "ALTER TABLE files DROP COLUMN looked_ns;\nALTER TABLE export_files DROP COLUMN looked_ns;\n"
        "ALTER TABLE files ADD COLUMN unsure_since_ns INTEGER DEFAULT 0;\n"
        "ALTER TABLE files ADD COLUMN hashed_at_ns INTEGER NOT NULL DEFAULT 0;\n"
        "CREATE INDEX unsure_files ON files (unsure_since_ns) WHERE unsure_since_ns IS NOT NULL AND state = 'present';\n"
        "CREATE INDEX files_by_hash ON files (hashed_at_ns) WHERE state = 'present';\n",
    )


def m007_moved_lines_and_rests(db: Database) -> None:
    """Keep nothing under the old name of a line that moved to another file; queue all absent rows for a check.

    An unterminated rest may forbid the runs that it names, also by its digest, like a malformed line.
    """
    _run_script(
        db,
        "ALTER TABLE files ADD COLUMN rest_digest BLOB;\nALTER TABLE files ADD COLUMN rest_category INTEGER;\n"
        "CREATE INDEX verdicts_in_rests ON files (rest_digest) WHERE rest_category IS NOT NULL;\n",
    )
    db.conn.execute("INSERT OR IGNORE INTO rejudge_frozen SELECT frozen_id FROM frozen_rows WHERE kind = 'absent'")


def m008_too_many_exports(db: Database) -> None:
    """Add a quarantine reason that older exporters do not have: a run may have too many exports."""
    code = REASON_CODES[Reason.TOO_MANY_EXPORTS]
    db.conn.execute("INSERT OR IGNORE INTO outcomes VALUES (?, ?)", (code, Reason.TOO_MANY_EXPORTS.value))
    every = [(dataset.value, state, code) for dataset in Dataset for state in _STATES]
    db.conn.executemany("INSERT OR IGNORE INTO totals VALUES (?, ?, ?, 0)", every)


def m009_dataset_history(db: Database) -> None:
    """Show the datasets over time to people, dashboards and ``status``: from the kept receipts, exact at each batch."""
    _run_script(
        db,
        "CREATE VIEW dataset_history AS\n"
        "    SELECT b.recorded_at AS at, d.key AS dataset, json_extract(d.value, '$.shipped') AS rows,\n"
        "           json_extract(d.value, '$.appended') - json_extract(d.value, '$.replaced') AS added,\n"
        "           json_extract(d.value, '$.withdrawn') AS withdrawn, json_extract(d.value, '$.held') AS quarantined,\n"
        "           b.batch_id\n"
        "    FROM batches b CROSS JOIN receipts r USING (batch)\n"
        "    CROSS JOIN json_each(r.receipt, '$.record_counts.per_exporter') d ORDER BY b.batch DESC;\n",
    )


def m010_smaller_store(db: Database) -> None:
    """Find an id's rows, and ensure that only one exports it, by one index; store large segment rows in full pages."""
    _run_script(
        db,
        "DROP INDEX rag_ids;\nDROP INDEX pair_ids;\nDROP INDEX scored_rows_by_key;\nDROP INDEX pairs_by_key;\n"
        f"CREATE UNIQUE INDEX scored_rows_by_key ON scored_rows (sample_key, {HOLDS_RAG})"
        " WHERE sample_key IS NOT NULL;\n"
        f"CREATE UNIQUE INDEX pairs_by_key ON pairs (sample_key, CASE outcome WHEN {EXPORTED} THEN 0 END);\n"
        "ALTER TABLE export_segments RENAME TO old_segments;\n"
        "CREATE TABLE export_segments (name TEXT NOT NULL, segment INTEGER NOT NULL, sha256 BLOB NOT NULL,"
        " space_bytes INTEGER NOT NULL, line_marks BLOB NOT NULL, PRIMARY KEY (name, segment)) STRICT;\n"
        "INSERT INTO export_segments SELECT * FROM old_segments;\nDROP TABLE old_segments;\n",
    )


def m011_words_of_the_glossary(db: Database) -> None:
    """Rename tables, columns, indexes and words as in the documents: retained, exported, quarantined."""
    new_names = (
        ("frozen", "retained"), ("shipped_in", "exported_in"), ("rows_shipped", "rows_exported"),
        ("rows_held", "rows_quarantined"),
        # Receipts of older versions keep their keys.
        ("json_extract(d.value, '$.shipped')", "coalesce(json_extract(d.value, '$.rows'), json_extract(d.value, '$.shipped'))"),
        ("json_extract(d.value, '$.held')", "coalesce(json_extract(d.value, '$.quarantine_rows'), json_extract(d.value, '$.held'))"),
    )  # fmt: skip

    def renamed(text: str) -> str:
        for old, new in new_names:
            text = text.replace(old, new)
        return text

    views = db.conn.execute("SELECT name, sql FROM sqlite_master WHERE type = 'view' ORDER BY rowid").fetchall()
    indexes = db.conn.execute(
        "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql LIKE '%frozen%'"
    ).fetchall()
    _run_script(db, "".join(f"DROP VIEW {name};\n" for name, _ in views))
    _run_script(db, "".join(f"DROP INDEX {name};\n" for name, _ in indexes))
    _run_script(
        db,
        "ALTER TABLE frozen_rows RENAME COLUMN frozen_id TO retained_id;\n"
        "ALTER TABLE frozen_rows RENAME TO retained_rows;\n"
        "ALTER TABLE rejudge_frozen RENAME COLUMN frozen_id TO retained_id;\n"
        "ALTER TABLE rejudge_frozen RENAME TO rejudge_retained;\n"
        "ALTER TABLE pairs RENAME COLUMN frozen TO retained;\n"
        "ALTER TABLE batches RENAME COLUMN rows_shipped TO rows_exported;\n"
        "ALTER TABLE batches RENAME COLUMN rows_held TO rows_quarantined;\n"
        "ALTER TABLE totals RENAME TO totals_before;\n"
        "CREATE TABLE totals (dataset TEXT NOT NULL, state TEXT NOT NULL CHECK (state IN ('live', 'retained',"
        " 'departing')), outcome INTEGER NOT NULL, rows INTEGER NOT NULL, PRIMARY KEY (dataset, state, outcome))"
        " STRICT, WITHOUT ROWID;\n"
        "INSERT INTO totals SELECT dataset, replace(state, 'frozen', 'retained'), outcome, rows FROM totals_before;\n"
        "DROP TABLE totals_before;\n"
        "UPDATE outcomes SET outcome = 'exported' WHERE outcome = 'shipped';\n"
        "UPDATE lake SET name = 'files_to_read_again' WHERE name = 'files_to_read_anew';\n",
    )
    _run_script(db, ";\n".join(renamed(sql) for _, sql in (*indexes, *views)))


def m012_rows_without_a_run_judge_none(db: Database) -> None:
    """Forget the categories of well-formed rows without a run, and judge again the runs for which they counted."""
    nameless = "run_id IS NULL AND malformed IS NULL AND category IS NOT NULL"
    _run_script(
        db,
        "INSERT INTO rejudge_rows (walk, forced) SELECT DISTINCT s.walk, 1 FROM malformed_runs m"
        " CROSS JOIN scored_rows s ON s.run_id = m.run_id WHERE m.digest IN"
        f" (SELECT digest FROM scored_rows WHERE {nameless}) ON CONFLICT (walk) DO UPDATE SET forced = 1;\n"
        f"UPDATE scored_rows SET category = NULL WHERE {nameless};\n",
    )


def m013_indexes_of_each_batch(db: Database) -> None:
    """Index what each batch asks for, so that a batch does not read all that waits behind it."""
    _run_script(
        db,
        "CREATE INDEX forced_rows ON rejudge_rows (walk) WHERE forced = 1;\n"
        "CREATE INDEX forced_tasks ON rejudge_tasks (task_id) WHERE forced = 1;\n"
        "CREATE INDEX quarantined_departures ON departures (partition_id, row_line)"
        f" WHERE outcome <> {EXPORTED};\n"
        "CREATE INDEX pending_tails ON files (partition_id, kind) WHERE tail = 'pending' AND state = 'present';\n",
    )


def m014_kept_rows_are_vanished_rows(db: Database) -> None:
    """Make the lines of rows that the tripwire keeps without their evidence those of vanished rows; judge the rows.

    An operator may have given up the evidence of rows that were not judged since: their lines depart as pruned. What
    waited for kept rows waits for the vanished ones.
    """
    _run_script(
        db,
        "INSERT OR IGNORE INTO rejudge_rows (walk, forced) SELECT walk, 0 FROM scored_rows WHERE kept <> 0;\n",
    )
    for dataset, bit in (("rag", 1), ("sft", 2)):
        nothing = f"{dataset} = NULL, {dataset}_line = NULL, {dataset}_batch = NULL"
        columns = (
            "partition_id, line, digest, run_id, task_id, category, sample_key,"
            f" {dataset}, {dataset}_line, {dataset}_batch"
        )
        without = f"evidence_found = 0 AND {dataset} = {EXPORTED}"
        pruned = f"{without} AND walk IN (SELECT walk FROM rejudge_rows WHERE evidence_changed = 2)"
        for table, state, where in (
            ("kept_lines", "retained", f"{without} AND kept & {bit}"),
            ("pruned_lines", "departing", pruned),
        ):
            _run_script(
                db,
                f"CREATE TEMP TABLE {table} AS SELECT kept AS bits, {columns} FROM row_places WHERE {where};\n"
                "UPDATE totals SET rows = rows + CASE state WHEN 'live' THEN -1 ELSE 1 END"
                f" * (SELECT count(*) FROM temp.{table})"
                f" WHERE dataset = '{dataset}' AND state IN ('live', '{state}') AND outcome = {EXPORTED};\n"
                # A row without an outcome in RAG counts as unjudged.
                f"UPDATE counters SET value = value + (SELECT count(*) FROM temp.{table}) * {2 - bit}"
                " WHERE name = 'unjudged_rows';\n"
                f"UPDATE scored_rows SET {nothing} WHERE {where};\n",
            )
        absent = f"kind = 'absent' AND accepted & {bit} AND {dataset} = {EXPORTED}"
        _run_script(
            db,
            f"INSERT INTO temp.kept_lines SELECT accepted, {columns} FROM retained_rows WHERE {absent};\n"
            f"UPDATE retained_rows SET {nothing} WHERE {absent};\n"
            f"INSERT INTO retained_rows (kind, accepted, start_byte, length_bytes, {columns})"
            f" SELECT 'vanished', (bits & 4) <> 0, 0, 0, {columns} FROM temp.kept_lines;\n"
            "INSERT INTO departures (dataset, cause, partition_id, row_line, row, run_id, task_id, category, sample_key,"
            f" outcome, line, batch) SELECT '{dataset}', 'pruned', {columns} FROM temp.pruned_lines;\n"
            "DROP TABLE temp.kept_lines;\nDROP TABLE temp.pruned_lines;\n"
            "INSERT OR IGNORE INTO rejudge_rows (walk, forced) SELECT min(d.walk), 0 FROM retained_rows g"
            f" CROSS JOIN scored_rows d ON d.sample_key = g.sample_key AND d.{dataset} = {DUPLICATE}"
            f" WHERE g.kind = 'vanished' AND g.{dataset} = {EXPORTED} GROUP BY d.sample_key;\n",
        )
    _run_script(
        db,
        "INSERT OR IGNORE INTO rejudge_retained SELECT retained_id FROM retained_rows WHERE kind = 'vanished';\n"
        "UPDATE rejudge_rows SET evidence_changed = 1 WHERE evidence_changed = 2;\n"
        "UPDATE retained_rows SET accepted = 0 WHERE kind = 'absent';\n"
        "DROP INDEX kept_rows;\nALTER TABLE scored_rows DROP COLUMN kept;\n",
    )


def m015_withdrawn_pairs_by_run(db: Database) -> None:
    """Find the withdrawn pairs of a run without reading every withdrawal."""
    _run_script(
        db,
        "CREATE INDEX withdrawn_pairs_by_chosen_run ON withdrawals (chosen_run_id) WHERE chosen_run_id IS NOT NULL;\n"
        "CREATE INDEX withdrawn_pairs_by_rejected_run ON withdrawals (rejected_run_id)"
        " WHERE rejected_run_id IS NOT NULL;\n",
    )


def m016_half_judged_rows(db: Database) -> None:
    """Find the rows that have an outcome in only one dataset, to account for the rows of each."""
    _run_script(db, f"CREATE INDEX half_judged_rows ON scored_rows (walk) WHERE {HALF_JUDGED};\n")


MIGRATIONS: Final = (
    m001_first_version,
    m002_indexes_of_exceptions,
    m003_segments,
    m004_claimants_of_an_id,
    m005_verdicts_in_malformed_lines,
    m006_own_looks,
    m007_moved_lines_and_rests,
    m008_too_many_exports,
    m009_dataset_history,
    m010_smaller_store,
    m011_words_of_the_glossary,
    m012_rows_without_a_run_judge_none,
    m013_indexes_of_each_batch,
    m014_kept_rows_are_vanished_rows,
    m015_withdrawn_pairs_by_run,
    m016_half_judged_rows,
)
"""All migrations in order, named by their functions; a released one is never changed or removed."""


def migrate(connection: sqlite3.Connection) -> None:
    """Apply the migrations that a store lacks, each in one transaction with its record."""
    # The import takes a tenth of a second, and mostly none is lacking.
    with _without_pandas():
        from sqlite_utils import Database, Migrations

    named = Migrations(MIGRATION_SET)
    for migration in MIGRATIONS:
        named()(migration)
    named.apply(Database(connection, execute_plugins=False, strict=True))


@contextmanager
def _without_pandas() -> Iterator[None]:
    """Prevent imports of pandas and NumPy in the block, unless they were imported before.

    sqlite-utils imports both if they are installed, for column types that a store does not have. That takes 80 MiB and
    a quarter of a second.
    """
    modules: dict[str, Any] = sys.modules
    hidden = [name for name in _NOT_NEEDED if name not in modules]
    # None instead of a module makes its import fail.
    modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            del modules[name]
