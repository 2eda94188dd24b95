"""The state store's tables, indexes and views as version 0.1 created them (SPEC 4; docs/state.md explains them).

They are never edited: later changes are in :mod:`distilld.store.migrations`.

A row's place in walk order is one integer, ``walk``: its partition's ``walk_base`` plus its line. Bases grow with the
walk order of the paths and leave gaps, so that a new partition fits between two others.
"""

from __future__ import annotations

from typing import Final

from distilld.core.line_facts import DUPLICATE, EXPORTED, LINE_BITS, REASON_CODES
from distilld.core.model import Reason

BEHIND_ID: Final = {
    "rag": f"rag IN ({REASON_CODES[Reason.HALLUCINATED_FILE_PATH]}, {REASON_CODES[Reason.SCHEMA_VIOLATION]})"
    " AND sample_key IS NOT NULL",
    "sft": f"sft IN ({REASON_CODES[Reason.HALLUCINATED_FILE_PATH]}, {REASON_CODES[Reason.SCHEMA_VIOLATION]},"
    f" {REASON_CODES[Reason.MISSING_SOURCE_RUN_ID]}) AND sample_key IS NOT NULL AND evidence_found = 1",
}
"""SQL for rows that fail a gate after the id gate: duplicates if an earlier row takes their id (SPEC 3.1, 3.2)."""

HALF_JUDGED: Final = "(rag IS NULL) <> (sft IS NULL)"
"""SQL for whether a scored row has an outcome in only one dataset: it lost the other one, and waits."""
ON_PARTITION: Final = f"p.walk_base = (s.walk >> {LINE_BITS}) << {LINE_BITS}"
"""SQL for whether row ``s`` is in partition ``p``."""
HOLDS_RAG: Final = f"CASE rag WHEN {EXPORTED} THEN 0 END"
"""0 for the row that exports its id in RAG, else NULL; after the key in ``scored_rows_by_key``, once for each key."""

_ROW_COLUMNS = """
    start_byte    INTEGER NOT NULL,
    length_bytes  INTEGER NOT NULL,
    digest        BLOB    NOT NULL,
    run_id        TEXT,
    task_id       TEXT,
    category      INTEGER,
    malformed     INTEGER,
    sample_key    INTEGER,
    rag           INTEGER,
    rag_line      BLOB,
    rag_batch     INTEGER,
    sft           INTEGER,
    sft_line      BLOB,
    sft_batch     INTEGER
"""

TABLES: Final = f"""
CREATE TABLE lake (
    name   TEXT PRIMARY KEY,
    value  TEXT
) STRICT;

CREATE TABLE outcomes (code INTEGER PRIMARY KEY, outcome TEXT NOT NULL) STRICT;
CREATE TABLE categories (code INTEGER PRIMARY KEY, category TEXT NOT NULL) STRICT;

CREATE TABLE partitions (
    partition_id  INTEGER PRIMARY KEY,
    path          TEXT    NOT NULL UNIQUE,
    walk_base     INTEGER NOT NULL UNIQUE
) STRICT;

CREATE TABLE files (
    partition_id     INTEGER NOT NULL REFERENCES partitions,
    kind             TEXT    NOT NULL CHECK (kind IN ('scored', 'evidence')),
    state            TEXT    NOT NULL CHECK (state IN ('present', 'absent')),
    device           INTEGER NOT NULL,
    inode            INTEGER NOT NULL,
    size_bytes       INTEGER NOT NULL,
    mtime_ns         INTEGER NOT NULL,
    ctime_ns         INTEGER NOT NULL,
    looked_ns        INTEGER NOT NULL,
    indexed_bytes    INTEGER NOT NULL,
    indexed_sha256   TEXT    NOT NULL,
    indexed_lines    INTEGER NOT NULL,
    judged_lines     INTEGER NOT NULL,
    malformed_lines  INTEGER NOT NULL,
    tail             TEXT    CHECK (tail IN ('provisional', 'pending')),
    tail_bytes       INTEGER NOT NULL,
    tail_digest      BLOB,
    PRIMARY KEY (partition_id, kind)
) STRICT, WITHOUT ROWID;
CREATE INDEX absent_files ON files (partition_id) WHERE state = 'absent';
CREATE INDEX unjudged_files ON files (partition_id) WHERE kind = 'scored' AND judged_lines < indexed_lines;

CREATE TABLE scored_rows (
    walk            INTEGER PRIMARY KEY,
    {_ROW_COLUMNS.strip()},
    evidence_found  INTEGER NOT NULL,
    kept            INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX scored_rows_by_run ON scored_rows (run_id) WHERE run_id IS NOT NULL;
CREATE INDEX nameless_rows ON scored_rows (digest) WHERE run_id IS NULL;
CREATE INDEX scored_rows_by_task ON scored_rows (task_id, category)
    WHERE task_id IS NOT NULL AND evidence_found = 1;
CREATE UNIQUE INDEX rag_ids ON scored_rows (sample_key) WHERE rag = {EXPORTED};
CREATE UNIQUE INDEX sft_ids ON scored_rows (sample_key) WHERE sft = {EXPORTED};
CREATE INDEX rag_waiting ON scored_rows (sample_key) WHERE rag = {DUPLICATE};
CREATE INDEX sft_waiting ON scored_rows (sample_key) WHERE sft = {DUPLICATE};
CREATE INDEX rag_behind ON scored_rows (sample_key) WHERE {BEHIND_ID["rag"]};
CREATE INDEX sft_behind ON scored_rows (sample_key) WHERE {BEHIND_ID["sft"]};

CREATE TABLE evidence_rows (
    partition_id  INTEGER NOT NULL,
    run_id        TEXT    NOT NULL,
    line          INTEGER NOT NULL,
    start_byte    INTEGER NOT NULL,
    length_bytes  INTEGER NOT NULL,
    digest        BLOB    NOT NULL,
    PRIMARY KEY (partition_id, run_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE frozen_rows (
    frozen_id     INTEGER PRIMARY KEY,
    kind          TEXT    NOT NULL CHECK (kind IN ('absent', 'vanished', 'orphan')),
    accepted      INTEGER NOT NULL DEFAULT 0,
    partition_id  INTEGER,
    line          INTEGER,
    {_ROW_COLUMNS.strip()}
) STRICT;
CREATE INDEX frozen_rows_by_run ON frozen_rows (run_id);
CREATE INDEX frozen_rows_by_digest ON frozen_rows (digest);
CREATE INDEX frozen_rows_by_partition ON frozen_rows (partition_id, line);
CREATE UNIQUE INDEX frozen_rag_ids ON frozen_rows (sample_key) WHERE rag = {EXPORTED};
CREATE UNIQUE INDEX frozen_sft_ids ON frozen_rows (sample_key) WHERE sft = {EXPORTED};

CREATE TABLE pairs (
    pair_id             INTEGER PRIMARY KEY,
    task_id             TEXT    NOT NULL,
    slot                INTEGER NOT NULL,
    frozen              TEXT    CHECK (frozen IN ('absent', 'vanished', 'orphan')),
    accepted            INTEGER NOT NULL DEFAULT 0,
    chosen_run_id       TEXT    NOT NULL,
    rejected_run_id     TEXT    NOT NULL,
    rejected_category   INTEGER NOT NULL,
    chosen_partition    INTEGER,
    rejected_partition  INTEGER,
    sample_key          INTEGER NOT NULL,
    outcome             INTEGER NOT NULL,
    line                BLOB    NOT NULL,
    batch               INTEGER NOT NULL
) STRICT;
CREATE INDEX pairs_by_task ON pairs (task_id, slot);
CREATE INDEX pairs_by_chosen_run ON pairs (chosen_run_id);
CREATE INDEX pairs_by_rejected_run ON pairs (rejected_run_id);
CREATE INDEX pairs_by_key ON pairs (sample_key);
CREATE UNIQUE INDEX pair_ids ON pairs (sample_key) WHERE outcome = {EXPORTED};

CREATE TABLE rejudge_rows (
    walk              INTEGER PRIMARY KEY,
    forced            INTEGER NOT NULL,
    evidence_changed  INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE rejudge_tasks (
    task_id  TEXT PRIMARY KEY,
    forced   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE rejudge_frozen (frozen_id INTEGER PRIMARY KEY) STRICT;
CREATE TABLE departures (
    departure_id  INTEGER PRIMARY KEY,
    dataset       TEXT    NOT NULL,
    outcome       INTEGER NOT NULL,
    sample_key    INTEGER,
    line          BLOB    NOT NULL,
    batch         INTEGER NOT NULL,
    run_id        TEXT,
    other_run_id  TEXT,
    task_id       TEXT,
    category      INTEGER,
    cause         TEXT    NOT NULL,
    partition_id  INTEGER,
    row_line      INTEGER,
    row           BLOB
) STRICT;
CREATE UNIQUE INDEX departed_ids ON departures (dataset, sample_key) WHERE outcome = {EXPORTED};

CREATE TABLE missing_lines (
    name    TEXT    NOT NULL,
    digest  BLOB    NOT NULL,
    copies  INTEGER NOT NULL,
    PRIMARY KEY (name, digest)
) STRICT, WITHOUT ROWID;

CREATE TABLE adopted_rows (
    dataset      TEXT    NOT NULL,
    sample_key   INTEGER NOT NULL,
    created_at   TEXT    NOT NULL,
    recorded_at  TEXT    NOT NULL,
    PRIMARY KEY (dataset, sample_key)
) STRICT, WITHOUT ROWID;

CREATE TABLE totals (
    dataset  TEXT    NOT NULL,
    state    TEXT    NOT NULL CHECK (state IN ('live', 'frozen', 'departing')),
    outcome  INTEGER NOT NULL,
    rows     INTEGER NOT NULL,
    PRIMARY KEY (dataset, state, outcome)
) STRICT, WITHOUT ROWID;
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;

CREATE TABLE export_files (
    name          TEXT PRIMARY KEY,
    path          TEXT    NOT NULL UNIQUE,
    generation    INTEGER NOT NULL,
    size_bytes    INTEGER NOT NULL,
    rows          INTEGER NOT NULL,
    sha256        TEXT    NOT NULL,
    device        INTEGER,
    inode         INTEGER,
    mtime_ns      INTEGER,
    ctime_ns      INTEGER,
    looked_ns     INTEGER,
    pending_temp  TEXT
) STRICT, WITHOUT ROWID;
CREATE TABLE intents (
    name        TEXT PRIMARY KEY,
    batch       INTEGER NOT NULL,
    base_bytes  INTEGER NOT NULL,
    temp        TEXT
) STRICT, WITHOUT ROWID;

CREATE TABLE batches (
    batch          INTEGER PRIMARY KEY,
    batch_id       TEXT    NOT NULL UNIQUE,
    trigger        TEXT    NOT NULL,
    recorded_at    TEXT    NOT NULL,
    rows_shipped   INTEGER NOT NULL,
    rows_held      INTEGER NOT NULL,
    rows_withdrawn INTEGER NOT NULL,
    rows_judged    INTEGER NOT NULL,
    bytes_read     INTEGER NOT NULL,
    duration_ms    INTEGER NOT NULL
) STRICT;
CREATE TABLE receipts (
    batch           INTEGER PRIMARY KEY REFERENCES batches,
    receipt         TEXT    NOT NULL,
    receipt_sha256  TEXT    NOT NULL,
    written         INTEGER NOT NULL
) STRICT;
CREATE INDEX unwritten_receipts ON receipts (batch) WHERE written = 0;
CREATE TABLE unreported_inputs (
    partition_id     INTEGER NOT NULL,
    kind             TEXT    NOT NULL,
    change           TEXT    NOT NULL,
    sha256           TEXT,
    size_bytes       INTEGER NOT NULL,
    from_offset      INTEGER NOT NULL,
    to_offset        INTEGER NOT NULL,
    lines            INTEGER NOT NULL,
    malformed_lines  INTEGER NOT NULL,
    PRIMARY KEY (partition_id, kind)
) STRICT, WITHOUT ROWID;
CREATE TABLE withdrawals (
    withdrawal_id    INTEGER PRIMARY KEY,
    dataset          TEXT    NOT NULL,
    id               TEXT    NOT NULL,
    source_run_id    TEXT,
    chosen_run_id    TEXT,
    rejected_run_id  TEXT,
    cause            TEXT    NOT NULL,
    replaced         INTEGER NOT NULL,
    verdict          TEXT,
    shipped_batch    TEXT,
    withdrawn_batch  TEXT    NOT NULL,
    withdrawn_at     TEXT    NOT NULL
) STRICT;
CREATE INDEX withdrawals_by_id ON withdrawals (id);
CREATE INDEX withdrawals_by_run ON withdrawals (source_run_id);
"""

_SAMPLE_ID = "'{dataset}-' || printf('%016x', {alias}.sample_key)"

VIEWS: Final = f"""
CREATE VIEW row_places AS
    SELECT s.*, p.partition_id, p.path AS partition, s.walk - p.walk_base AS line
    FROM scored_rows s CROSS JOIN partitions p ON {ON_PARTITION};

CREATE VIEW run_history AS
    SELECT r.run_id, r.partition, r.line, c.category, 'present' AS state,
           rag.outcome AS rag, sft.outcome AS sft, r.evidence_found,
           'rag-' || printf('%016x', r.sample_key) AS rag_id, 'sft-' || printf('%016x', r.sample_key) AS sft_id,
           b.batch_id AS judged_in
    FROM row_places r
    LEFT JOIN categories c ON c.code = r.category
    LEFT JOIN outcomes rag ON rag.code = r.rag
    LEFT JOIN outcomes sft ON sft.code = r.sft
    LEFT JOIN batches b ON b.batch = max(coalesce(r.rag_batch, 0), coalesce(r.sft_batch, 0))
    UNION ALL
    SELECT f.run_id, p.path, f.line, c.category, f.kind, rag.outcome, sft.outcome, NULL,
           'rag-' || printf('%016x', f.sample_key), 'sft-' || printf('%016x', f.sample_key), b.batch_id
    FROM frozen_rows f
    LEFT JOIN partitions p USING (partition_id)
    LEFT JOIN categories c ON c.code = f.category
    LEFT JOIN outcomes rag ON rag.code = f.rag
    LEFT JOIN outcomes sft ON sft.code = f.sft
    LEFT JOIN batches b ON b.batch = max(coalesce(f.rag_batch, 0), coalesce(f.sft_batch, 0));

CREATE VIEW seen_ids AS
    SELECT 'rag' AS dataset, {_SAMPLE_ID.format(dataset="rag", alias="r")} AS id, r.run_id, r.partition, r.line,
           b.batch_id AS shipped_in, 'live' AS state
    FROM row_places r LEFT JOIN batches b ON b.batch = r.rag_batch WHERE r.rag = {EXPORTED}
    UNION ALL
    SELECT 'sft', {_SAMPLE_ID.format(dataset="sft", alias="r")}, r.run_id, r.partition, r.line, b.batch_id, 'live'
    FROM row_places r LEFT JOIN batches b ON b.batch = r.sft_batch WHERE r.sft = {EXPORTED}
    UNION ALL
    SELECT 'preference', {_SAMPLE_ID.format(dataset="pref", alias="r")}, r.chosen_run_id, p.path, NULL, b.batch_id,
           coalesce(r.frozen, 'live')
    FROM pairs r LEFT JOIN partitions p ON p.partition_id = r.chosen_partition
    LEFT JOIN batches b ON b.batch = r.batch WHERE r.outcome = {EXPORTED}
    UNION ALL
    SELECT 'rag', {_SAMPLE_ID.format(dataset="rag", alias="f")}, f.run_id, p.path, f.line, b.batch_id, f.kind
    FROM frozen_rows f LEFT JOIN partitions p USING (partition_id) LEFT JOIN batches b ON b.batch = f.rag_batch
    WHERE f.rag = {EXPORTED}
    UNION ALL
    SELECT 'sft', {_SAMPLE_ID.format(dataset="sft", alias="f")}, f.run_id, p.path, f.line, b.batch_id, f.kind
    FROM frozen_rows f LEFT JOIN partitions p USING (partition_id) LEFT JOIN batches b ON b.batch = f.sft_batch
    WHERE f.sft = {EXPORTED};

CREATE VIEW quarantine_by_reason AS
    SELECT t.dataset, o.outcome AS reason, sum(t.rows) AS rows
    FROM totals t CROSS JOIN outcomes o ON o.code = t.outcome
    WHERE t.outcome <> {EXPORTED} AND t.state <> 'departing' GROUP BY t.dataset, o.outcome HAVING sum(t.rows) > 0;

CREATE VIEW file_lag AS
    SELECT p.path AS partition, f.kind, f.state, f.size_bytes, f.indexed_bytes,
           f.size_bytes - f.indexed_bytes AS unread_bytes, f.indexed_lines AS lines,
           CASE f.kind WHEN 'scored' THEN f.indexed_lines - f.judged_lines END AS unjudged_lines,
           f.tail, f.tail_bytes, f.malformed_lines
    FROM files f CROSS JOIN partitions p USING (partition_id);

CREATE VIEW batch_history AS
    SELECT batch, batch_id, trigger, recorded_at, rows_shipped, rows_held, rows_withdrawn, rows_judged, bytes_read,
           duration_ms
    FROM batches ORDER BY batch DESC;
"""
