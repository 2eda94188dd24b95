"""The settings: one table of keys (SPEC 5.1).

The same table is used to read flags, environment and file (:mod:`distilld.config.load`) and to write the commented
file (:mod:`distilld.config.template`), so checks, messages and file agree. This module imports nothing slow: every
command needs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, get_args

from distilld.config.kinds import SWITCH, TEXT, Kind, address, choice, file_path, number, whole
from distilld.core.model import OnDelete, Options

LogLevel = Literal["debug", "info", "warning", "error"]
Writer = Literal["daemon", "timer"]
LogFormat = Literal["auto", "json", "console"]

DEFAULT_CONFIG_FILE: Final = Path("config", "distilld.toml")
"""The file that is read if none is named, relative to the working directory, if it exists."""

ENVIRONMENT_PREFIX: Final = "DISTILLD_"
ROOT_VARIABLE: Final = "LH_DISTILL_ROOT"
"""A variable of older exporters: it replaces the default of ``root``, and nothing else."""

_BYTES_MOST: Final = 1 << 30
_COUNT_MOST: Final = 1_000_000_000
_DAY_SECONDS: Final = 86_400


@dataclass(frozen=True, slots=True)
class Key:
    """One setting: its name, kind of value, default as in TOML, meaning, and the section that it begins."""

    name: str
    kind: Kind
    default: bool | int | float | str
    meaning: str
    begins: str

    @property
    def variable(self) -> str:
        """Return the name of the environment variable, which takes precedence over the file."""
        return ENVIRONMENT_PREFIX + self.name.upper()


def _key(kind: Kind, default: bool | int | float | str, meaning: str, *, begins: str = "") -> Any:
    """Make a field of Settings; ``begins`` is the heading if it opens a section of the file."""
    return field(metadata={"kind": kind, "default": default, "meaning": meaning, "begins": begins})


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, checked; paths are absolute."""

    root: Path = _key(
        file_path(), ".", "The lakehouse: the folder that holds data/, exports/ and reports/.", begins="Paths"
    )
    state: Path = _key(
        file_path(),
        "state/distilld.db",
        "The state store, one SQLite file on a local disk. A relative path in this file is taken from the root.",
    )

    include_partial: bool = _key(
        SWITCH,
        False,
        "Export partially accepted runs to SFT too. Rejected and unreviewed runs are never exported there.",
        begins="What is exported: a change of these judges every row again",
    )
    include_review: bool = _key(
        SWITCH, False, "Export runs that need a human review to RAG too. Rejected runs are never exported there."
    )
    revoke: bool = _key(
        SWITCH,
        True,
        "A later verdict on a run revokes an earlier one. Set it to false only to compare with the older exporters: "
        "runs that were rejected later then stay in the datasets.",
    )
    check_source_files: bool = _key(
        SWITCH, False, "Quarantine a row if its evidence names a source file that does not exist."
    )
    source_files_root: Path = _key(
        file_path(empty_means="the root"),
        "",
        "Where check_source_files looks for source files. While this folder is missing or empty, rows wait.",
    )
    missing_source_file: str = _key(TEXT, "", "The text in an SFT instruction where the evidence names no source file.")
    max_line_bytes: int = _key(
        whole(1024, _BYTES_MOST), 8_388_608, "A longer line is quarantined without being read into memory."
    )
    max_exports_per_run: int = _key(
        whole(0, _COUNT_MOST),
        1000,
        "One run is exported under at most this many ids, and in pairs of at most this many tasks; its other rows are "
        "quarantined. 0: no limit.",
    )
    on_delete: OnDelete = _key(
        choice(tuple(OnDelete)),
        "keep",
        "When a partition file disappears: 'keep' retains its rows until 'distilld prune', 'withdraw' withdraws them.",
    )

    tripwire_rows: int = _key(
        whole(0, _COUNT_MOST),
        1000,
        "Rows that vanished are retained if one scan would withdraw more than this many of a dataset ...",
        begins="The tripwire: many rows that vanish at once are retained until 'distilld prune'",
    )
    tripwire_share: float = _key(number(0, 1), 0.5, "... and more than this share of the rows that were in it.")

    debounce_ms: int = _key(
        whole(0, 60_000),
        100,
        "How long file events are collected before a scan, in milliseconds.",
        begins="How the input is read",
    )
    settle_seconds: float = _key(
        number(0, _DAY_SECONDS),
        1.0,
        "How long a file that shrank, changed in place or returned must stay unchanged before it is read, in seconds. "
        "If it keeps changing, it is read after ten times that. 0: off.",
    )
    rescan_seconds: float = _key(
        number(0, _DAY_SECONDS, least_allowed=False),
        300,
        "How often everything is scanned, whether or not file events arrived.",
    )
    scrub_hours: float = _key(
        number(0, 365 * 24),
        24,
        "Every input file is hashed again once per this many hours, to find changes that its size and times do not "
        "show; so is every export, and also after it changed. 0: off.",
    )
    batch_rows: int = _key(
        whole(1, 10_000_000), 50_000, "The maximum number of rows in a batch. A batch also ends at 32 MiB of input."
    )
    workers: int = _key(
        whole(0, 1024),
        0,
        "Worker processes that judge rows when there are many, beside the process that commits. 0: the number of cores "
        "minus one.",
    )
    executor: str = _key(
        address("dask://"),
        "",
        "The scheduler of a Dask cluster whose workers judge instead, such as dask://HOST:8786. They must see the root "
        "under the same path; see docs/scale.md.",
    )

    writer: Writer = _key(
        choice(get_args(Writer)),
        "daemon",
        "What 'distilld health' checks. 'daemon': a daemon runs and scans. 'timer': a run scanned at most three times "
        "rescan_seconds ago.",
        begins="Reports",
    )
    receipts_keep: int = _key(
        whole(0, _COUNT_MOST),
        10_000,
        "How many receipts are kept, on disk and in the state store; the oldest are removed. 0: all are kept.",
    )
    log_level: LogLevel = _key(choice(get_args(LogLevel)), "info", "The minimum level that is logged.")
    log_format: LogFormat = _key(
        choice(get_args(LogFormat)),
        "auto",
        "'json' is one object per line, 'console' is for people; 'auto' is 'console' on a terminal, else 'json'.",
    )
    metrics_file: Path | None = _key(
        file_path(empty_means="none"),
        "",
        "A Prometheus text file that is replaced after every pass. It must be outside data/, exports/ and reports/.",
    )

    def options(self) -> Options:
        """Return the settings that change the target state, for the pure core."""
        known = {name: getattr(self, name) for name in (each.name for each in fields(Options)) if name in KEYS}
        return Options(**{**known, "source_files_root": str(self.source_files_root)})

    def limits(self) -> EngineLimits:
        """Return the settings that bound the work of a pass."""
        return EngineLimits(*(getattr(self, name) for name in EngineLimits._fields))


class EngineLimits(NamedTuple):
    """Settings that bound the work of a pass and do not change its result; each field has the name of its setting."""

    batch_rows: int
    settle_seconds: float
    tripwire_rows: int
    tripwire_share: float
    receipts_keep: int
    scrub_hours: float
    workers: int
    executor: str


KEYS: Final[Mapping[str, Key]] = MappingProxyType(
    {setting.name: Key(name=setting.name, **setting.metadata) for setting in fields(Settings)}
)
"""The keys by name, in the order of the config file."""
