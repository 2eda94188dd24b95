"""A small sample lakehouse for ``distilld demo`` and the tests, the same bytes each time.

Most rows are plain. The others show, once or twice each, what else can happen to a row. Every reason of SPEC 3.7 occurs
except self_pairing (reserved) and too_many_exports; hallucinated_file_path occurs only with ``check_source_files`` on.
No clock is read. The texts of the runs come from :mod:`distilld.demo.prose`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any, Final

from distilld.core.model import Category, UsageError
from distilld.demo import prose

FIRST_DAY: Final = date(2026, 3, 2)
SEED: Final = 7
TASKS_A_DAY: Final = 8
"""How many plain tasks each source works on per day; some take two runs."""


@dataclass(frozen=True, slots=True)
class SampleLake:
    """A lake as ``write_sample_lake`` wrote it; later changes do not appear here.

    ``scored_rows`` counts lines, malformed ones too. ``partitions`` are paths
    ``YYYY/MM/DD/<source>.jsonl`` in walk order, each present in both trees. ``rescored_run_id`` is the run to pass to
    ``rescore_in_place``: it is exported to all three datasets, and is the chosen side of its task's only pair.
    """

    root: Path
    scored_rows: int
    partitions: tuple[str, ...]
    rescored_run_id: str

    def scored_path(self, partition: str) -> Path:
        """Return the path of a partition's scored file."""
        return self.root / "data" / "scored-runs" / partition

    def evidence_path(self, partition: str) -> Path:
        """Return the path of a partition's evidence file."""
        return self.root / "data" / "evidence" / partition


def write_sample_lake(root: Path, *, days: int = 3) -> SampleLake:
    """Write a lake of ``days`` days below ``root``, with the source files that its rows name (not the invented ones).

    Raises UsageError if ``root`` already holds ``data`` or ``crates``: a sample must not mix with a real lake.
    """
    for name in ("data", "crates"):
        if (root / name).exists():
            raise UsageError(f"{root} already holds {name}", hint="give a new or an empty folder")

    calendar = [FIRST_DAY + timedelta(days=number) for number in range(days)]
    box = _Box(Random(f"sample lake {SEED}"))
    reviews, path = _SOURCES["scrum_reviews"], prose.SHOWCASE.path
    _, showcase = _add_task(box, reviews, calendar[0], (Category.REJECTED, Category.ACCEPTED), subject=path)
    for day in calendar:
        for source in _SOURCES.values():
            for _ in range(TASKS_A_DAY):
                _add_task(box, source, day, box.rng.choice(_USUAL_WORK))
    _add_odd_rows(box, calendar[0], calendar[-1])
    _add_invented_files(box, calendar[0])

    lake = SampleLake(
        root=root,
        scored_rows=sum(map(len, box.scored.values())),
        partitions=tuple(sorted(box.scored)),
        rescored_run_id=showcase.run_id,
    )
    _write_source_files(root)
    _append_lines(lake, box)
    return lake


def append_rows(lake: SampleLake) -> tuple[Path, ...]:
    """Append some scored rows with their evidence to the last day's partitions; return the files that grew.

    Evidence is written before the rows that need it. The first two rows are the two sides of a pair. A second call
    continues after the first one's rows.
    """
    folder = lake.partitions[-1].rpartition("/")[0]
    last_day = date.fromisoformat(folder.replace("/", "-"))
    present = {
        partition: lake.scored_path(partition).read_bytes().count(b"\n")
        for partition in lake.partitions
        if partition.startswith(folder)
    }
    # Every run of a partition has a line, so the count of lines is above every used run number.
    box = _Box(Random(f"sample lake {SEED}, {sum(present.values())} rows later"), present)
    for source, categories in zip(_SOURCES.values(), _APPENDED_WORK, strict=True):
        _add_task(box, source, last_day, categories)
    return _append_lines(lake, box)


def rescore_in_place(lake: SampleLake, run_id: str) -> Path:
    """Turn the last accepted row of a run into a rejected one in place; return the partition's scored file.

    Size, inode and mtime stay the same: only the content (and ctime) shows that the verdict changed.
    Raises LookupError if the run has no accepted row.
    """
    accepted = re.compile(rb'"evidence_run_id":"%b",[^\n]*?"category":"(accepted)"' % re.escape(run_id.encode()))
    for partition in reversed(lake.partitions):
        path = lake.scored_path(partition)
        if found := list(accepted.finditer(path.read_bytes())):
            before = path.stat()
            with path.open("r+b") as file:
                file.seek(found[-1].start(1))
                file.write(Category.REJECTED.encode())
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            return path
    raise LookupError(f"no accepted row of run {run_id!r}")


# The parts of a lake.


@dataclass(frozen=True, slots=True)
class _Source:
    """A producer of runs: its names, and the kinds of its tasks' subjects and of its texts."""

    stem: str
    run_prefix: str
    task_prefix: str
    role: str
    subjects: str
    text: str

    @property
    def names_files(self) -> bool:
        return self.subjects == "files"


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
        """Return the scored row of the run; with arguments, the row of a second scoring."""
        verdict = category or self.category
        reasons = prose.REASONS[verdict]
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
    """The machine that runs the tasks, and the lines to write, by partition.

    ``numbers`` holds the number of each partition's next run.
    """

    rng: Random
    numbers: dict[str, int] = field(default_factory=dict)
    decks: dict[str, Iterator[str]] = field(default_factory=dict)
    scored: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    evidence: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, run: _Run, scored: dict[str, Any] | None = None) -> None:
        """Add a run with its evidence; ``scored`` replaces its normal scored row."""
        self.evidence[run.partition].append(_line(run.evidence))
        self.add_scored(run.partition, run.scored() if scored is None else scored)

    def add_scored(self, partition: str, row: dict[str, Any]) -> None:
        self.scored[partition].append(_line(row))

    def subject(self, source: _Source) -> str:
        """Return the source's next subject: each one once, in random order, before any repeats."""
        if source.stem not in self.decks:
            subjects = prose.SUBJECTS[source.subjects]
            self.decks[source.stem] = cycle(self.rng.sample(subjects, len(subjects)))
        return next(self.decks[source.stem])

    def run(self, source: _Source, day: date, subject: str, category: Category) -> _Run:
        rng = self.rng
        partition = f"{day:%Y/%m/%d}/{source.stem}.jsonl"
        number = self.numbers.get(partition, 0)
        self.numbers[partition] = number + 1

        midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
        started = midnight + timedelta(
            hours=_STEMS.index(source.stem), seconds=97 * number, milliseconds=rng.randrange(9000)
        )
        run_id = f"{source.run_prefix}:{int(started.timestamp() * 1000)}:{number}"
        evidence: dict[str, Any] = {
            "schema_version": 1,
            "run_id": f"{run_id}:{subject}" if source.names_files else run_id,
            "task_id": f"{source.task_prefix}:{subject}",
            "timestamp": _stamp(started),
            "model_name": rng.choice(prose.TEXTS["models"]),
            "model_role": source.role,
            "text": prose.text_of(rng, source.text, subject, category),
        }
        if source.names_files:
            evidence["source_files"] = [subject]
        if rng.random() < 0.85:
            evidence["retrieved_context"] = {
                "matrix_corpora": rng.sample(prose.TEXTS["corpora"], rng.randint(1, 3)),
                "pathway_fingerprints_seen": rng.choice((0, 1, 3, 5, 17, 120)),
            }
        if source.subjects == "permits":
            contractor = prose.contractor_of(subject)
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


def _add_task(
    box: _Box,
    source: _Source,
    day: date,
    categories: tuple[Category, ...],
    *,
    subject: str | None = None,
) -> list[_Run]:
    """Add one task with one run per category; return the runs."""
    about = subject or box.subject(source)
    runs = [box.run(source, day, about, category) for category in categories]
    for run in runs:
        box.add(run)
    return runs


def _add_odd_rows(box: _Box, first: date, last: date) -> None:
    """Add the odd rows and runs that every lake has, on the first day; the revoking verdict is on the last."""

    def run_of(stem: str, category: Category = Category.ACCEPTED, subject: str | None = None) -> _Run:
        source = _SOURCES[stem]
        return box.run(source, first, subject or box.subject(source), category)

    # Accepted, then rejected by a later row.
    revoked = run_of("observer_reviews")
    box.add(revoked)
    later = revoked.scored(Category.REJECTED, minutes_later=24 * 60 * (last - first).days + 30)
    box.add_scored(f"{last:%Y/%m/%d}/observer_reviews.jsonl", later)

    # First left to human review, then accepted: the second row is exported.
    cleared = run_of("audits", Category.NEEDS_HUMAN_REVIEW)
    box.add(cleared)
    box.add_scored(cleared.partition, cleared.scored(Category.ACCEPTED, minutes_later=45))

    # Accepted twice: one id.
    twice = run_of("auto_apply")
    box.add(twice)
    box.add_scored(twice.partition, twice.scored(minutes_later=5))

    # Half a row, as after a crash of the scorer.
    torn = run_of("outcomes")
    box.add(torn)
    whole = box.scored[torn.partition].pop()
    box.scored[torn.partition].append(whole[: len(whole) // 2])

    without_hash = run_of("contract_analyses")
    row = without_hash.scored()
    del row["provenance"]["sig_hash"]
    box.add(without_hash, row)

    without_run_id = run_of("mode_experiments")
    row = without_run_id.scored()
    del row["evidence_run_id"]
    box.add(without_run_id, row)

    without_evidence = run_of("outcomes")
    box.add_scored(without_evidence.partition, without_evidence.scored())

    blank = run_of("scrum_reviews")
    blank.evidence["text"] = " \n"
    box.add(blank)
    without_text = run_of("audit_facts", Category.PARTIALLY_ACCEPTED)
    del without_text.evidence["text"]
    box.add(without_text)

    # The same answer to the same task, rejected once and accepted once.
    subject = box.subject(_SOURCES["scrum_reviews"])
    bad, good = run_of("scrum_reviews", Category.REJECTED, subject), run_of("scrum_reviews", Category.ACCEPTED, subject)
    bad.evidence["text"] = good.evidence["text"] + "\n"
    box.add(bad)
    box.add(good)


def _add_invented_files(box: _Box, day: date) -> None:
    """Add answers about files that do not exist, a pair among them."""
    scrum_file, mode_file, observer_file = (code.path for code in prose.INVENTED_FILES)
    for stem, category, path in (
        ("scrum_reviews", Category.REJECTED, scrum_file),
        ("scrum_reviews", Category.ACCEPTED, scrum_file),
        ("mode_experiments", Category.ACCEPTED, mode_file),
        ("observer_reviews", Category.ACCEPTED, observer_file),
    ):
        box.add(box.run(_SOURCES[stem], day, path, category))


def _append_lines(lake: SampleLake, box: _Box) -> tuple[Path, ...]:
    """Append the lines, evidence before the scored rows that need it; return the files."""
    written = []
    for lines_of, path_of in ((box.evidence, lake.evidence_path), (box.scored, lake.scored_path)):
        for partition in sorted(lines_of):
            path = path_of(partition)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write("".join(f"{line}\n" for line in lines_of[partition]).encode())
            written.append(path)
    return tuple(written)


def _write_source_files(root: Path) -> None:
    """Write the source files that the rows name, except the invented ones."""
    for code in (prose.SHOWCASE, *prose.FILES):
        path = root / code.path
        path.parent.mkdir(parents=True, exist_ok=True)
        body = f"pub fn {code.function}() -> Result<(), Error> {{\n    Ok(())\n}}\n"
        path.write_text(f"//! Part of the sample lake: {code.thing}.\n\n{body}", encoding="utf-8")


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"))


def _stamp(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


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
    (Category.REJECTED, Category.ACCEPTED),
    (Category.ACCEPTED,),
    (Category.NEEDS_HUMAN_REVIEW,),
    (Category.PARTIALLY_ACCEPTED,),
)
"""One task for each source."""

_SOURCES: Final = {each["stem"]: _Source(**each) for each in prose.TEXTS["sources"]}
_STEMS: Final = tuple(_SOURCES)
