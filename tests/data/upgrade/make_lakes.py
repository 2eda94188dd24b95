"""Write the lakes of this folder again: ``python make_lakes.py CHECKOUT``, with a checkout of the commit to upgrade from.

Each ``NAME.tar.xz`` is a lake as that commit left it (inputs, exports, receipts and state store). ``expected.json.xz`` says
what that same commit's next runs made of each. The names that are patched below are those of commit 5c12707.
"""

from __future__ import annotations

import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
CONFIG: Final = (
    'source_files_root = "/srv/sources"\nmissing_source_file = "?"\ntripwire_rows = 5\ntripwire_share = 0.2\n'
)

KILLS: Final = {
    "killed_before_judging": ("distilld.batch", "Engine._judge"),
    "killed_before_commit": ("distilld.commit", "Committer._transact"),
    "killed_after_commit": ("distilld.commit", "Committer.finish"),
    "killed_before_receipt": ("distilld.commit", "Committer._report"),
}
"""Where the process dies: the method is not entered."""
KILL: Final = """
import importlib, os, signal, sys
module, path = sys.argv.pop(1), sys.argv.pop(1)
holder, method = path.split(".")
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
setattr(getattr(importlib.import_module(module), holder), method, die)
from distilld.__main__ import main
main()
"""


def write(root: Path, day: str, name: str, rows: list[tuple[str, str, str]], *, evidence: bool = True) -> None:
    """Append rows (run, task, category) to a partition, and the evidence of each."""
    for tree, lines in (("scored-runs", map(scored, rows)), ("evidence", map(told, rows))):
        if tree == "evidence" and not evidence:
            continue
        path = root / "data" / tree / "2026" / "01" / day / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.writelines(f"{json.dumps(line)}\n" for line in lines)


def scored(row: tuple[str, str, str]) -> dict[str, Any]:
    """Return the scored row of a run; what stands behind a '#' in its name is not part of the run's id."""
    run, task, category = row
    return {
        "evidence_run_id": run.partition("#")[0],
        "evidence_task_id": task,
        "category": category,
        "reasons": [f"scored {category}"],
        "provenance": {"source_file": "data/_kb/audits.jsonl", "line_offset": len(run), "sig_hash": f"sig-{run}"},
    }


def told(row: tuple[str, str, str]) -> dict[str, Any]:
    """Return the evidence of a run."""
    run, task, _ = row
    return {
        "run_id": run.partition("#")[0],
        "task_id": task,
        "model_role": "executor",
        "model_name": "model-1",
        "text": f"What run {run} answered to {task}.\nIn two lines — with 'ü'.",
        "source_files": ["src/lib.rs"],
        "provenance": {"source_file": "data/_kb/audits.jsonl"},
    }


def first_inputs(root: Path) -> None:
    """Write the lake of the first run: pairs, duplicates, every kind of held row, a tail."""
    write(root, "01", "a", [(f"a{n}", f"task-{n % 3}", ("accepted", "rejected")[n % 2]) for n in range(8)])
    write(root, "01", "a", [("p1", "task-p", "partially_accepted"), ("p2", "task-p", "accepted")])
    write(root, "01", "a", [("forbidden", "task-f", "accepted"), ("cleared", "task-f", "accepted")])
    write(root, "01", "a", [("h1", "task-0", "needs_human_review")])
    write(root, "02", "gone", [("forbidden#2", "task-f", "rejected"), ("cleared#2", "task-f", "rejected")])
    write(root, "02", "gone", [("g1", "task-g", "accepted")])
    write(root, "02", "gone", [("g2", "task-g", "rejected"), ("g3", "task-0", "accepted"), ("g4", "", "rejected")])
    write(root, "03", "loses_evidence", [("e1", "task-e", "accepted"), ("e2", "task-e", "rejected")])
    write(root, "04", "shrinks", [(f"s{n}", f"task-s{n // 2}", ("accepted", "rejected")[n % 2]) for n in range(30)])
    write(root, "05", "late", [("l1", "task-l", "accepted"), ("l2", "task-l", "rejected")], evidence=False)
    write(root, "06", "copies", [("a0", "task-0", "accepted"), ("c1", "task-c", "accepted")])
    path = root / "data" / "scored-runs" / "2026" / "01" / "06" / "copies.jsonl"
    with path.open("a") as file:
        file.write('not JSON\n[]\n{"evidence_run_id": "c2", "evidence_ta')


def old_exports(root: Path) -> None:
    """Write exports from before any store, with rows that no input gives."""
    provenance = {"source_file": "data/_kb/old.jsonl", "line_offset": 1, "sig_hash": "old", "recorded_at": "T"}
    rag = {
        "schema_version": 1, "id": "rag-00000000000000aa", "title": "Old", "content": "Old", "tags": ["task:old"],
        "source_run_id": "old-1", "success_score": "accepted", "source_category": "accepted", "embedding_text": "Old",
        "created_at": "2025-12-31T00:00:00.000Z", "provenance": provenance,
    }  # fmt: skip
    pair = {
        "schema_version": 1, "id": "pref-00000000000000bb", "prompt": "Task: old", "chosen": "Better",
        "rejected": "Worse", "reason": "old", "chosen_run_id": "old-1", "rejected_run_id": "old-2",
        "created_at": "2025-12-31T00:00:00.000Z", "provenance": provenance,
    }  # fmt: skip
    for name, row in (("rag/playbooks", rag), ("preference/chosen_rejected", pair)):
        path = root / "exports" / f"{name}.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(row, separators=(",", ":")) + "\n")


def lose_inputs(root: Path) -> None:
    """Take away a partition, an evidence file and most lines of another; re-score two runs."""
    data = root / "data"
    for tree in ("scored-runs", "evidence"):
        (data / tree / "2026/01/02/gone.jsonl").unlink()
    (data / "evidence/2026/01/03/loses_evidence.jsonl").unlink()
    shrinks = data / "scored-runs/2026/01/04/shrinks.jsonl"
    shrinks.write_bytes(b"".join(shrinks.read_bytes().splitlines(keepends=True)[:2]))
    write(root, "07", "verdicts", [("a2#2", "task-2", "rejected"), ("g1#2", "task-g", "rejected")])


def next_inputs(root: Path) -> None:
    """Write what the next run is to find: new rows, a rejection, late evidence, the end of a tail."""
    write(root, "08", "new", [("n1", "task-n", "accepted"), ("n2", "task-n", "rejected"), ("a4#2", "", "rejected")])
    write(root, "08", "new", [("cleared#3", "task-f", "accepted"), ("s3#2", "task-s1", "accepted")])
    path = root / "data/evidence/2026/01/05/late.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [("l1", "task-l", "accepted"), ("l2", "task-l", "rejected")]
    path.write_text("".join(f"{json.dumps(told(row))}\n" for row in rows))
    with (root / "data/scored-runs/2026/01/06/copies.jsonl").open("a") as file:
        file.write('sk_id": "task-c", "category": "rejected"}\n')


def give_back(root: Path) -> None:
    """Bring the absent partition back, with its rejection turned into an acceptance."""
    write(root, "02", "gone", [("forbidden#2", "task-f", "accepted"), ("g1", "task-g", "accepted")])
    write(root, "02", "gone", [("g3", "task-0", "accepted")])


STEPS: Final[dict[str, tuple[Callable[[Path], None], tuple[str, ...]]]] = {
    "run": (lambda _: None, ("run", "--once")),
    "partial": (lambda _: None, ("run", "--once", "--include-partial")),
    "returned": (give_back, ("run", "--once")),
    "pruned": (lambda _: None, ("prune", "--yes")),
}
"""What is done to a lake, one after the other: a change of its inputs, and a command."""


def steps_of(name: str) -> dict[str, tuple[Callable[[Path], None], tuple[str, ...]]]:
    """Return the steps of one lake. Where a run was killed, the next one and one that judges all rows again suffice."""
    return {step: what for step, what in STEPS.items() if name == "at_rest" or step in ("run", "partial")}


def command(root: Path, *arguments: str) -> list[str]:
    """Return the arguments of a command over a lake of this folder."""
    return [
        "--config",
        str(root / "distilld.toml"),
        "--root",
        str(root),
        "--state",
        str(root / "distilld.db"),
        *arguments,
    ]


def exports(root: Path) -> dict[str, list[str]]:
    """Return the lines of the nine exports."""
    files = sorted((root / "exports").glob("*/*.jsonl"))
    return {path.relative_to(root).as_posix(): path.read_text().splitlines() for path in files}


def _run(checkout: Path, root: Path, *arguments: str, kill: tuple[str, str] | None = None) -> int:
    start = ["-c", KILL, *kill] if kill else ["-m", "distilld"]
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(checkout)}
    return subprocess.run([sys.executable, *start, *command(root, *arguments)], env=environ, check=False).returncode


def main(checkout: Path) -> None:
    """Write the archives and what is expected of them."""
    with tempfile.TemporaryDirectory() as parent:
        root, kept = Path(parent) / "lake", Path(parent) / "kept"
        root.mkdir()
        (root / "distilld.toml").write_text(CONFIG)
        old_exports(root)
        first_inputs(root)
        assert _run(checkout, root, "run", "--once") == 0
        lose_inputs(root)
        assert _run(checkout, root, "run", "--once") == 0
        next_inputs(root)
        shutil.copytree(root, kept)
        expected: dict[str, dict[str, dict[str, list[str]]]] = {}
        for name, kill in {"at_rest": None, **KILLS}.items():
            shutil.rmtree(root)
            shutil.copytree(kept, root)
            if kill:
                assert _run(checkout, root, "run", "--once", kill=kill) == -9
            (root / "distilld.db-shm").unlink(missing_ok=True)
            with tarfile.open(HERE / f"{name}.tar.xz", "w:xz") as archive:
                archive.add(root, "lake")
            expected[name] = {}
            for step, (change, arguments) in steps_of(name).items():
                change(root)
                assert _run(checkout, root, *arguments) == 0, (name, step)
                assert _run(checkout, root, "verify", "--deep") == 0, (name, step)
                expected[name][step] = exports(root)
        with lzma.open(HERE / "expected.json.xz", "wt") as file:
            json.dump(expected, file)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
