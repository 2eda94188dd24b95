CREATE INDEX absent_files ON files (partition_id) WHERE state = 'absent';

CREATE UNIQUE INDEX departed_ids ON departures (dataset, sample_key) WHERE outcome = 0;

CREATE INDEX emptied_rows ON retained_rows (kind) WHERE kind <> 'absent' AND rag IS NULL AND sft IS NULL;

CREATE INDEX files_by_hash ON files (hashed_at_ns) WHERE state = 'present';

CREATE INDEX forced_rows ON rejudge_rows (walk) WHERE forced = 1;

CREATE INDEX forced_tasks ON rejudge_tasks (task_id) WHERE forced = 1;

CREATE INDEX half_judged_rows ON scored_rows (walk) WHERE (rag IS NULL) <> (sft IS NULL);

CREATE INDEX malformed_runs_by_digest ON malformed_runs (digest);

CREATE INDEX nameless_rows ON scored_rows (digest) WHERE run_id IS NULL;

CREATE INDEX pairs_by_chosen_run ON pairs (chosen_run_id);

CREATE UNIQUE INDEX pairs_by_key ON pairs (sample_key, CASE outcome WHEN 0 THEN 0 END);

CREATE INDEX pairs_by_rejected_run ON pairs (rejected_run_id);

CREATE INDEX pairs_by_task ON pairs (task_id, slot);

CREATE INDEX pending_tails ON files (partition_id, kind) WHERE tail = 'pending' AND state = 'present';

CREATE INDEX quarantined_departures ON departures (partition_id, row_line) WHERE outcome <> 0;

CREATE INDEX retained_pairs ON pairs (retained, accepted, outcome) WHERE retained IS NOT NULL;

CREATE UNIQUE INDEX retained_rag_ids ON retained_rows (sample_key) WHERE rag = 0;

CREATE INDEX retained_rows_by_digest ON retained_rows (digest);

CREATE INDEX retained_rows_by_kind ON retained_rows (kind, accepted, rag, sft);

CREATE INDEX retained_rows_by_partition ON retained_rows (partition_id, line);

CREATE INDEX retained_rows_by_run ON retained_rows (run_id);

CREATE UNIQUE INDEX retained_sft_ids ON retained_rows (sample_key) WHERE sft = 0;

CREATE UNIQUE INDEX scored_rows_by_key ON scored_rows (sample_key, CASE rag WHEN 0 THEN 0 END) WHERE sample_key IS NOT NULL;

CREATE INDEX scored_rows_by_run ON scored_rows (run_id) WHERE run_id IS NOT NULL;

CREATE INDEX scored_rows_by_task ON scored_rows (task_id, category)
    WHERE task_id IS NOT NULL AND evidence_found = 1;

CREATE UNIQUE INDEX sft_ids ON scored_rows (sample_key) WHERE sft = 0;

CREATE INDEX unjudged_files ON files (partition_id) WHERE kind = 'scored' AND judged_lines < indexed_lines;

CREATE INDEX unsure_files ON files (unsure_since_ns) WHERE unsure_since_ns IS NOT NULL AND state = 'present';

CREATE INDEX unwritten_receipts ON receipts (batch) WHERE written = 0;

CREATE INDEX verdicts_in_rests ON files (rest_digest) WHERE rest_category IS NOT NULL;

CREATE INDEX withdrawals_by_id ON withdrawals (id);

CREATE INDEX withdrawals_by_run ON withdrawals (source_run_id);

CREATE INDEX withdrawn_pairs_by_chosen_run ON withdrawals (chosen_run_id) WHERE chosen_run_id IS NOT NULL;

CREATE INDEX withdrawn_pairs_by_rejected_run ON withdrawals (rejected_run_id) WHERE rejected_run_id IS NOT NULL;

CREATE TABLE adopted_rows (
    dataset      TEXT    NOT NULL,
    sample_key   INTEGER NOT NULL,
    created_at   TEXT    NOT NULL,
    recorded_at  TEXT    NOT NULL,
    PRIMARY KEY (dataset, sample_key)
) STRICT, WITHOUT ROWID;

CREATE TABLE batches (
    batch          INTEGER PRIMARY KEY,
    batch_id       TEXT    NOT NULL UNIQUE,
    trigger        TEXT    NOT NULL,
    recorded_at    TEXT    NOT NULL,
    rows_exported   INTEGER NOT NULL,
    rows_quarantined      INTEGER NOT NULL,
    rows_withdrawn INTEGER NOT NULL,
    rows_judged    INTEGER NOT NULL,
    bytes_read     INTEGER NOT NULL,
    duration_ms    INTEGER NOT NULL
) STRICT;

CREATE TABLE categories (code INTEGER PRIMARY KEY, category TEXT NOT NULL) STRICT;

CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;

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

CREATE TABLE evidence_rows (
    partition_id  INTEGER NOT NULL,
    run_id        TEXT    NOT NULL,
    line          INTEGER NOT NULL,
    start_byte    INTEGER NOT NULL,
    length_bytes  INTEGER NOT NULL,
    digest        BLOB    NOT NULL,
    PRIMARY KEY (partition_id, run_id)
) STRICT, WITHOUT ROWID;

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
    pending_temp  TEXT
, segment_bytes INTEGER, space_bytes INTEGER NOT NULL DEFAULT 0) STRICT, WITHOUT ROWID;

CREATE TABLE export_segments (name TEXT NOT NULL, segment INTEGER NOT NULL, sha256 BLOB NOT NULL, space_bytes INTEGER NOT NULL, line_marks BLOB NOT NULL, PRIMARY KEY (name, segment)) STRICT;

CREATE TABLE files (
    partition_id     INTEGER NOT NULL REFERENCES partitions,
    kind             TEXT    NOT NULL CHECK (kind IN ('scored', 'evidence')),
    state            TEXT    NOT NULL CHECK (state IN ('present', 'absent')),
    device           INTEGER NOT NULL,
    inode            INTEGER NOT NULL,
    size_bytes       INTEGER NOT NULL,
    mtime_ns         INTEGER NOT NULL,
    ctime_ns         INTEGER NOT NULL,
    indexed_bytes    INTEGER NOT NULL,
    indexed_sha256   TEXT    NOT NULL,
    indexed_lines    INTEGER NOT NULL,
    judged_lines     INTEGER NOT NULL,
    malformed_lines  INTEGER NOT NULL,
    tail             TEXT    CHECK (tail IN ('provisional', 'pending')),
    tail_bytes       INTEGER NOT NULL,
    tail_digest      BLOB, unsure_since_ns INTEGER DEFAULT 0, hashed_at_ns INTEGER NOT NULL DEFAULT 0, rest_digest BLOB, rest_category INTEGER,
    PRIMARY KEY (partition_id, kind)
) STRICT, WITHOUT ROWID;

CREATE TABLE intents (
    name        TEXT PRIMARY KEY,
    batch       INTEGER NOT NULL,
    base_bytes  INTEGER NOT NULL,
    temp        TEXT
) STRICT, WITHOUT ROWID;

CREATE TABLE lake (
    name   TEXT PRIMARY KEY,
    value  TEXT
) STRICT;

CREATE TABLE malformed_runs (run_id TEXT NOT NULL, digest BLOB NOT NULL, PRIMARY KEY (run_id, digest)) STRICT, WITHOUT ROWID;

CREATE TABLE missing_lines (
    name    TEXT    NOT NULL,
    digest  BLOB    NOT NULL,
    copies  INTEGER NOT NULL,
    PRIMARY KEY (name, digest)
) STRICT, WITHOUT ROWID;

CREATE TABLE outcomes (code INTEGER PRIMARY KEY, outcome TEXT NOT NULL) STRICT;

CREATE TABLE overwrites (name TEXT NOT NULL, start_byte INTEGER NOT NULL, length_bytes INTEGER NOT NULL, PRIMARY KEY (name, start_byte)) STRICT, WITHOUT ROWID;

CREATE TABLE pairs (
    pair_id             INTEGER PRIMARY KEY,
    task_id             TEXT    NOT NULL,
    slot                INTEGER NOT NULL,
    retained              TEXT    CHECK (retained IN ('absent', 'vanished', 'orphan')),
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

CREATE TABLE partitions (
    partition_id  INTEGER PRIMARY KEY,
    path          TEXT    NOT NULL UNIQUE,
    walk_base     INTEGER NOT NULL UNIQUE
) STRICT;

CREATE TABLE receipts (
    batch           INTEGER PRIMARY KEY REFERENCES batches,
    receipt         TEXT    NOT NULL,
    receipt_sha256  TEXT    NOT NULL,
    written         INTEGER NOT NULL
) STRICT;

CREATE TABLE "rejudge_retained" (retained_id INTEGER PRIMARY KEY) STRICT;

CREATE TABLE rejudge_rows (
    walk              INTEGER PRIMARY KEY,
    forced            INTEGER NOT NULL,
    evidence_changed  INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE rejudge_tasks (
    task_id  TEXT PRIMARY KEY,
    forced   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE "retained_rows" (
    retained_id     INTEGER PRIMARY KEY,
    kind          TEXT    NOT NULL CHECK (kind IN ('absent', 'vanished', 'orphan')),
    accepted      INTEGER NOT NULL DEFAULT 0,
    partition_id  INTEGER,
    line          INTEGER,
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
) STRICT;

CREATE TABLE scored_rows (
    walk            INTEGER PRIMARY KEY,
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
    sft_batch     INTEGER,
    evidence_found  INTEGER NOT NULL) STRICT;

CREATE TABLE totals (dataset TEXT NOT NULL, state TEXT NOT NULL CHECK (state IN ('live', 'retained', 'departing')), outcome INTEGER NOT NULL, rows INTEGER NOT NULL, PRIMARY KEY (dataset, state, outcome)) STRICT, WITHOUT ROWID;

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

CREATE VIEW batch_history AS
    SELECT batch, batch_id, trigger, recorded_at, rows_exported, rows_quarantined, rows_withdrawn, rows_judged, bytes_read,
           duration_ms
    FROM batches ORDER BY batch DESC;

CREATE VIEW dataset_history AS
    SELECT b.recorded_at AS at, d.key AS dataset, coalesce(json_extract(d.value, '$.rows'), json_extract(d.value, '$.shipped')) AS rows,
           json_extract(d.value, '$.appended') - json_extract(d.value, '$.replaced') AS added,
           json_extract(d.value, '$.withdrawn') AS withdrawn, coalesce(json_extract(d.value, '$.quarantine_rows'), json_extract(d.value, '$.held')) AS quarantined,
           b.batch_id
    FROM batches b CROSS JOIN receipts r USING (batch)
    CROSS JOIN json_each(r.receipt, '$.record_counts.per_exporter') d ORDER BY b.batch DESC;

CREATE VIEW file_lag AS
    SELECT p.path AS partition, f.kind, f.state, f.size_bytes, f.indexed_bytes,
           f.size_bytes - f.indexed_bytes AS unread_bytes, f.indexed_lines AS lines,
           CASE f.kind WHEN 'scored' THEN f.indexed_lines - f.judged_lines END AS unjudged_lines,
           f.tail, f.tail_bytes, f.malformed_lines
    FROM files f CROSS JOIN partitions p USING (partition_id);

CREATE VIEW quarantine_by_reason AS
    SELECT t.dataset, o.outcome AS reason, sum(t.rows) AS rows
    FROM totals t CROSS JOIN outcomes o ON o.code = t.outcome
    WHERE t.outcome <> 0 AND t.state <> 'departing' GROUP BY t.dataset, o.outcome HAVING sum(t.rows) > 0;

CREATE VIEW row_places AS
    SELECT s.*, p.partition_id, p.path AS partition, s.walk - p.walk_base AS line
    FROM scored_rows s CROSS JOIN partitions p ON p.walk_base = (s.walk >> 26) << 26;

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
    FROM retained_rows f
    LEFT JOIN partitions p USING (partition_id)
    LEFT JOIN categories c ON c.code = f.category
    LEFT JOIN outcomes rag ON rag.code = f.rag
    LEFT JOIN outcomes sft ON sft.code = f.sft
    LEFT JOIN batches b ON b.batch = max(coalesce(f.rag_batch, 0), coalesce(f.sft_batch, 0));

CREATE VIEW seen_ids AS
    SELECT 'rag' AS dataset, 'rag-' || printf('%016x', r.sample_key) AS id, r.run_id, r.partition, r.line,
           b.batch_id AS exported_in, 'live' AS state
    FROM row_places r LEFT JOIN batches b ON b.batch = r.rag_batch WHERE r.rag = 0
    UNION ALL
    SELECT 'sft', 'sft-' || printf('%016x', r.sample_key), r.run_id, r.partition, r.line, b.batch_id, 'live'
    FROM row_places r LEFT JOIN batches b ON b.batch = r.sft_batch WHERE r.sft = 0
    UNION ALL
    SELECT 'preference', 'pref-' || printf('%016x', r.sample_key), r.chosen_run_id, p.path, NULL, b.batch_id,
           coalesce(r.retained, 'live')
    FROM pairs r LEFT JOIN partitions p ON p.partition_id = r.chosen_partition
    LEFT JOIN batches b ON b.batch = r.batch WHERE r.outcome = 0
    UNION ALL
    SELECT 'rag', 'rag-' || printf('%016x', f.sample_key), f.run_id, p.path, f.line, b.batch_id, f.kind
    FROM retained_rows f LEFT JOIN partitions p USING (partition_id) LEFT JOIN batches b ON b.batch = f.rag_batch
    WHERE f.rag = 0
    UNION ALL
    SELECT 'sft', 'sft-' || printf('%016x', f.sample_key), f.run_id, p.path, f.line, b.batch_id, f.kind
    FROM retained_rows f LEFT JOIN partitions p USING (partition_id) LEFT JOIN batches b ON b.batch = f.sft_batch
    WHERE f.sft = 0;
