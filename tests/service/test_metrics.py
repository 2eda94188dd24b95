"""The metrics file: that its names are the documented ones, and its figures those of the lake."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from distilld.config.load import load
from distilld.config.settings import Settings
from distilld.core.model import Dataset, Trigger
from distilld.engine.engine import Engine
from distilld.engine.pass_result import PassResult
from distilld.publish.commit import CommittedBatch
from distilld.publish.reading import ExportWriteError
from distilld.service.metrics import METRICS, Metrics
from distilld.service.reporter import Bulletin
from distilld.service.run_once import writer
from distilld.service.systemd import Notifier
from distilld.store.retained import Retained
from tests.support.lake_by_formula import partition_of, write_bench_lake

REPOSITORY = Path(__file__).parents[2]

Samples = dict[tuple[str, tuple[str, ...]], float]


def samples(path: Path) -> Samples:
    """What a Prometheus server would read: values by name and label values."""
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(path.read_text())
        for sample in family.samples
    }


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A lake of 105 rows, and a metrics file."""
    write_bench_lake(tmp_path / "lake", rows=105, partitions=3, text_bytes=100)
    flags = {"root": tmp_path / "lake", "metrics_file": tmp_path / "distilld.prom"}
    return load(flags=flags, environ={}, config_file=None, cwd=tmp_path)


def test_file_keeps_the_mode_that_an_operator_gave_it(tmp_path: Path) -> None:
    """A new one is readable by all under the unit's umask; chmod and chgrp hold for good.

    The story: after each pass the file was 0640 again, and the node exporter lost its figures.
    """
    path = tmp_path / "m.prom"
    before = os.umask(0o027)
    try:
        Metrics(path).write()
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        path.chmod(0o604)
        Metrics(path).write()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o604
    assert [each.name for each in tmp_path.iterdir()] == ["m.prom"]


def one_pass(engine: Engine) -> PassResult:
    with capture_logs():
        return engine.run_pass(Trigger.STARTUP)


def test_file_holds_what_the_table_names(tmp_path: Path) -> None:
    """Every metric without labels is there from the start, with its kind and its meaning; nothing else is."""
    metrics = Metrics(tmp_path / "m.prom")
    metrics.write()
    text = (tmp_path / "m.prom").read_text()
    assert dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)) == {
        name: metric.kind for name, metric in METRICS.items()
    }
    assert {name for name, _ in samples(tmp_path / "m.prom")} == {
        name for name, metric in METRICS.items() if not metric.labels
    }


def test_names_are_as_prometheus_wants_them() -> None:
    """Names begin with the program's, counters end in _total, seconds and bytes are base units."""
    for name, metric in METRICS.items():
        assert re.fullmatch(r"distilld(_[a-z]+)+", name)
        assert name.endswith("_total") == (metric.kind == "counter")
        assert not re.search(r"_(ms|milliseconds|kib|mib|percent)(_|$)", name)


@pytest.mark.parametrize("name", ["alerts.yml", "grafana.json"])
def test_rules_and_dashboard_name_metrics_that_there_are(name: str) -> None:
    """No alert waits for a metric that was renamed, and each label that is asked for is one of the metric."""
    text = (REPOSITORY / "monitoring" / name).read_text(encoding="utf-8")
    named = set(re.findall(r"\bdistilld_[a-z_]+", text))
    assert len(named) > 5
    assert named <= set(METRICS)
    if name == "grafana.json":
        assert len(json.loads(text)["panels"]) == 10
    else:
        rules = pytest.importorskip("yaml").safe_load(text)["groups"][0]["rules"]
        assert all({"alert", "expr", "labels", "annotations"} <= rule.keys() for rule in rules)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian's package prometheus) is not installed")
def test_prometheus_takes_the_rules() -> None:
    """Prometheus' own check finds no fault in the alert rules."""
    rules = REPOSITORY / "monitoring" / "alerts.yml"
    checked = subprocess.run(["promtool", "check", "rules", rules], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_docs_name_every_metric() -> None:
    """The table in docs/operations.md holds exactly the metrics, in their order, with kind, labels and meaning."""
    text = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(distilld_[a-z_]+)` \| (\w+) \|(.*?)\| (.+) \|$", text, flags=re.MULTILINE)
    assert [(name, kind, tuple(re.findall(r"`(\w+)`", labels)), meaning) for name, kind, labels, meaning in rows] == [
        (name, metric.kind, metric.labels, metric.meaning) for name, metric in METRICS.items()
    ]


def test_figures_are_those_of_the_lake(settings: Settings, tmp_path: Path) -> None:
    """After a pass the file tells what it did and what stands in the exports; after the next, what was added."""
    with capture_logs(), writer(settings) as engine:
        bulletin = Bulletin(settings, engine, Notifier(None), clock=lambda: 1_700_000_000 * 10**9)
        result = one_pass(engine)
        bulletin.passed(result, watching="events", folders=8)
        first = samples(tmp_path / "distilld.prom")
        bulletin.passed(one_pass(engine), watching="the limit", folders=0)
        second = samples(tmp_path / "distilld.prom")
    totals = result.batches[-1].receipt["record_counts"]["per_exporter"]
    assert first["distilld_rows", ("rag",)] == totals["rag"]["rows"] == 58
    assert first["distilld_rows_appended_total", ("rag",)] == 58
    assert sum(value for (name, _), value in first.items() if name == "distilld_quarantined_rows") == sum(
        each["quarantine_rows"] for each in totals.values()
    )
    assert first["distilld_rows_judged_total", ()] == 105
    assert first["distilld_partition_files", ("evidence",)] == 3
    assert first["distilld_watched_folders", ()] == 8
    assert first["distilld_last_scan_time_seconds", ()] == 1_700_000_000
    assert first["distilld_state_bytes", ()] > 0
    assert second["distilld_passes_total", ()] == 2
    assert second["distilld_batches_total", ()] == first["distilld_batches_total", ()] == 1
    assert second["distilld_watched_folders", ()] == 0
    used = {name for name, _ in first}
    assert used == set(METRICS)


def test_rows_that_are_kept_without_their_evidence_are_retained(settings: Settings, tmp_path: Path) -> None:
    """The story: rows whose evidence file is absent were none of those that no present input gives."""
    with capture_logs(), writer(settings) as engine:
        bulletin = Bulletin(settings, engine, Notifier(None))
        one_pass(engine)
        (settings.root / "data/evidence" / partition_of(0)).unlink()
        bulletin.passed(one_pass(engine), watching="events", folders=8)
        kept = {(each.value,): 0 for each in Dataset}
        for dataset, _, rows in Retained(engine.store).counts():
            kept[dataset.value,] += rows
    told = samples(tmp_path / "distilld.prom")
    assert {labels: rows for (name, labels), rows in told.items() if name == "distilld_retained_rows"} == kept
    assert kept["rag",] > 0


def test_lag_is_the_age_of_the_file_that_waits_longest(settings: Settings, tmp_path: Path) -> None:
    """A rewritten file that is not still yet is a lag; once it is read there is none. A damaged export is counted."""
    with capture_logs(), writer(replace(settings, settle_seconds=3600.0)) as engine:
        bulletin = Bulletin(settings, engine, Notifier(None))
        engine.run_pass(Trigger.STARTUP)
        path = settings.root / "data/scored-runs" / partition_of(0)
        path.write_bytes(path.read_bytes()[:-9])
        (settings.root / "exports/sft/instruction_response.jsonl").unlink()
        result = engine.run_pass(Trigger.WATCH)
        bulletin.passed(result, watching="events", folders=1)
        told = samples(tmp_path / "distilld.prom")
        assert told["distilld_lag_seconds", ()] == result.lag_seconds > 0
        assert told["distilld_exports_tampered", ()] == 1
        engine.limits = engine.limits._replace(settle_seconds=0)
        bulletin.passed(engine.run_pass(Trigger.WATCH), watching="events", folders=1)
        assert samples(tmp_path / "distilld.prom")["distilld_lag_seconds", ()] == 0


def test_failure_shows_and_goes(settings: Settings, tmp_path: Path) -> None:
    """From a failure to the next pass that works, the file says so; an overdue withdrawal shows its age."""
    moment = [1_700_000_000 * 10**9]
    with capture_logs(), writer(settings) as engine:
        bulletin = Bulletin(settings, engine, Notifier(None), clock=lambda: moment[0])
        bulletin.failed("no room", "make some", overdue=True)
        moment[0] += 7 * 10**9
        bulletin.failed("no room", "make some", overdue=True)
        failing = samples(tmp_path / "distilld.prom")
        bulletin.passed(one_pass(engine), watching="events", folders=8)
        over = samples(tmp_path / "distilld.prom")
    assert failing["distilld_failing", ()] == 1
    assert failing["distilld_failures_total", ()] == 2
    assert failing["distilld_overdue_withdrawal_seconds", ()] == 7
    assert over["distilld_failing", ()] == 0
    assert over["distilld_overdue_withdrawal_seconds", ()] == 0


def test_file_that_cannot_be_written_stops_nothing(settings: Settings, tmp_path: Path) -> None:
    """A missing folder is told once, not at every pass; when it is there the file is written."""

    path = tmp_path / "missing" / "distilld.prom"
    with capture_logs() as lines, writer(replace(settings, metrics_file=path)) as engine:
        bulletin = Bulletin(replace(settings, metrics_file=path), engine, Notifier(None))
        for _ in range(3):
            bulletin.passed(PassResult(), watching="events", folders=8)
        assert [line["event"] for line in lines].count("metrics_failed") == 1
        path.parent.mkdir()
        bulletin.passed(PassResult(), watching="events", folders=8)
    assert path.exists()
    assert [each.name for each in path.parent.iterdir()] == ["distilld.prom"]


def test_work_that_changed_nothing_counts(settings: Settings, tmp_path: Path) -> None:
    """The story: rows that were judged, and bytes that were read, without a batch were in the report of a run alone."""
    with capture_logs(), writer(settings) as engine:
        bulletin = Bulletin(settings, engine, Notifier(None))
        first = one_pass(engine)
        bulletin.passed(first, watching="events", folders=8)
        engine.reconfigure(replace(settings.options(), max_exports_per_run=999), engine.limits)
        again = one_pass(engine)
        bulletin.passed(again, watching="events", folders=8)
    assert not again.batches
    told = samples(tmp_path / "distilld.prom")
    assert told["distilld_rows_judged_total", ()] == first.rows_judged + again.rows_judged == 210
    assert told["distilld_read_bytes_total", ()] == first.bytes_read + again.bytes_read > first.bytes_read


def test_counters_move_with_the_file(settings: Settings, tmp_path: Path) -> None:
    """The story: with another metrics_file the counters began again, and did not count from the daemon's start."""
    moved = tmp_path / "moved.prom"
    with capture_logs(), writer(settings) as engine:
        bulletin = Bulletin(settings, engine, Notifier(None))
        bulletin.passed(one_pass(engine), watching="events", folders=8)
        bulletin.take(replace(settings, metrics_file=moved))
        bulletin.passed(one_pass(engine), watching="events", folders=8)
    told = samples(moved)
    assert told["distilld_passes_total", ()] == 2
    assert told["distilld_rows_judged_total", ()] == 105


def test_batches_of_a_pass_that_failed_count(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The story: what was committed before the failure was in receipts and log, and in no metric, for good."""
    with capture_logs(), writer(settings) as engine:
        bulletin = Bulletin(settings, engine, Notifier(None))
        engine.limits = engine.limits._replace(batch_rows=40)
        commit = engine.committer.commit

        def fail_later(*given: Any, **more: Any) -> CommittedBatch:
            if engine.receipts.last_batch() is not None:
                raise ExportWriteError("exports", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
            return commit(*given, **more)

        with monkeypatch.context() as patched:
            patched.setattr(engine.committer, "commit", fail_later)
            with pytest.raises(ExportWriteError):
                one_pass(engine)
        bulletin.failed("no room", "make some", overdue=False)
        bulletin.failed("no room", "make some", overdue=False)
        failing = samples(tmp_path / "distilld.prom")
        assert failing["distilld_batches_total", ()] == 1
        assert 0 < failing["distilld_rows_judged_total", ()] < 105
        assert failing["distilld_rows_indexed_total", ()] == 210
        assert failing["distilld_rows", ("rag",)] == failing["distilld_rows_appended_total", ("rag",)] > 0
        assert failing["distilld_waiting_rows", ()] > 0
        engine.committer.recover()
        bulletin.passed(one_pass(engine), watching="events", folders=8)
        batches = engine.receipts.last_batch()
    over = samples(tmp_path / "distilld.prom")
    assert batches is not None
    assert over["distilld_batches_total", ()] == batches.batch > 1
    assert over["distilld_rows_judged_total", ()] == 105
    assert over["distilld_rows_indexed_total", ()] == 210
    assert over["distilld_rows", ("rag",)] == over["distilld_rows_appended_total", ("rag",)] == 58
    assert over["distilld_waiting_rows", ()] == 0


def test_no_file_no_library() -> None:
    """Without metrics_file, prometheus_client is not even imported."""
    import subprocess
    import sys

    code = "import distilld.service.daemon, sys; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0
