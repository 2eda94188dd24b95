"""The independent check: does everything on disk agree, and is it what a full pass would give? Repairs nothing.

It reads one committed batch, also while a writer runs, and begins again if another batch was committed meanwhile. The
plain check trusts the store and compares the files with it. The deep check compares them with
:mod:`distilld.inspection.oracle`, which takes from the store only what is retained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from distilld.core.json_text import QUOTED_DEPTH, parse_object
from distilld.core.model import EXPORT_PATHS, ROW_DATASETS, Category, Dataset, InputChanged, Options
from distilld.core.plan import compare
from distilld.core.samples import faults_of
from distilld.files.segments import SHA_BYTES, hash_of
from distilld.inspection import oracle
from distilld.inspection.oracle_exceptions import retained_of
from distilld.inspection.oracle_lake import LakeOnDisk
from distilld.inspection.reading import Reading, Tell
from distilld.inspection.receipt_chain import NOT_WRITTEN, checked_receipts
from distilld.inspection.unstamped import unstamped_quarantine, unstamped_sample
from distilld.lake import scan as lake
from distilld.lake.lines import DIGEST_BYTES, digest_of
from distilld.lake.scan import tree_path
from distilld.lake.source_files import path_check
from distilld.publish.committed import BatchMovedError, CommittedBatch, CommittedExport, Writing, at_one_batch
from distilld.publish.receipt_files import receipt_path
from distilld.publish.stage_chains import broken_stage_chains, stage_anchors
from distilld.store.connection import Store
from distilld.store.export_records import ExportRecords
from distilld.store.inputs import Inputs
from distilld.store.ledger import Ledger
from distilld.store.queries import Exceptions, Views, reading
from distilld.store.receipts import Receipts
from distilld.store.retained import Retained, RetainedCount
from distilld.store.verdicts import Verdicts
from distilld.store.work import Work
from distilld.tables import counted

Lines = Callable[[], Iterator[bytes]]
"""Returns the committed lines of an export, with line feeds."""
SHOWN: Final = 20
"""The number of faults of one check that are named; all are counted."""


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check: the number of its faults, and a text for each of the first ones."""

    name: str
    faults: int = 0
    shown: tuple[str, ...] = ()


@dataclass(slots=True)
class Report:
    """What verify found in the batch that it read."""

    batch_id: str | None
    deep: bool
    checks: list[Check] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    """Files that changed since that batch, so that they cannot be checked yet."""
    kept: int = 0
    """Retained rows: of absent partitions, kept by the tripwire, and orphans."""
    kept_exported: list[RetainedCount] = field(default_factory=list)
    """The exported ones among them, counted by dataset and kind."""

    @property
    def faults(self) -> int:
        """Return the number of faults of all checks."""
        return sum(check.faults for check in self.checks)


def verify(
    root: Path,
    state: Path,
    options: Options,
    *,
    deep: bool = False,
    anchor: str | None = None,
    progress: Tell | None = None,
) -> Report:
    """Check one committed batch. ``anchor`` is the sha256 of a receipt that was noted elsewhere.

    Raises:
        BatchMovedError: During each attempt another batch was committed.
        OperatorError: There is no store, or something cannot be read.
    """

    def check(pinned: CommittedBatch) -> Report:
        store, receipts, exports = pinned.store, pinned.receipts, pinned.exports
        report = Report(pinned.batch.batch_id if pinned.batch else None, deep)
        # The options of the newest batch may include flags of one run.
        told = Views(store).last_options()
        judged_with = options if told is None else Options.from_json(told)
        unfinished = _unfinished(root, state, pinned)
        # An export that is not what was committed gets no other checks.
        whole = {name: export.lines if export.intact else lambda: iter(()) for name, export in exports.items()}
        report.checks.append(_receipts(root, store))
        if anchor is not None:
            report.checks.append(_anchored(root, store, receipts, anchor))
        report.checks.append(_hashes(exports, unfinished, pinned.records))
        report.checks.append(_accounting(Ledger(store), pinned.records, exports))
        report.checks.append(_schemas(whole))
        report.checks.append(_firewall(store, judged_with, whole, report))
        if deep:
            _deep(root, store, judged_with, whole, report, progress)
        cut_off = "bytes of a batch that is under way, or was cut off and is undone at the next start"
        report.changed += [f"{EXPORT_PATHS[name]}: {exports[name].behind} {cut_off}" for name in unfinished]
        missing = [(EXPORT_PATHS[name], rows) for name in exports if (rows := pinned.records.missing_rows(name))]
        report.changed += [f"{path}: {rows} rows are yet to be written again" for path, rows in missing]
        unwritten = receipts.unwritten_receipts()
        report.changed += [f"{receipt_path(each)}: is yet to be written" for _, each, _ in unwritten]
        return report

    return at_one_batch(root, state, check)


def _unfinished(root: Path, state: Path, pinned: CommittedBatch) -> frozenset[str]:
    """Return the exports that are longer than committed because of the writer, running or cut off.

    The writer commits its intent before it writes the first byte, and the end of an intent shows in the store. So the
    store, read again after the files, tells the writer's bytes from those of another program.

    Raises:
        BatchMovedError: The exports are no longer those of the pinned batch.
    """
    grown = frozenset(name for name, export in pinned.exports.items() if export.behind)
    if not grown and all(export.intact for export in pinned.exports.values()):
        return grown
    with reading(state, root) as store:
        now = Writing.of(store)
    if now.moved_on(pinned.writing):
        raise BatchMovedError
    return grown & (pinned.writing.appending | now.appending)


def _receipts(root: Path, store: Store) -> Check:
    """Check the chain of receipts and their files, and the chains of other stages.

    A batch is committed before its receipt's file is written.
    """
    faults = []
    for each in reversed(checked_receipts(store, root)):
        path = receipt_path(each.batch.batch_id)
        faults += [f"{path}: {fault}" for fault in each.faults if fault != NOT_WRITTEN]
        if each.checks == "failed":
            faults.append(f"{path}: its batch failed its validation")
    return _check("receipt chain", [*faults, *broken_stage_chains(root)])


def _anchored(root: Path, store: Store, receipts: Receipts, anchor: str) -> Check:
    """Check that a receipt that was noted elsewhere is still in its chain, or is the last one no longer kept."""
    known = {*receipts.sha256s(), store.recall("receipt_anchor_sha256"), *stage_anchors(root)}
    fault = f"no receipt has the sha256 {anchor}: it was removed, or its chain was rewritten, or it is kept no longer"
    return _check("anchor", [] if anchor in known else [fault])


def _hashes(exports: Mapping[str, CommittedExport], unfinished: frozenset[str], records: ExportRecords) -> Check:
    """Check that every export is what its last commit left, followed at most by what a batch is about to commit."""
    faults = []
    for name, export in exports.items():
        if not export.intact:
            problem = export.problem or _where_it_differs(export, records.digests(name))
            faults.append(f"{EXPORT_PATHS[name]}: {problem}")
        elif export.behind and name not in unfinished:
            faults.append(f"{EXPORT_PATHS[name]}: {export.behind} bytes stand behind its committed length")
    return _check("hashes of exports", faults)


def _where_it_differs(export: CommittedExport, known: bytes) -> str:
    """Return what is wrong with the bytes of an export, and in which segments, by the digests in the store."""
    committed, problem = export.committed, "is not what the last commit left"
    if export.file is None:
        return problem
    found = hash_of(export.file.fileno(), committed).digests()
    pieces = [(found[at : at + SHA_BYTES], known[at : at + SHA_BYTES]) for at in range(0, len(known), SHA_BYTES)]
    others = [number * committed.segment_bytes for number, (is_, was) in enumerate(pieces) if is_ != was]
    if len(found) != len(known) or not others:
        return problem
    return f"{problem} in the {committed.segment_bytes} bytes from {', '.join(map(str, others[:SHOWN]))} on"


def _accounting(ledger: Ledger, export_records: ExportRecords, exports: Mapping[str, CommittedExport]) -> Check:
    """Check that no row is lost: every judged line is exported or quarantined, and the files hold as many rows."""
    totals, records = ledger.totals(), export_records.exports()
    faults = [
        f"{dataset}: {ledger.judged_rows(dataset)} rows were judged, {totals.live(dataset)} have an outcome"
        for dataset in ROW_DATASETS
        if totals.live(dataset) != ledger.judged_rows(dataset)
    ]
    faults += [
        f"{export.shown}: has {export.line_count} lines, {export.committed.rows} are recorded"
        for export in exports.values()
        if export.intact and export.line_count != export.committed.rows
    ]
    for dataset in Dataset:
        for name, rows in (
            (dataset.value, totals.exported(dataset)),
            (f"quarantine_{dataset}", totals.quarantined(dataset)),
        ):
            stands = records[name].committed.rows + export_records.missing_rows(name)
            if stands != rows:
                faults.append(f"{EXPORT_PATHS[name]}: {stands} rows stand, {rows} are accounted for")
    return _check("accounting", faults)


def _schemas(exports: Mapping[str, Lines]) -> Check:
    """Check that every dataset row passes its schema, and that no id occurs twice."""
    faults = []
    for dataset in Dataset:
        seen: set[str] = set()
        for number, line in enumerate(exports[dataset.value]()):
            row = parse_object(line[:-1]).value
            wrong = faults_of(dataset, row) if row is not None else ("is no JSON object",)
            if wrong:
                faults.append(f"{EXPORT_PATHS[dataset.value]}, row {number}: {'; '.join(wrong)}")
            elif row is not None:
                if row["id"] in seen:
                    faults.append(f"{EXPORT_PATHS[dataset.value]}: {row['id']} stands twice")
                seen.add(row["id"])
    return _check("rows and their schemas", faults)


def _firewall(store: Store, options: Options, exports: Mapping[str, Lines], report: Report) -> Check:
    """Check that no exported row or side of a pair has a current verdict that forbids it, by those in the store.

    Verdicts are indexed before the batch that follows from them. A row that this batch is to withdraw is no fault yet.
    """
    if not options.revoke:
        return Check("firewall (revoke is off)")
    verdicts, views = Verdicts(store), Views(store)
    faults = []
    leaving = 0
    for dataset in Dataset:
        for line in exports[dataset.value]():
            row = parse_object(line[:-1]).value or {}
            told = []
            for side in ("chosen", "rejected") if dataset is Dataset.PREFERENCE else ("source",):
                run_id = str(row.get(f"{side}_run_id"))
                in_force = verdicts.in_force(run_id, options)
                verdict = in_force.rag if dataset is Dataset.RAG else in_force.sft
                if verdict is not None and (
                    verdict is Category.ACCEPTED if side == "rejected" else options.forbids(dataset, verdict)
                ):
                    told.append((run_id, f"{row.get('id')}: the current verdict of its {side} run is {verdict}"))
            if any(views.is_to_leave(run_id) for run_id, _ in told):
                leaving += 1
            else:
                faults += [text for _, text in told]
    if leaving:
        report.changed.append(f"firewall: {leaving} rows are to leave with the batch that is due")
    return _check("firewall", faults)


def _deep(
    root: Path, store: Store, options: Options, exports: Mapping[str, Lines], report: Report, progress: Tell | None
) -> None:
    """Compare the exports with a naive full pass over the current inputs.

    Lines are remembered by their digests, since the exports may be larger than the memory.
    """
    report.changed += _changed_inputs(root, store)
    retained = retained_of(Exceptions(store), lambda name: exports[name](), keep=_brief)
    try:
        inputs = LakeOnDisk(root, options)
        # Read three times: for the verdicts, for the rows, and for the sides of pairs.
        inputs.read = Reading(progress, 3 * inputs.bytes).add
        full = oracle.export(inputs, options, missing_files=path_check(options), retained=retained, keep=_brief)
    except InputChanged as error:
        report.changed.append(error.path)
        report.checks.append(Check("deep (inputs changed meanwhile)"))
        return
    report.changed += sorted(set(_changed_inputs(root, store)) - set(report.changed))
    report.kept_exported = Retained(store).counts()
    moved = [f"{at.partition} line {at.line}: its line is in a present partition" for at in full.left_behind]
    report.checks.append(_deep_check("deep: absent verdicts", moved, report))
    report.kept = len(full.retained_rows) + len(full.retained_pairs) + full.kept
    for dataset in Dataset:
        faults = _compare_dataset(full.exported[dataset], exports[dataset.value]())
        report.checks.append(_deep_check(f"deep: {dataset}", faults, report))
        faults = _compare_quarantine(Counter(full.quarantined[dataset]), exports[f"quarantine_{dataset}"]())
        report.checks.append(_deep_check(f"deep: quarantine of {dataset}", faults, report))


def _brief(placed: oracle.Placed) -> oracle.Placed:
    """Return the outcome with its line as a digest. For a quarantine line, the text that names it is appended."""
    digest = digest_of(placed.line)
    return placed._replace(line=digest if placed.id is not None else digest + _place(placed.line).encode())


def _deep_check(name: str, faults: list[str], report: Report) -> Check:
    if report.changed and faults:
        # Inputs that are not judged yet can explain a difference; a check after the next batch decides.
        report.changed.append(f"{name}: {counted(len(faults), 'difference')}, inputs changed meanwhile")
        return Check(f"{name} (inputs changed meanwhile)")
    return _check(name, faults)


def _changed_inputs(root: Path, store: Store) -> list[str]:
    """Return the inputs that differ from what the store has judged, such as an absent file that is there again."""
    files, scan = Inputs(store).files(), lake.scan(root)
    plan = compare(scan.facts(), files, scan.is_unknown)
    changed = [tree_path(*key) for key, _ in plan.to_read] + [tree_path(*key) for key in plan.gone]
    if Work(store).waiting().anything:
        changed.append("rows that wait to be judged")
    return sorted(changed)


def _compare_dataset(wanted: dict[str, bytes], lines: Iterable[bytes]) -> list[str]:
    missing = dict(wanted)
    faults = []
    for line in lines:
        id_ = str((parse_object(line[:-1]).value or {}).get("id"))
        expected = missing.pop(id_, None)
        if expected != _brief(oracle.Placed(id_, unstamped_sample(line))).line:
            faults.append(f"{'extra' if expected is None else 'different'}: {id_}")
    return faults + [f"missing: {id_}" for id_ in missing]


def _compare_quarantine(wanted: Counter[bytes], lines: Iterable[bytes]) -> list[str]:
    found = Counter(_brief(oracle.Placed(None, unstamped_quarantine(line))).line for line in lines)
    return [f"extra: {_told(line)}" for line in (found - wanted).elements()] + [
        f"missing: {_told(line)}" for line in (wanted - found).elements()
    ]


def _told(brief: bytes) -> str:
    return brief[DIGEST_BYTES:].decode()


def _place(line: bytes) -> str:
    row = parse_object(line[:-1], max_depth=QUOTED_DEPTH).value or {}
    at = row.get("location") or {}
    return f"{row.get('reason')} at {at.get('partition')} line {at.get('line_offset')}"


def _check(name: str, faults: list[str]) -> Check:
    return Check(name, len(faults), tuple(faults[:SHOWN]))
