"""The history of one run, as ``distilld explain`` prints it (SPEC 5). Only reads, also while a writer runs.

The store knows the places of the run's rows and their outcomes. The errors of a quarantined row are read from its
quarantine file, up to the committed length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from distilld.config.settings import Settings
from distilld.core.json_text import QUOTED_DEPTH, parse_object
from distilld.core.model import EXPORT_PATHS, MARK_BYTES, Dataset, OperatorError, Options
from distilld.files.regular import open_regular, without_space
from distilld.files.segments import blocks_of
from distilld.lake.lines import digest_of
from distilld.publish.reading import lines_of
from distilld.store.connection import Store
from distilld.store.export_records import ExportRecords
from distilld.store.queries import Views, reading
from distilld.store.run_queries import Recorded, RunEvidence, RunPair, RunRow, RunWithdrawal, Stories
from distilld.store.verdicts import Verdicts

_ATTEMPTS: Final = 3

Errors = Mapping[bytes, tuple[str, ...]]
"""The errors of quarantine lines, by the digest of the line."""


class UnknownRunError(OperatorError):
    """Nothing in the store names the run."""


@dataclass(frozen=True, slots=True)
class Fate:
    """The outcome of a row or a pair in a dataset.

    ``outcome`` is 'exported', 'quarantined', 'not judged yet', or 'gone' if the row is not present and the dataset has
    no line for it. ``errors`` are those of its quarantine row.
    """

    dataset: Dataset
    outcome: str
    id: str | None = None
    reason: str | None = None
    errors: tuple[str, ...] = ()
    note: str | None = None
    batch_id: str | None = None
    recorded_at: str | None = None


@dataclass(frozen=True, slots=True)
class RowStory:
    """One scored row: its present or last place, what it says, and its outcomes in RAG and SFT.

    ``fates`` of a vanished row or an orphan has only the datasets that retain it.

    ``state`` is 'present', or the reason why the row is retained: 'absent', 'vanished', 'orphan'. ``evidence`` is
    'found', 'missing', 'absent', or 'unknown' if the row is not present.
    """

    partition: str | None
    line: int | None
    state: str
    category: str | None
    evidence: str
    waits: bool
    """Whether it waits to be judged, for the first time or again."""
    fates: tuple[Fate, ...]
    unusual: str | None = None
    """How it gives its verdict, if not as a whole row with one of the four categories."""


@dataclass(frozen=True, slots=True)
class VerdictStory:
    """The current verdict of a run in a dataset, and its place."""

    dataset: Dataset
    category: str
    partition: str
    line: int
    absent: bool
    forbids: bool


@dataclass(frozen=True, slots=True)
class PairStory:
    """A pair that the run is in."""

    task_id: str
    state: str
    chosen_run_id: str
    rejected_run_id: str
    fate: Fate


@dataclass(frozen=True, slots=True)
class RunStory:
    """Everything that is known about a run, as of one committed batch."""

    run_id: str
    verdicts: tuple[VerdictStory, ...]
    rows: tuple[RowStory, ...]
    evidence: tuple[RunEvidence, ...]
    pairs: tuple[PairStory, ...]
    withdrawals: tuple[RunWithdrawal, ...]
    leaving: tuple[tuple[str, str], ...]
    """Datasets with a line of the run that the next batch withdraws, and the cause."""
    look_alikes: tuple[tuple[str, str], ...]
    """A partition of the run, and another one whose path differs only in its Unicode normal form."""


def explain(settings: Settings, run_id: str) -> RunStory:
    """Return the history of a run.

    Raises:
        UnknownRunError: Nothing in the store names the run.
        OperatorError: There is no store, or it cannot be read.
        UsageError: The store is from a newer version, or belongs to another root.
    """
    for attempt in range(_ATTEMPTS):
        with reading(settings.state, settings.root) as store:
            rows, pairs = Stories(store).rows(run_id), Stories(store).pairs(run_id)
            wanted = _quarantine_lines(rows, pairs)
            errors = _errors(settings.root, store, wanted)
            # A quarantine file may be replaced after the store was read. Then both are read again.
            if attempt == _ATTEMPTS - 1 or errors.keys() == set().union(*wanted.values()):
                return _story(settings, store, run_id, rows, pairs, errors)
    raise AssertionError  # pragma: no cover


def _quarantine_lines(rows: list[RunRow], pairs: list[RunPair]) -> dict[Dataset, set[bytes]]:
    """Return the digests of the quarantine lines to read the errors from, by dataset."""
    wanted: dict[Dataset, set[bytes]] = {dataset: set() for dataset in Dataset}
    for row in rows:
        for dataset, recorded in row.outcomes.items():
            if recorded is not None and recorded.reason is not None:
                wanted[dataset].add(recorded.line)
    wanted[Dataset.PREFERENCE] = {pair.outcome.line for pair in pairs if pair.outcome.reason is not None}
    return wanted


def _errors(root: Path, store: Store, wanted: dict[Dataset, set[bytes]]) -> Errors:
    """Return the errors of some quarantine lines. Lines that are not found, or cannot be read, are left out."""
    found: dict[bytes, tuple[str, ...]] = {}
    for dataset, digests in wanted.items():
        with suppress(OSError):
            for line in _lines_like(root, store, f"quarantine_{dataset}", digests):
                if (digest := digest_of(line)) in digests:
                    errors = (parse_object(line.rstrip(b"\n"), max_depth=QUOTED_DEPTH).value or {}).get("errors")
                    found[digest] = tuple(map(str, errors)) if isinstance(errors, list) else ()
    return found


def _lines_like(root: Path, store: Store, name: str, digests: set[bytes]) -> Iterator[bytes]:
    """Yield the lines of an export that end in a segment with the mark of one of these digests."""
    records = ExportRecords(store)
    committed = records.exports()[name].committed
    if digests and (found := records.holding(name, {digest[:MARK_BYTES] for digest in digests})):
        with open_regular(root / EXPORT_PATHS[name]) as file:
            for number in (segment.number for segment in found):
                start = records.line_before(name, number) * committed.segment_bytes
                end = min((number + 1) * committed.segment_bytes, committed.size)
                yield from map(without_space, lines_of(blocks_of(file.fileno(), end, start)))


def _story(
    settings: Settings, store: Store, run_id: str, rows: list[RunRow], pairs: list[RunPair], errors: Errors
) -> RunStory:
    stories, told = Stories(store), Views(store).last_options()
    # The options of the newest batch differ from the settings if its run or daemon was started with flags.
    options = settings.options() if told is None else Options.from_json(told)
    evidence = stories.evidence(run_id)
    partitions = {row.at.partition for row in rows if row.at} | {each.partition for each in evidence}
    story = RunStory(
        run_id,
        verdicts=tuple(_verdicts(store, run_id, rows, options)),
        rows=tuple(
            RowStory(
                row.at.partition if row.at else None,
                row.at.line if row.at else None,
                row.state,
                row.category.value if row.category else None,
                row.evidence,
                row.waits,
                tuple(_fate(dataset, row, recorded, errors) for dataset, recorded in row.outcomes.items()),
                row.unusual,
            )
            for row in rows
        ),
        evidence=tuple(evidence),
        pairs=tuple(
            PairStory(
                pair.task_id,
                pair.state,
                pair.chosen_run_id,
                pair.rejected_run_id,
                _told(Dataset.PREFERENCE, pair.outcome, errors, None),
            )
            for pair in pairs
        ),
        withdrawals=tuple(stories.withdrawals(run_id)),
        leaving=tuple(stories.leaving(run_id)),
        look_alikes=tuple(stories.look_alikes(partitions)),
    )
    if not (rows or pairs or evidence or story.withdrawals or story.leaving):
        raise UnknownRunError(
            f"run {run_id!r} is not known: no scored row, evidence row, pair or withdrawal names it",
            hint="what is new since the last batch is known after 'distilld run --once'",
        )
    return story


def _verdicts(store: Store, run_id: str, rows: list[RunRow], options: Options) -> Iterator[VerdictStory]:
    giving = {row.walk: row for row in rows if row.state in ("present", "absent")}
    in_rag, in_sft, _ = Verdicts(store).said_in_force(run_id, options)
    for dataset, said in ((Dataset.RAG, in_rag), (Dataset.SFT, in_sft)):
        row = giving[said[0]] if said else None
        if row and row.category and row.at:
            forbids = options.revoke and options.forbids(dataset, row.category)
            yield VerdictStory(dataset, row.category.value, *row.at, row.state == "absent", forbids)


def _fate(dataset: Dataset, row: RunRow, recorded: Recorded | None, errors: Errors) -> Fate:
    if recorded is None:
        if row.state == "present":
            return Fate(dataset, "not judged yet")
        return Fate(dataset, "gone", note="no line there is its own; what left is listed under Withdrawn")
    return _told(dataset, recorded, errors, _note(row, recorded))


def _told(dataset: Dataset, recorded: Recorded, errors: Errors, note: str | None) -> Fate:
    exported = recorded.reason is None
    if exported and recorded.batch_id is None:
        note = "; ".join(filter(None, ("stood in the file before its store knew of it", note)))
    if not exported and recorded.line not in errors:
        note = "; ".join(filter(None, (note, "its quarantine row was not found, the file is changing or was changed")))
    return Fate(
        dataset,
        "exported" if exported else "quarantined",
        recorded.id if exported else None,
        recorded.reason.value if recorded.reason else None,
        errors.get(recorded.line, ()),
        note,
        recorded.batch_id,
        recorded.recorded_at,
    )


def _note(row: RunRow, recorded: Recorded) -> str | None:
    if recorded.holder is not None:
        return f"the id is held by {recorded.holder.partition}:{recorded.holder.line}"
    if recorded.reason is None and row.state == "present" and row.evidence != "found":
        return "kept: its evidence file is absent"
    return _WHY_KEPT.get(row.state)


_WHY_KEPT: Final = {
    "absent": "retained: its partition is absent",
    "vanished": "kept by the tripwire: its line or its evidence vanished",
    "orphan": "retained: no input produces it",
}


def place_of(partition: str | None, line: int | None) -> str | None:
    """Return a place as ``partition:line``; None if either is unknown."""
    return None if partition is None or line is None else f"{partition}:{line}"
