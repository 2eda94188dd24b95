"""A receipt around somebody else's work: what is in it, its chain, the command's exit code and the signals it gets."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from distilld.core.model import REPORTS, UsageError
from distilld.files.regular import read_regular
from distilld.publish import stage_chains
from distilld.publish.receipt_files import receipt_bytes, receipt_path
from distilld.publish.stage_chains import broken_stage_chains, stage_receipts
from distilld.service import stage
from distilld.service.stage import StageRun, run_stage
from tests.support.command import command, distilld, environment, once, phase4
from tests.support.running import until

OK = ("true",)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with capture_logs():
        yield


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with two inputs in nested folders."""
    for number in (1, 2):
        path = tmp_path / f"lake/data/in/{number}/a.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("{}\n" * number)
    return tmp_path / "lake"


def ran(
    root: Path,
    *words: str,
    name: str = "score_runs",
    inputs: tuple[str, ...] = (),
    outputs: tuple[str, ...] = (),
    keep: int = 0,
) -> StageRun:
    """Run a stage."""
    return run_stage(root, name, inputs=inputs, outputs=outputs, command=words or OK, receipts_keep=keep)


def shell(root: Path, script: str, **given: Any) -> StageRun:
    """Run a stage that is a line of shell, at home in the root."""
    return ran(root, "sh", "-c", f"cd {root} && {script}", **given)


def receipt(root: Path, run: StageRun) -> dict[str, Any]:
    """What it wrote."""
    assert run.receipt is not None
    found: dict[str, Any] = json.loads((root / run.receipt).read_bytes())
    return found


def test_receipt_tells_what_was_read_and_written(root: Path) -> None:
    """Inputs and outputs stand in it with path, sha256, bytes and lines; so do command, times and exit code."""
    run = shell(root, "cat data/in/*/*.jsonl >out.jsonl", inputs=("data/in/**/*.jsonl",), outputs=("*.jsonl",))
    assert run.exit_code == 0
    found = receipt(root, run)
    assert [(each["path"], each["lines"], each["change"]) for each in found["inputs"]] == [
        ("data/in/1/a.jsonl", 1, "new"),
        ("data/in/2/a.jsonl", 2, "new"),
    ]
    (out,) = found["outputs"]
    content = (root / "out.jsonl").read_bytes()
    assert out["sha256"] == hashlib.sha256(content).hexdigest()
    assert (out["path"], out["bytes"], out["rows"], out["appended"], out["rewritten"]) == ("out.jsonl", 9, 3, 3, False)
    assert found["stage"] == "score_runs"
    assert found["sequence"] == 1
    assert found["options"]["command"][0] == "sh"
    assert found["validation_pass"] is True
    assert found["record_counts"]["in"] == 3
    assert found["record_counts"]["out"] == 3
    assert found["started_at"] <= found["ended_at"]


def test_form_is_that_of_a_batch(root: Path, tmp_path: Path) -> None:
    """Every key of a batch's receipt but one is in a stage's, and so are those of its inputs and outputs."""
    lake = phase4(tmp_path / "phase4")
    assert once(lake).code == 0
    (path,) = (lake / REPORTS).glob("*/receipt.json")
    batch = json.loads(path.read_bytes())
    found = receipt(root, shell(root, "cp data/in/1/a.jsonl o", inputs=("data/in/1/*",), outputs=("o",)))
    assert batch.pop("copies_begin_after") == {}
    assert list(batch) == [key for key in found if key != "exit_code"]
    for part in ("inputs", "outputs"):
        keys = [key for key in batch[part][0] if key != "segment_bytes"]
        assert keys == list(found[part][0])
    for part in ("git", "record_counts", "work"):
        assert list(batch[part]) == list(found[part])


def test_chain_per_stage(root: Path) -> None:
    """Each receipt names the sha256 of its stage's receipt before it, whatever other stages do in between."""
    runs = [ran(root, name=name) for name in ("a", "b", "a", "a-b", "b", "a")]
    chain = [receipt(root, run) for run in runs if receipt(root, run)["stage"] == "a"]
    assert [each["sequence"] for each in chain] == [1, 2, 3]
    for before, after in zip((runs[0], runs[2]), chain[1:], strict=True):
        assert before.receipt is not None
        digest = hashlib.sha256((root / before.receipt).read_bytes()).hexdigest()
        assert after["previous_receipt_sha256"] == digest
    assert chain[0]["previous_receipt_sha256"] is None


def test_ids_sort_by_time_and_never_meet(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that stands still or steps back, the ids of a stage still grow; a batch of that time is no other."""
    times = iter([5_000_000_000_000_000_000] * 4 + [4_000_000_000_000_000_000] * 10)
    monkeypatch.setattr(time, "time_ns", lambda: next(times))
    ids = [receipt(root, ran(root))["batch_id"] for _ in range(4)]
    assert ids == sorted(set(ids))
    assert all(each.endswith("Z-score_runs") for each in ids)


def test_inputs_say_how_they_changed(root: Path) -> None:
    """Against the stage's receipt before, an input is new, unchanged or rewritten."""
    ran(root, inputs=("data/in/*/*",))
    (root / "data/in/1/a.jsonl").write_text("[]\n")
    (root / "data/in/2/b.jsonl").write_text("")
    found = receipt(root, ran(root, inputs=("data/in/*/*",)))
    assert [each["change"] for each in found["inputs"]] == ["rewritten", "unchanged", "new"]


def test_outputs_say_how_they_changed(root: Path) -> None:
    """An output that grew shows what was appended, one that was written anew that it was, one that stayed neither."""
    for name in ("grows", "anew", "stays"):
        (root / name).write_text("1\n2\n")
    found = receipt(root, shell(root, "echo 3 >>grows; echo 1 >anew", outputs=("grows", "anew", "stays")))
    facts = {each["path"]: (each["appended"], each["withdrawn"], each["rewritten"]) for each in found["outputs"]}
    assert facts == {"anew": (1, 2, True), "grows": (1, 0, False), "stays": (0, 0, False)}


@pytest.mark.parametrize("code", [1, 2, 75, 255])
def test_exit_code_is_the_commands_own(root: Path, code: int) -> None:
    """Whatever it exits with is passed through, and the receipt says that it failed."""
    run = shell(root, f"exit {code}")
    assert run.exit_code == code
    found = receipt(root, run)
    assert found["exit_code"] == code
    assert found["validation_pass"] is False
    assert found["errors"] == [f"the command exited with {code}"]


def test_command_that_cannot_be_run(root: Path) -> None:
    """A command that is not there, or not executable, exits as a shell says it, and leaves a receipt too."""
    run = ran(root, "no-such-command-anywhere")
    assert run.exit_code == 127
    assert run.problems == ("no-such-command-anywhere cannot be run: No such file or directory",)
    run = ran(root, str(root / "data/in/1/a.jsonl"))
    assert run.exit_code == 126
    assert "cannot be run" in receipt(root, run)["errors"][0]


def test_command_that_a_signal_ended(root: Path) -> None:
    """Death by a signal is 128 and its number, and named."""
    run = shell(root, "kill -9 $$")
    assert run.exit_code == 128 + signal.SIGKILL
    assert receipt(root, run)["errors"] == ["the command was ended by SIGKILL"]


WAITING = """
import signal, sys, time
def told(number, frame):
    print(signal.Signals(number).name, file=open(sys.argv[1], "a"), flush=True)
    if number == signal.SIGTERM:
        sys.exit(7)
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, told)
open(sys.argv[1], "a").close()
while True:
    time.sleep(0.01)
"""


def is_in(path: Path, text: str) -> bool:
    """Whether a file holds a text."""
    return text in path.read_text()


def test_signals_are_passed_on(root: Path, tmp_path: Path) -> None:
    """SIGHUP, SIGUSR1 and SIGTERM reach the command, whose answer to them decides; the receipt is written all the same."""
    heard = tmp_path / "heard"
    arguments = command("stage", "score_runs", "--root", str(root), "--", sys.executable, "-c", WAITING, str(heard))
    process = subprocess.Popen(arguments, env=environment(), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(heard.exists, "the command")
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):
            process.send_signal(number)
            until(partial(is_in, heard, number.name), number.name)
        assert process.wait(20) == 7
    finally:
        process.kill()
        process.wait()
    assert len(list((root / REPORTS).glob("*/receipt.json"))) == 1


def test_signal_while_the_command_is_started_is_passed_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended distilld, and the command went on alone without a receipt."""
    real = subprocess.Popen
    lost: list[int] = []

    def start(*arguments: Any, **given: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments, **given)

    monkeypatch.setattr(stage.subprocess, "Popen", start)  # type: ignore[attr-defined]
    before = signal.signal(signal.SIGTERM, lambda number, _: lost.append(number))
    try:
        run = ran(root, "sleep", "60")
        assert (run.exit_code, lost) == (128 + signal.SIGTERM, [])
    finally:
        signal.signal(signal.SIGTERM, before)


def test_receipt_that_cannot_be_written_is_told_with_what_to_do(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command did its work, so its printed lines say nothing of it."""
    (root / "reports").write_text("")
    with capture_logs() as lines:
        run = shell(root, "touch ran")
    assert (root / "ran").exists()
    assert (run.exit_code, run.receipt) == (1, None)
    (line,) = lines
    assert run.problems == (f"{line['problem']} ({line['hint']})",)


def test_globs(root: Path) -> None:
    """A glob is taken from the root; '**' is any depth, none too; folders and links to nothing are no files."""
    (root / "data/in/dangling").symlink_to("nowhere")
    (root / "data/in/1/.hidden").write_text("")
    cases = {
        "data/in/*/a.jsonl": 2,
        "data/**/a.jsonl": 2,
        "data/in/**": 3,
        "data/in/1/**/a.jsonl": 1,
        "data/in/?/*": 3,
        "data/in/[2-9]/*": 1,
        "data/in/*": 0,
        "./data/in/1/a.jsonl": 1,
        f"{root}/data/in/*/a.jsonl": 2,
        "nowhere/*": 0,
        "data/in/1/a.jsonl/x": 0,
    }
    found = {glob: len(receipt(root, ran(root, inputs=(glob,)))["inputs"]) for glob in cases}
    assert found == cases


def test_glob_that_matches_nothing_is_a_warning(root: Path) -> None:
    """It stops nothing, and is told."""
    run = ran(root, inputs=("nothing/*",), outputs=("none",))
    assert run.exit_code == 0
    assert receipt(root, run)["warnings"] == [
        "the input nothing/* matches no file",
        "the output none matches no file",
    ]


def test_input_that_changes_meanwhile_is_a_warning(root: Path) -> None:
    """An input that somebody writes to while the stage runs is named; one that is an output as well is not."""
    run = shell(root, "echo x >>data/in/1/a.jsonl; echo x >>data/in/2/a.jsonl", inputs=("data/in/**",),
                outputs=("data/in/2/a.jsonl",))  # fmt: skip
    assert receipt(root, run)["warnings"] == ["data/in/1/a.jsonl changed while the stage ran"]


def test_what_is_not_utf8_stands_escaped_in_the_receipt(root: Path) -> None:
    """Names of files, globs and words of the command; a file is known again the next time.

    The story: the receipt and the exit code were lost to a traceback, after the command had run.
    """
    name, words = os.fsdecode(b"caf\xe9"), ("sh", "-c", 'echo >>"$0"; exit 7')
    (root / "data/in" / name).write_text("")
    for change in ("new", "unchanged"):
        run = ran(root, *words, str(root / name), inputs=("data/in/*",), outputs=("c*", f"{name}/*"))
        assert run.exit_code == 7
        found = receipt(root, run)
        assert [(each["path"], each["change"]) for each in found["inputs"]] == [("data/in/caf\\xe9", change)]
        assert [each["path"] for each in found["outputs"]] == ["caf\\xe9"]
        assert found["options"]["command"] == [*words, f"{root}/caf\\xe9"]
        assert found["warnings"] == ["the output caf\\xe9/* matches no file"]
    assert ran(root, name).exit_code == 127
    assert broken_stage_chains(root) == []


def test_listing_that_fails_is_no_empty_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a folder cannot be listed the command is not run: its receipt would lie."""
    real = os.scandir

    def scandir(path: str) -> Any:
        if str(path).endswith("data/in"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="data/in"):
        shell(root, "touch ran", inputs=("data/in/*/*",))
    assert not (root / "ran").exists()


@pytest.mark.parametrize("name", ["", "A", "a b", "a/b", "..", "a.b", "ä", "distill", "a\n"])
def test_names_that_a_stage_cannot_have(root: Path, name: str) -> None:
    """A name is of a to z, digits, '_' and '-'; distilld's own is taken."""
    with pytest.raises(UsageError, match="NAME"):
        ran(root, name=name)
    assert not (root / REPORTS).exists()


def test_newest_receipts_stay(root: Path) -> None:
    """Of a stage's receipts so many stay, and no other stage's goes; the oldest names the last one that went."""
    ran(root, name="other")
    runs = [ran(root, keep=3) for _ in range(5)]
    left = sorted(each.name for each in (root / REPORTS).iterdir())
    assert len(left) == 4
    assert sum(each.endswith("-other") for each in left) == 1
    oldest = receipt(root, runs[2])
    assert oldest["sequence"] == 3
    assert oldest["previous_receipt_sha256"] is not None


def beside(monkeypatch: pytest.MonkeyPatch, go: Callable[[], StageRun]) -> list[StageRun]:
    """Let another run of the stage come and go just before the next one writes its receipt; returns that run."""
    real, found = stage._write, []

    def write(*given: Any) -> tuple[str, str]:
        monkeypatch.setattr(stage, "_write", real)
        found.append(go())
        return real(*given)

    monkeypatch.setattr(stage, "_write", write)
    return found


def test_run_that_ends_first_leaves_the_others_receipt_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two runs of a stage at one time each has its receipt when it ends, even where one is kept.

    The story: the first to end removed the other's folder, which was empty yet, as too old.
    """
    ran(root, keep=1)
    others = beside(monkeypatch, lambda: ran(root, keep=1))
    run = ran(root, keep=1)
    assert (run.exit_code, run.problems) == (0, ())
    assert receipt(root, run)["batch_id"] < receipt(root, others[0])["batch_id"]
    last = ran(root, keep=1)
    assert [each.name for each in (root / REPORTS).iterdir()] == [receipt(root, last)["batch_id"]]


def test_receipt_that_was_cut_off_is_passed_over(root: Path) -> None:
    """A folder without a receipt, left by a kill, does not end the chain."""
    first = ran(root)
    (root / REPORTS / "90001231T000000.000Z-score_runs").mkdir()
    second = receipt(root, ran(root))
    assert second["sequence"] == 2
    assert first.receipt is not None
    assert second["previous_receipt_sha256"] == hashlib.sha256((root / first.receipt).read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["old-{}", "99999999T999999.999Z-score_runs", "99991231T235959.999Z-score_runs"])
def test_folder_that_only_looks_like_a_receipts_is_passed_over(root: Path, name: str) -> None:
    """Neither the name that somebody gave an old one, nor one that names no time or the last there is, is in the chain.

    The story: each of them ended every run of the stage with a traceback, after its command had run.
    """
    first = ran(root)
    folder = (root / str(first.receipt)).parent
    shutil.copytree(folder, folder.with_name(name.format(folder.name)))
    assert receipt(root, ran(root))["sequence"] == 2
    assert broken_stage_chains(root) == []


def test_damaged_receipt_is_told(root: Path) -> None:
    """A chain that cannot go on is not begun anew in silence: exit code 1, though the command did its work."""
    first = ran(root)
    assert first.receipt is not None
    (root / first.receipt).write_text("{}")
    run = shell(root, "touch ran")
    assert (root / "ran").exists()
    assert (run.exit_code, run.receipt) == (1, None)
    assert "no receipt" in run.problems[0]
    assert shell(root, "exit 9").exit_code == 9


def test_fifo_in_the_place_of_a_receipt_is_told(root: Path) -> None:
    """It is not waited for: nobody may ever write to it."""
    first = ran(root)
    _put_fifo(root / str(first.receipt))
    run = ran(root)
    assert (run.exit_code, run.receipt) == (1, None)
    assert run.problems == (f"cannot read {first.receipt}: is no regular file (put it right or take its folder away)",)


def test_distilld_goes_on_beside_it(root: Path, tmp_path: Path) -> None:
    """Receipts of stages are no batches: a lake with a lost store takes over its own chain, and latest.md stays its own."""
    lake = phase4(tmp_path / "phase4")
    assert once(lake).code == 0
    page = (lake / REPORTS / "latest.md").read_bytes()
    assert distilld("stage", "score_runs", "--root", lake, "--", "true", cwd=tmp_path).code == 0
    assert (lake / REPORTS / "latest.md").read_bytes() == page
    assert distilld("receipts", "--root", lake, cwd=tmp_path).code == 0
    for path in (lake / "state").iterdir():
        path.unlink()
    # Partitions that the old quarantine names return with their first reading: here at once, so that it is one batch.
    assert once(lake, DISTILLD_SETTLE_SECONDS="0").code == 0
    batches = sorted(each.name for each in (lake / REPORTS).iterdir() if each.name.endswith("Z"))
    if len(batches) > 1:
        newest = json.loads((lake / REPORTS / batches[-1] / "receipt.json").read_bytes())
        assert (newest["stage"], newest["sequence"]) == ("distill", 2)
    assert distilld("stage", "score_runs", "--root", lake, "--", "false", cwd=tmp_path).code == 1


def test_whole_chains_have_no_broken_link(root: Path) -> None:
    """Each stage's chain is looked at by itself, whatever was removed as too old, and beside a stage that still runs."""
    assert broken_stage_chains(root) == []
    for number in range(3):
        ran(root, keep=2)
        ran(root, name="other", inputs=(f"data/in/{number}/*.jsonl",))
    (root / REPORTS / "99991231T235959.999Z-score_runs").mkdir()
    assert broken_stage_chains(root) == []


@pytest.mark.parametrize("earlier", [0, 1])
def test_runs_at_one_time_break_no_chain(root: Path, monkeypatch: pytest.MonkeyPatch, earlier: int) -> None:
    """Both name the receipt before them, be it kept, or removed as too old, or none."""
    for _ in range(earlier):
        ran(root, keep=2)
    others = beside(monkeypatch, lambda: ran(root, keep=2))
    first, second = receipt(root, ran(root, keep=3)), receipt(root, others[0])
    assert first["previous_receipt_sha256"] == second["previous_receipt_sha256"]
    assert broken_stage_chains(root) == []
    ran(root, keep=3)
    assert len(list((root / REPORTS).iterdir())) == 3
    assert broken_stage_chains(root) == []


def test_as_many_receipts_are_read_as_are_shown(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The story: every receipt of every stage was read and hashed to show the newest one."""
    ran(root)
    for _ in range(9):
        ran(root, name="a")
        ran(root, name="b")
    newest = [ran(root, name=name) for name in ("a", "a", "b")]
    reads: list[Path] = []

    def counted(path: Path) -> bytes:
        reads.append(path)
        return read_regular(path)

    monkeypatch.setattr(stage_chains, "read_regular", counted)
    shown = islice(stage_receipts(root), 3)
    assert [receipt_path(each.batch_id) for each in shown] == [run.receipt for run in reversed(newest)]
    # Of each stage one more than is shown, and the one before it.
    assert len(reads) <= 3 + 3 + 3
    assert len(list(stage_receipts(root))) == 22


def _edit(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"exit_code": 0', b'"exit_code": 1'))


def _put_other_types(path: Path) -> None:
    """The form is distilld's, but not the types."""
    facts = json.loads(path.read_bytes())
    path.write_bytes(receipt_bytes(facts | {"previous_receipt_sha256": ["x"], "exit_code": {}}))


def _lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x\n")


def _put_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


NO_LINK = "the receipt before it is gone, or is not as it was written"
NOT_AS_WRITTEN = "is not as it was written"
NO_FILE = "cannot be read: is no regular file"


@pytest.mark.parametrize(
    ("which", "damage", "told"),
    [
        (0, _edit, {1: NO_LINK}),
        (1, _edit, {2: NO_LINK}),
        (0, _lengthen, {0: NOT_AS_WRITTEN, 1: NO_LINK}),
        (2, _lengthen, {2: NOT_AS_WRITTEN}),
        (1, _put_other_types, {1: NOT_AS_WRITTEN, 2: NO_LINK}),
        (1, Path.unlink, {2: NO_LINK}),
        (1, _put_fifo, {1: NO_FILE, 2: NO_LINK}),
    ],
)
def test_edited_or_lost_receipt_breaks_its_chain(
    root: Path, which: int, damage: Callable[[Path], None], told: dict[int, str]
) -> None:
    """The receipt after it names another digest; one that is no receipt any more is told by itself."""
    receipts = [run.receipt or "" for run in (ran(root), ran(root), ran(root))]
    damage(root / receipts[which])
    assert broken_stage_chains(root) == [f"{receipts[number]}: {what}" for number, what in told.items()]
