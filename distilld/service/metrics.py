"""Metrics for a monitor: a Prometheus text file, replaced after every pass (``metrics_file``; docs/operations.md).

``METRICS`` is the closed list of names. The file uses a registry of our own, so it holds no other metrics about this
process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from distilld.files.durable import replace_file

_MODE: Final = 0o644
"""The mode of a new file: the exporter that reads it runs as another user."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric's kind, labels and meaning. A counter counts from the daemon's start."""

    kind: Literal["counter", "gauge"]
    labels: tuple[str, ...]
    meaning: str


METRICS: Final[Mapping[str, Metric]] = MappingProxyType(
    {
        "distilld_info": Metric("gauge", ("version",), "Always 1; the version is in the label."),
        "distilld_start_time_seconds": Metric("gauge", (), "When the daemon started, in seconds since the epoch."),
        "distilld_last_scan_time_seconds": Metric("gauge", (), "When the last pass that worked ended."),
        "distilld_last_batch_time_seconds": Metric("gauge", (), "When the last batch of this process was committed."),
        "distilld_last_batch_duration_seconds": Metric("gauge", (), "How long that batch took."),
        "distilld_passes_total": Metric("counter", (), "Passes that worked."),
        "distilld_batches_total": Metric("counter", (), "Batches that were committed."),
        "distilld_failures_total": Metric("counter", (), "Passes that failed."),
        "distilld_failing": Metric("gauge", (), "1 from a failure to the next pass that works, else 0."),
        "distilld_rows_indexed_total": Metric("counter", (), "Input rows whose facts were taken in."),
        "distilld_rows_judged_total": Metric("counter", (), "Scored rows that were judged."),
        "distilld_read_bytes_total": Metric("counter", (), "Bytes read from inputs."),
        "distilld_rows_appended_total": Metric("counter", ("dataset",), "Rows appended to a dataset."),
        "distilld_rows_withdrawn_total": Metric("counter", ("dataset",), "Rows that left a dataset for good."),
        "distilld_rows": Metric("gauge", ("dataset",), "Rows of a dataset."),
        "distilld_retained_rows": Metric("gauge", ("dataset",), "Of these, rows that no present input gives."),
        "distilld_quarantined_rows": Metric("gauge", ("dataset", "reason"), "Rows that are quarantined, by reason."),
        "distilld_tripwire_rows": Metric(
            "gauge", ("dataset",), "Vanished rows that are retained until 'distilld prune'."
        ),
        "distilld_waiting_rows": Metric("gauge", (), "Rows that are yet to be judged."),
        "distilld_partition_files": Metric("gauge", ("tree",), "Partition files that the last scan saw."),
        "distilld_malformed_lines": Metric("gauge", ("tree",), "Malformed lines in partition files that are there."),
        "distilld_pending_tails": Metric("gauge", (), "Partition files whose last line is not finished."),
        "distilld_unsettled_files": Metric("gauge", (), "Partition files that are left alone until they are still."),
        "distilld_lag_seconds": Metric(
            "gauge", (), "For how long the file has been waiting that waits longest to be read; 0: none waits."
        ),
        "distilld_exports_tampered": Metric(
            "gauge", (), "How often exports were changed from outside within an hour; 3 stands for more."
        ),
        "distilld_unreadable_inputs": Metric("gauge", (), "Inputs that cannot be read."),
        "distilld_overdue_withdrawal_seconds": Metric(
            "gauge", (), "How long rows have been waiting to leave that a failure keeps in a dataset; 0: none waits."
        ),
        "distilld_watched_folders": Metric("gauge", (), "Folders whose file events are listened to; 0: it polls."),
        "distilld_chain_head": Metric(
            "gauge", ("stage", "sha256"), "Always 1; the newest receipt of each chain stands in the labels."
        ),
        "distilld_state_bytes": Metric("gauge", (), "Bytes of the state store, its log included."),
    }
)


class Metrics(Collector):
    """Holds the values and writes them to the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values: dict[str, dict[tuple[str, ...], float]] = {
            name: {} if metric.labels else {(): 0.0} for name, metric in METRICS.items()
        }
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def set(self, name: str, value: float, *labels: str) -> None:
        """Set one value."""
        self._values[name][labels] = value

    def replace(self, name: str, values: Iterable[tuple[tuple[str, ...], float]]) -> None:
        """Set a metric for these labels, and remove all its other labels."""
        self._values[name].clear()
        self._values[name].update(values)

    def add(self, name: str, value: float, *labels: str) -> None:
        """Add to one value."""
        self._values[name][labels] = self._values[name].get(labels, 0.0) + value

    def write(self) -> None:
        """Replace the file; keep the mode, owner and group that an operator gave it.

        Raises:
            OSError: The system refused.
        """
        replace_file(self.path, generate_latest(self._registry), mode=_MODE, lasting=False)

    def collect(self) -> Iterator[Family]:
        """Yield the metrics with their values, for the registry."""
        for name, metric in METRICS.items():
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = kind(name, metric.meaning, labels=metric.labels)
            for labels, value in self._values[name].items():
                family.add_metric(labels, value)
            yield family
