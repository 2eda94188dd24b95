"""A small sample lakehouse, the same bytes for the same seed: what ``distilld demo`` and the tests work on.

Most rows are plain. Besides them stands, once or twice each, whatever a lake can do to a row: every reason of
SPEC 3.7 occurs but the reserved self_pairing, and hallucinated_file_path only where ``check_source_files`` is on.
No clock is read; the dates follow from an argument.

The prose takes up half of the module: a lake whose texts nobody can read shows nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any, Final

from distilld.core.model import Category, UsageError

FIRST_DAY: Final = date(2026, 3, 2)
TASKS_A_DAY: Final = 8
"""How many plain tasks each source works on in a day; some take two runs."""


@dataclass(frozen=True, slots=True)
class SampleLake:
    """A lake as ``write_sample_lake`` left it; later changes do not show here.

    ``scored_rows`` and ``evidence_rows`` count lines, malformed ones too. ``partitions`` are paths
    ``YYYY/MM/DD/<source>.jsonl`` in walk order, each present in both trees. ``rescored_run_id`` is the chosen side of
    its task's only pair, ships to all three datasets, and is meant for ``rescore_in_place``.
    """

    root: Path
    seed: int
    scored_rows: int
    evidence_rows: int
    partitions: tuple[str, ...]
    rescored_run_id: str

    def scored_path(self, partition: str) -> Path:
        """Where the scored rows of a partition stand."""
        return self.root / "data" / "scored-runs" / partition

    def evidence_path(self, partition: str) -> Path:
        """Where the evidence of a partition stands."""
        return self.root / "data" / "evidence" / partition


def write_sample_lake(root: Path, *, seed: int = 7, days: int = 3, first_day: date = FIRST_DAY) -> SampleLake:
    """Write a lake of ``days`` days below ``root``, with the source files that most of its rows name.

    Raises UsageError where ``root`` already holds ``data`` or ``crates``: a sample must not mix with a real lake.
    """
    if days < 1:
        raise ValueError(f"days must be 1 or more, not {days}")
    for name in ("data", "crates"):
        if (root / name).exists():
            raise UsageError(f"{root} already holds {name}", hint="give a new or an empty folder")

    calendar = [first_day + timedelta(days=number) for number in range(days)]
    box = _Box(Random(f"sample lake {seed}"))
    pages = _Pages()
    _, showcase = _add_task(
        box, pages, _SCRUM, calendar[0], (Category.REJECTED, Category.ACCEPTED), subject=_SHOWCASE.path
    )
    for day in calendar:
        for source in _SOURCES:
            for _ in range(TASKS_A_DAY):
                _add_task(box, pages, source, day, box.rng.choice(_USUAL_WORK))
    _add_odd_rows(box, pages, calendar[0], calendar[-1])
    _add_invented_files(box, pages, calendar[0])

    lake = SampleLake(
        root=root,
        seed=seed,
        scored_rows=sum(map(len, pages.scored.values())),
        evidence_rows=sum(map(len, pages.evidence.values())),
        partitions=tuple(sorted(pages.scored)),
        rescored_run_id=showcase.run_id,
    )
    _write_source_files(root)
    _append_pages(lake, pages)
    return lake


def append_rows(lake: SampleLake, *, rows: int = 12) -> tuple[Path, ...]:
    """Append ``rows`` scored rows with their evidence to the last day's partitions; the files that grew.

    Evidence is written before the rows that need it. The first two rows are the two sides of a pair. A second call
    goes on where the first one ended.
    """
    folder = lake.partitions[-1].rpartition("/")[0]
    last_day = date.fromisoformat(folder.replace("/", "-"))
    present = {
        partition: lake.scored_path(partition).read_bytes().count(b"\n")
        for partition in lake.partitions
        if partition.startswith(folder)
    }
    # No run of a partition is without a line, so the lines bound the numbers that are taken.
    box = _Box(Random(f"sample lake {lake.seed}, {sum(present.values())} rows later"), present)
    pages = _Pages()
    for source, categories in zip(cycle(_SOURCES), cycle(_APPENDED_WORK), strict=False):
        if rows <= 0:
            break
        _add_task(box, pages, source, last_day, categories[:rows])
        rows -= len(categories)
    return _append_pages(lake, pages)


def rescore_in_place(lake: SampleLake, run_id: str) -> Path:
    """Turn the last accepted row of a run into a rejected one where it stands; the partition's file.

    Size, inode and mtime stay what they were: only the content (and ctime) tells that the verdict changed.
    Raises LookupError where the run has no accepted row.
    """
    for partition in reversed(lake.partitions):
        path = lake.scored_path(partition)
        offset = _offset_of_accepted(path.read_bytes(), run_id)
        if offset is not None:
            before = path.stat()
            with path.open("r+b") as file:
                file.seek(offset)
                file.write(Category.REJECTED.encode())
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            return path
    raise LookupError(f"no accepted row of run {run_id!r}")


def _offset_of_accepted(content: bytes, run_id: str) -> int | None:
    """Where the word ``accepted`` of the run's last accepted row begins, in bytes."""
    key = b'"category":"'
    found = None
    start = 0
    for line in content.splitlines(keepends=True):
        try:
            row = json.loads(line)
        except ValueError:
            row = {}
        if row.get("evidence_run_id") == run_id and row.get("category") == Category.ACCEPTED:
            found = start + line.index(key) + len(key)
        start += len(line)
    return found


# What a lake is made of.


@dataclass(frozen=True, slots=True)
class _Source:
    """A producer of runs: what it is called, what its tasks are about, and how it writes."""

    stem: str
    run_prefix: str
    task_prefix: str
    role: str
    subjects: tuple[str, ...]
    write: Callable[[Random, str, Category], str]
    names_files: bool = False


@dataclass(frozen=True, slots=True)
class _Run:
    """A run, its first verdict and its evidence row; ``number`` counts its partition's runs from 0."""

    partition: str
    number: int
    recorded: datetime
    category: Category
    evidence: dict[str, Any]

    @property
    def run_id(self) -> str:
        return str(self.evidence["run_id"])

    def scored(self, category: Category | None = None, *, minutes_later: int = 0) -> dict[str, Any]:
        """The scored row of the run; with arguments, the row of a second scoring."""
        verdict = category or self.category
        reasons = _REASONS[verdict]
        return {
            "schema_version": 1,
            "evidence_run_id": self.run_id,
            "evidence_task_id": self.evidence["task_id"],
            "category": str(verdict),
            "reasons": list(reasons[self.number % len(reasons)]),
            "scored_at": _stamp(self.recorded + timedelta(seconds=1, minutes=minutes_later)),
            "scorer_version": "v1.0.0",
            "provenance": dict(self.evidence["provenance"]),
        }


@dataclass(slots=True)
class _Box:
    """The box that runs the tasks; ``numbers`` holds the next run's number of each partition."""

    rng: Random
    numbers: dict[str, int] = field(default_factory=dict)
    decks: dict[str, Iterator[str]] = field(default_factory=dict)

    def subject(self, source: _Source) -> str:
        """What the source works on next: all its subjects once, in random order, before any comes again."""
        if source.stem not in self.decks:
            self.decks[source.stem] = cycle(self.rng.sample(source.subjects, len(source.subjects)))
        return next(self.decks[source.stem])

    def run(self, source: _Source, day: date, subject: str, category: Category) -> _Run:
        rng = self.rng
        partition = f"{day:%Y/%m/%d}/{source.stem}.jsonl"
        number = self.numbers.get(partition, 0)
        self.numbers[partition] = number + 1

        midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
        started = midnight + timedelta(
            hours=_SOURCES.index(source), seconds=97 * number, milliseconds=rng.randrange(9000)
        )
        run_id = f"{source.run_prefix}:{int(started.timestamp() * 1000)}:{number}"
        evidence: dict[str, Any] = {
            "schema_version": 1,
            "run_id": f"{run_id}:{subject}" if source.names_files else run_id,
            "task_id": f"{source.task_prefix}:{subject}",
            "timestamp": _stamp(started),
            "model_name": rng.choice(_MODELS),
            "model_role": source.role,
            "text": source.write(rng, subject, category),
        }
        if source.names_files:
            evidence["source_files"] = [subject]
        if rng.random() < 0.85:
            evidence["retrieved_context"] = {
                "matrix_corpora": rng.sample(_CORPORA, rng.randint(1, 3)),
                "pathway_fingerprints_seen": rng.choice((0, 1, 3, 5, 17, 120)),
            }
        if source is _CONTRACTS:
            contractor = _contractor_of(subject)
            evidence["metadata"] = {"contractor": contractor} if contractor else {}
            evidence["metadata"]["permit_id"] = subject
        recorded = started + timedelta(seconds=1)
        evidence["provenance"] = {
            "source_file": f"data/_kb/{source.stem}.jsonl",
            "line_offset": 100 * day.timetuple().tm_yday + number,
            "sig_hash": hashlib.sha256(f"{run_id}|{evidence['text']}".encode()).hexdigest(),
            "recorded_at": _stamp(recorded),
        }
        return _Run(partition, number, recorded, category, evidence)


@dataclass(slots=True)
class _Pages:
    """The lines to write, by partition."""

    scored: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    evidence: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, run: _Run, scored: dict[str, Any] | None = None) -> None:
        """Take in a run with its evidence; ``scored`` stands in for the scored row that it would have."""
        self.evidence[run.partition].append(_line(run.evidence))
        self.add_scored(run.partition, run.scored() if scored is None else scored)

    def add_scored(self, partition: str, row: dict[str, Any]) -> None:
        self.scored[partition].append(_line(row))


def _add_task(
    box: _Box,
    pages: _Pages,
    source: _Source,
    day: date,
    categories: tuple[Category, ...],
    *,
    subject: str | None = None,
) -> list[_Run]:
    """One task, with one run for each of the categories."""
    about = subject or box.subject(source)
    runs = [box.run(source, day, about, category) for category in categories]
    for run in runs:
        pages.add(run)
    return runs


def _add_odd_rows(box: _Box, pages: _Pages, first: date, last: date) -> None:
    """The rows and runs that no lake is without, on the first day but for the revoking verdict."""

    def run_of(source: _Source, category: Category = Category.ACCEPTED, subject: str | None = None) -> _Run:
        return box.run(source, first, subject or box.subject(source), category)

    # Accepted, and scored again as rejected in a later row.
    revoked = run_of(_OBSERVER)
    pages.add(revoked)
    later = revoked.scored(Category.REJECTED, minutes_later=24 * 60 * (last - first).days + 30)
    pages.add_scored(f"{last:%Y/%m/%d}/{_OBSERVER.stem}.jsonl", later)

    # Left to a human first, accepted later: the second row ships.
    cleared = run_of(_AUDITS, Category.NEEDS_HUMAN_REVIEW)
    pages.add(cleared)
    pages.add_scored(cleared.partition, cleared.scored(Category.ACCEPTED, minutes_later=45))

    # Accepted twice: one id.
    twice = run_of(_AUTO_APPLY)
    pages.add(twice)
    pages.add_scored(twice.partition, twice.scored(minutes_later=5))

    # Half a row, as a crash of the scorer leaves it.
    torn = run_of(_OUTCOMES)
    pages.add(torn)
    whole = pages.scored[torn.partition].pop()
    pages.scored[torn.partition].append(whole[: len(whole) // 2])

    without_hash = run_of(_CONTRACTS)
    row = without_hash.scored()
    del row["provenance"]["sig_hash"]
    pages.add(without_hash, row)

    without_run_id = run_of(_MODE)
    row = without_run_id.scored()
    del row["evidence_run_id"]
    pages.add(without_run_id, row)

    without_evidence = run_of(_OUTCOMES)
    pages.add_scored(without_evidence.partition, without_evidence.scored())

    blank = run_of(_SCRUM)
    blank.evidence["text"] = " \n"
    pages.add(blank)
    without_text = run_of(_AUDIT_FACTS, Category.PARTIALLY_ACCEPTED)
    del without_text.evidence["text"]
    pages.add(without_text)

    # The same answer to the same task, once rejected and once accepted.
    subject = box.subject(_SCRUM)
    bad, good = run_of(_SCRUM, Category.REJECTED, subject), run_of(_SCRUM, Category.ACCEPTED, subject)
    bad.evidence["text"] = good.evidence["text"] + "\n"
    pages.add(bad)
    pages.add(good)


def _add_invented_files(box: _Box, pages: _Pages, day: date) -> None:
    """Answers about files that do not exist, a pair among them."""
    scrum_file, mode_file, observer_file = (code.path for code in _INVENTED_FILES)
    for source, category, path in (
        (_SCRUM, Category.REJECTED, scrum_file),
        (_SCRUM, Category.ACCEPTED, scrum_file),
        (_MODE, Category.ACCEPTED, mode_file),
        (_OBSERVER, Category.ACCEPTED, observer_file),
    ):
        pages.add(box.run(source, day, path, category))


def _append_pages(lake: SampleLake, pages: _Pages) -> tuple[Path, ...]:
    """Append the lines, evidence before the scored rows that need it."""
    written = []
    for lines_of, path_of in ((pages.evidence, lake.evidence_path), (pages.scored, lake.scored_path)):
        for partition in sorted(lines_of):
            path = path_of(partition)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write("".join(f"{line}\n" for line in lines_of[partition]).encode())
            written.append(path)
    return tuple(written)


def _write_source_files(root: Path) -> None:
    """The files that the rows name, all but the invented ones."""
    for code in (_SHOWCASE, *_FILES):
        path = root / code.path
        path.parent.mkdir(parents=True, exist_ok=True)
        body = f"pub fn {code.function}() -> Result<(), Error> {{\n    Ok(())\n}}\n"
        path.write_text(f"//! Part of the sample lake: {code.thing}.\n\n{body}", encoding="utf-8")


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"))


def _stamp(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


# What the runs are about.


@dataclass(frozen=True, slots=True)
class _Code:
    path: str
    function: str
    thing: str


_FILES: Final = (
    _Code("crates/aibridge/src/client.rs", "complete", "the model connection"),
    _Code("crates/aibridge/src/context.rs", "trim_context", "the prompt budget"),
    _Code("crates/aibridge/src/retry.rs", "with_fallback", "the fallback ladder"),
    _Code("crates/catalogd/src/manifest.rs", "write_manifest", "the manifest"),
    _Code("crates/catalogd/src/registry.rs", "register_table", "the table registry"),
    _Code("crates/catalogd/src/tombstone.rs", "apply_tombstones", "the tombstone list"),
    _Code("crates/gateway/src/health.rs", "report_health", "the health page"),
    _Code("crates/gateway/src/limits.rs", "take_permit", "the request limiter"),
    _Code("crates/gateway/src/router.rs", "route", "the route table"),
    _Code("crates/ingestd/src/csv.rs", "read_rows", "the CSV import"),
    _Code("crates/ingestd/src/dedupe.rs", "fingerprint", "the duplicate filter"),
    _Code("crates/ingestd/src/schema.rs", "infer_schema", "the inferred schema"),
    _Code("crates/journald/src/append.rs", "append_event", "the event journal"),
    _Code("crates/journald/src/compaction.rs", "compact", "the compacted segments"),
    _Code("crates/journald/src/replay.rs", "replay_from", "the replay cursor"),
    _Code("crates/queryd/src/cache.rs", "look_up", "the result cache"),
    _Code("crates/queryd/src/plan.rs", "plan_query", "the query plan"),
    _Code("crates/queryd/src/scan.rs", "scan_parquet", "the parquet scan"),
    _Code("crates/shared/src/ids.rs", "next_id", "the pool of ids"),
    _Code("crates/shared/src/paths.rs", "partition_path", "the partition layout"),
    _Code("crates/truthd/src/loader.rs", "load_rules", "the rule folder"),
    _Code("crates/truthd/src/rules.rs", "check_rule", "the rule set"),
    _Code("crates/vectord/src/index.rs", "rebuild_index", "the embedding index"),
    _Code("crates/vectord/src/refresh.rs", "refresh_stale", "the refresh queue"),
    _Code("crates/vectord/src/trial.rs", "run_trial", "the trial journal"),
)
_SHOWCASE: Final = _Code("crates/vectord/src/playbook_memory.rs", "recall", "the playbook memory")
"""Reviewed once, rejected and then accepted: no other task is about it."""
_INVENTED_FILES: Final = (
    _Code("crates/vectord/src/shard_planner.rs", "plan_shards", "the shard plan"),
    _Code("crates/queryd/src/cost_oracle.rs", "estimate", "the cost estimate"),
    _Code("crates/gateway/src/auto_scale.rs", "scale_out", "the scaling rule"),
)
"""Files that rows name and that do not exist."""
_CODE_AT: Final = {code.path: code for code in (_SHOWCASE, *_FILES, *_INVENTED_FILES)}

_PHASES: Final = tuple(str(number) for number in range(1, 41))
_PERMITS: Final = tuple(str(100900001 + number) for number in range(40))
_CONTRACTORS: Final = (
    "Northgate Roofing",
    "Example Masonry Co.",
    "Placeholder Plumbing",
    "Sample City Electric",
    "Muster Dachbau GmbH",
    "Bâtiment Exemple",
    "サンプル建設株式会社",
    None,
)
_SITES: Final = ("north-yard", "river-depot", "cold-store", "east-dock", "assembly-hall", "print-works")
_SHIFTS: Final = ("early-fill", "night-fill", "no-show", "double-booking", "late-change", "recall")
_SCENARIOS: Final = tuple(f"{site}/{shift}" for site in _SITES for shift in _SHIFTS)

_MODELS: Final = (
    "deepseek-v3.1:671b",
    "gpt-oss:120b",
    "kimi-k2:1t",
    "llama-3.3-70b",
    "openrouter/grok-4-fast",
    "qwen3-coder:480b",
)
_CORPORA: Final = (
    "chicago_permits_v1",
    "entity_brief_v1",
    "kb_team_runs_v1",
    "lakehouse_answers_v1",
    "lakehouse_arch_v1",
    "lakehouse_symbols_v1",
)

_USUAL_WORK: Final[tuple[tuple[Category, ...], ...]] = (
    *[(Category.ACCEPTED,)] * 6,
    *[(Category.NEEDS_HUMAN_REVIEW,)] * 6,
    *[(Category.REJECTED, Category.ACCEPTED)] * 2,
    *[(Category.PARTIALLY_ACCEPTED, Category.ACCEPTED)] * 2,
    (Category.NEEDS_HUMAN_REVIEW, Category.ACCEPTED),
    (Category.PARTIALLY_ACCEPTED,),
    (Category.REJECTED,),
)
_APPENDED_WORK: Final[tuple[tuple[Category, ...], ...]] = (
    (Category.REJECTED, Category.ACCEPTED),
    (Category.ACCEPTED,),
    (Category.NEEDS_HUMAN_REVIEW,),
    (Category.PARTIALLY_ACCEPTED, Category.ACCEPTED),
    (Category.ACCEPTED,),
)
_REASONS: Final[dict[Category, tuple[tuple[str, ...], ...]]] = {
    Category.ACCEPTED: (
        ("observer verdict accept", "confidence=0.92"),
        ("grounded_fraction=0.91 above threshold; no audit fact of the matching partition contradicts any finding",),
        ("accepted on attempt 1",),
        (),
    ),
    Category.PARTIALLY_ACCEPTED: (
        ("attempts=3", "observer verdict cycle"),
        ("grounded_fraction=0.64 → below threshold, above the floor",),
    ),
    Category.REJECTED: (
        ("observer verdict reject", "no finding names a line"),
        ("patch does not apply",),
    ),
    Category.NEEDS_HUMAN_REVIEW: (
        ("no scoring marker in the evidence",),
        ("severity gate: one high finding is not confirmed", "attempts=2"),
    ),
}


# How the runs read. A rejected answer is vague, a partial one breaks off, one for review hedges.


@dataclass(frozen=True, slots=True)
class _Finding:
    """Something that is wrong with a file; ``{fn}`` and ``{thing}`` stand for what the file is about."""

    severity: str
    claim: str
    fix: str
    old: str
    new: str


_FINDINGS: Final = (
    _Finding(
        "high",
        "`{fn}` holds the write lock while it waits for the disk, so whoever reads {thing} waits with it.",
        "Take a copy, let go of the lock, then write.",
        "    file.write_all(&state.write()?.encode())?;",
        "    let bytes = state.read()?.encode(); file.write_all(&bytes)?;",
    ),
    _Finding(
        "high",
        "`{fn}` unwraps a value that comes from the disk: one truncated file and {thing} is gone with the process.",
        "Return the error, with the path in it.",
        "    let header = read_header(&path).unwrap();",
        "    let header = read_header(&path).map_err(|e| e.at(&path))?;",
    ),
    _Finding(
        "high",
        "The key that `{fn}` builds leaves out the schema version. After a migration {thing} answers with old rows.",
        "Put the version in front of the key.",
        '    let key = format!("{name}");',
        '    let key = format!("{version}:{name}");',
    ),
    _Finding(
        "medium",
        "`{fn}` tries again without end. When {thing} is gone for good it logs a line every millisecond.",
        "Stop after five attempts and wait longer before each.",
        "    loop {",
        "    for attempt in 0..5 { sleep(BACKOFF * attempt);",
    ),
    _Finding(
        "medium",
        "A row that does not parse is skipped and not counted, so {thing} can lose data in silence.",
        "Count it, and hand it to the quarantine.",
        "    let Ok(row) = parse(line) else { continue };",
        "    let Ok(row) = parse(line) else { held.push(line); continue };",
    ),
    _Finding(
        "medium",
        "`{fn}` collects all of {thing} before the first row is sent; memory grows with the history.",
        "Hand on an iterator.",
        "    Ok(rows.collect::<Vec<_>>())",
        "    Ok(Box::new(rows))",
    ),
    _Finding(
        "low",
        "The comment above `{fn}` promises sorted output, and nothing sorts {thing}.",
        "Sort before the return, the callers rely on it.",
        "    Ok(names)",
        "    names.sort(); Ok(names)",
    ),
    _Finding(
        "low",
        "`{fn}` compares wall clock times. When the clock steps back, {thing} looks newer than it is.",
        "Compare sequence numbers.",
        "    if entry.at > last.at {",
        "    if entry.seq > last.seq {",
    ),
)
_VAGUE: Final = (
    "The file is in good shape overall. Some names could be clearer, and more tests would help.",
    "It is hard to say what this does, but it is probably safe. I would refactor it at some point.",
    "I did not have the file at hand and went by its name: it seems to follow the usual pattern.",
)
_DOUBTS: Final = (
    "I could not confirm this without running the service.",
    "Whether this is intended is for the owner of the crate to say.",
    "Two of the documents that I was given contradict each other here.",
)


def _draw_findings(rng: Random, code: _Code, count: int) -> list[_Finding]:
    """Findings about one file, the most severe first."""
    drawn = rng.sample(_FINDINGS, count)
    drawn.sort(key=lambda finding: ("high", "medium", "low").index(finding.severity))
    return [
        _Finding(one.severity, one.claim.format(fn=code.function, thing=code.thing), one.fix, one.old, one.new)
        for one in drawn
    ]


def _scrum_review(rng: Random, path: str, category: Category) -> str:
    head = f"# Review: `{path}` vs. Lakehouse PRD"
    if category is Category.REJECTED:
        return f"{head}\n\n{rng.choice(_VAGUE)}\n\nNo patches."
    parts = [head]
    for number, finding in enumerate(_draw_findings(rng, _CODE_AT[path], rng.randint(2, 3)), start=1):
        confidence = rng.randrange(70, 99)
        parts.append(f"{number}. **{finding.severity}**, confidence {confidence} %, line {rng.randrange(20, 400)}\n")
        parts[-1] += f"   {finding.claim}\n   Patch: {finding.fix}"
    if category is Category.PARTIALLY_ACCEPTED:
        parts.append("The error paths were not looked at.")
    if category is Category.NEEDS_HUMAN_REVIEW:
        parts.append(rng.choice(_DOUBTS))
    return "\n\n".join(parts)


def _mode_run(rng: Random, path: str, category: Category) -> str:
    code = _CODE_AT[path]
    if category is Category.REJECTED:
        return f"mode: isolation\nfile: {path}\nfindings: none\n\n{rng.choice(_VAGUE)}"
    first, second = _draw_findings(rng, code, 2)
    grounded = {Category.ACCEPTED: 91, Category.PARTIALLY_ACCEPTED: 64}.get(category, 48)
    text = f"mode: isolation\nfile: {path}\nsymbols: {code.function}, Error\ngrounded: {grounded} %\n\n"
    text += f"- [{first.severity}] {first.claim}\n- [{second.severity}] {second.claim}"
    return text if category is Category.ACCEPTED else f"{text}\n\n{rng.choice(_DOUBTS)}"


def _patch(rng: Random, path: str, category: Category) -> str:
    code = _CODE_AT[path]
    (finding,) = _draw_findings(rng, code, 1)
    line = rng.randrange(20, 400)
    if category is Category.REJECTED:
        return f"--- a/{path}\n+++ b/{path}\n@@ -{line},1 +{line},1 @@\n-    // TODO\n+    // done"
    diff = f"--- a/{path}\n+++ b/{path}\n@@ -{line},2 +{line},2 @@ pub fn {code.function}()\n"
    diff += f"     // {finding.fix}\n-{finding.old}\n+{finding.new}"
    return diff if category is Category.ACCEPTED else f"{diff}\n\nNot compiled. {rng.choice(_DOUBTS)}"


def _audit(rng: Random, phase: str, category: Category) -> str:
    head = f"## Audit of phase {phase}"
    if category is Category.REJECTED:
        return f"{head}\n\nAll goals of the phase are met. {rng.choice(_VAGUE)}"
    lines = [
        f"- [{finding.severity}] {code.path}: {finding.claim}"
        for code in rng.sample(_FILES, rng.randint(2, 4))
        for finding in _draw_findings(rng, code, 1)
    ]
    closing = {
        Category.ACCEPTED: f"{len(lines)} findings, each traced to a line. The phase closes when the high ones do.",
        Category.PARTIALLY_ACCEPTED: "The second half of the phase was not reached within the budget.",
    }.get(category) or rng.choice(_DOUBTS)
    return "\n".join([f"{head}\n", *lines, f"\n{closing}"])


def _observer_review(rng: Random, path: str, category: Category) -> str:
    if category is Category.REJECTED:
        return "Verdict: accept\n\nLooks good to me."
    code = _CODE_AT[path]
    (finding,) = _draw_findings(rng, code, 1)
    verdict = rng.choice(("accept", "cycle", "reject"))
    opinion = {
        "accept": f"The attempt on `{path}` does what was asked: {finding.fix} The tests of the crate still pass.",
        "cycle": f"The attempt on `{path}` goes in the right direction and misses one thing. {finding.claim}",
        "reject": f"The attempt on `{path}` changes a function that nobody calls. {finding.claim}",
    }[verdict]
    text = f"Verdict: {verdict} (confidence {rng.randrange(70, 99)} %)\n\n{opinion}"
    return text if category is Category.ACCEPTED else f"{text}\n\n{rng.choice(_DOUBTS)}"


_WORKS: Final = (
    "new roof on a three-storey house",
    "brick repair along the street front",
    "water main and two risers",
    "rewiring of the ground floor",
    "fire stair at the back",
)
_GOOD_MARKERS: Final = (
    "no lien on record",
    "licence renewed this year",
    "the bond covers the whole sum",
    "four permits closed without a violation",
)
_BAD_MARKERS: Final = (
    "insurance runs out before the work ends",
    "two inspections of a neighbouring permit are open",
    "the stated cost is 40 % below that of comparable work",
    "registered at this address for three weeks only",
)


def _contractor_of(permit: str) -> str | None:
    return _CONTRACTORS[int(permit) % len(_CONTRACTORS)]


def _contract_analysis(rng: Random, permit: str, category: Category) -> str:
    head = (
        f"Permit {permit}: {_WORKS[int(permit) % len(_WORKS)]}.\nContractor: {_contractor_of(permit) or 'not named'}."
    )
    if category is Category.REJECTED:
        return f"{head}\n\nRecommendation: hire. No risks."
    markers = f"- good: {rng.choice(_GOOD_MARKERS)}\n- bad: {rng.choice(_BAD_MARKERS)}"
    advice = rng.choice(("go ahead, with the certificate on file before day one", "ask for a second offer", "wait"))
    text = f"{head}\n\nRisk markers:\n{markers}\n\nRecommendation: {advice}."
    return text if category is Category.ACCEPTED else f"{text}\nThe register was not reachable, so this is from memory."


def _outcome(rng: Random, scenario: str, category: Category) -> str:
    site, _, shift = scenario.partition("/")
    if category is Category.REJECTED:
        return f"Scenario {scenario}: everything went fine."
    wanted = rng.randrange(6, 24)
    lines = [f"Scenario {scenario}: {wanted} workers asked for by {site}."]
    missing = wanted
    while missing and len(lines) < 5:
        found = rng.randint(1, missing)
        missing -= found
        lines.append(f"{len(lines)}. {found} confirmed, {missing} open [playbook:{shift}/{rng.randrange(10, 99)}]")
    lines.append(f"Result: {'filled' if not missing else f'{missing} places stay open'}.")
    if category is not Category.ACCEPTED:
        lines.append(rng.choice(_DOUBTS))
    return "\n".join(lines)


def _fact(rng: Random, path: str, category: Category) -> str:
    code = _CODE_AT[path]
    (finding,) = _draw_findings(rng, code, 1)
    if category is Category.REJECTED:
        return f"Fact: {code.thing} exists."
    text = f"Fact: {finding.claim}\nSource: {path}, line {rng.randrange(20, 400)}\nSeen in {rng.randint(2, 9)} runs."
    return text if category is Category.ACCEPTED else f"{text}\nContradicted once."


_PATHS: Final = tuple(code.path for code in _FILES)
_SCRUM: Final = _Source("scrum_reviews", "scrum", "scrum_review", "executor", _PATHS, _scrum_review, names_files=True)
_MODE: Final = _Source("mode_experiments", "mode", "codereview", "executor", _PATHS, _mode_run, names_files=True)
_AUTO_APPLY: Final = _Source("auto_apply", "auto_apply", "auto_apply", "applier", _PATHS, _patch, names_files=True)
_AUDITS: Final = _Source("audits", "audit", "phase", "reviewer", _PHASES, _audit)
_OBSERVER: Final = _Source(
    "observer_reviews", "observer", "observer_review", "reviewer", _PATHS, _observer_review, names_files=True
)
_CONTRACTS: Final = _Source("contract_analyses", "contract", "permit", "executor", _PERMITS, _contract_analysis)
_OUTCOMES: Final = _Source("outcomes", "outcome", "scenario", "executor", _SCENARIOS, _outcome)
_FACTS: Final = _Source("distilled_facts", "distilled_facts", "fact", "extractor", _PATHS, _fact, names_files=True)
_AUDIT_FACTS: Final = _Source("audit_facts", "audit_facts", "audit_fact", "extractor", _PATHS, _fact, names_files=True)
_SOURCES: Final = (
    _SCRUM,
    _MODE,
    _AUTO_APPLY,
    _AUDITS,
    _OBSERVER,
    _CONTRACTS,
    _OUTCOMES,
    _FACTS,
    _AUDIT_FACTS,
)
