"""The settings: one table of keys, read from flags, the environment and one TOML file (SPEC 5.1).

``load`` proves the whole configuration good before anything starts: every fault is found and told at once, each with
its key, its value and what is allowed. The same table writes the commented file (``commented_toml``), so the file, the
checks and the messages cannot disagree. Nothing slow is imported here: every command passes through.
"""

from __future__ import annotations

import difflib
import re
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, Protocol, get_args

from distilld.core.model import OnDelete, Options, ProgramError, UsageError
from distilld.files.regular import read_regular

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "json", "console"]

DEFAULT_CONFIG_FILE: Final = Path("config", "distilld.toml")
"""The file that is read when none is named, below the working directory, if it is there."""

ENVIRONMENT_PREFIX: Final = "DISTILLD_"
ROOT_VARIABLE: Final = "LH_DISTILL_ROOT"
"""The older exporters' variable: it stands in for the default of ``root`` alone."""

_SHOWN_CHARACTERS: Final = 80
_FILE_COLUMNS: Final = 100


class Kind(Protocol):
    """What values a key takes."""

    @property
    def allowed(self) -> str:
        """What is allowed, in words that end a message."""

    def read(self, value: object) -> object:
        """The value that ``value`` stands for; raises ValueError where it is not allowed."""

    def from_text(self, text: str) -> object:
        """The value that an environment variable's text spells, or the text itself where it spells none."""
        return text


@dataclass(frozen=True, slots=True)
class Switch(Kind):
    """True or false."""

    allowed: str = "true or false"

    def read(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    def from_text(self, text: str) -> object:
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(text.lower(), text)


@dataclass(frozen=True, slots=True)
class Whole(Kind):
    """A whole number from ``least`` to ``most``, both included."""

    least: int
    most: int

    @property
    def allowed(self) -> str:
        return f"a whole number from {self.least} to {self.most}"

    def read(self, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not self.least <= value <= self.most:
            raise ValueError
        return value

    def from_text(self, text: str) -> object:
        return int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else text


@dataclass(frozen=True, slots=True)
class Number(Kind):
    """A number up to ``most``: from ``least``, or above it where ``least`` itself is not allowed."""

    least: float
    most: float
    least_allowed: bool = True

    @property
    def allowed(self) -> str:
        return f"a number {'from' if self.least_allowed else 'above'} {self.least:g} up to {self.most:g}"

    def read(self, value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not self.least <= value <= self.most:
            raise ValueError
        if value == self.least and not self.least_allowed:
            raise ValueError
        return float(value)

    def from_text(self, text: str) -> object:
        return float(text) if re.fullmatch(r"[+-]?[0-9]{1,18}(\.[0-9]{1,18})?", text) else text


@dataclass(frozen=True, slots=True)
class Text(Kind):
    """Any text that can be written as UTF-8."""

    allowed: str = "a text, in valid Unicode"

    def read(self, value: object) -> str:
        if not isinstance(value, str) or not _is_unicode(value):
            raise ValueError
        return value


@dataclass(frozen=True, slots=True)
class FilePath(Kind):
    """A path that can be stored, logged and put into a table; empty only where ``empty_means`` says what that is."""

    empty_means: str = ""

    @property
    def allowed(self) -> str:
        empty = f", or empty for {self.empty_means}" if self.empty_means else ""
        return f"a path in valid UTF-8 without control characters{empty}"

    def read(self, value: object) -> str:
        text = str(value) if isinstance(value, Path) else value
        if not isinstance(text, str) or not _is_unicode(text) or re.search(r"[\x00-\x1f\x7f-\x9f]", text):
            raise ValueError
        if not text and not self.empty_means:
            raise ValueError
        return text


@dataclass(frozen=True, slots=True)
class Choice(Kind):
    """One of a few words."""

    words: tuple[str, ...]

    @property
    def allowed(self) -> str:
        return " or ".join(self.words)

    def read(self, value: object) -> str:
        if not isinstance(value, str) or value not in self.words:
            raise ValueError
        return str(value)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_BYTES_MOST: Final = 1 << 30
_COUNT_MOST: Final = 1_000_000_000
_DAY_SECONDS: Final = 86_400


@dataclass(frozen=True, slots=True)
class Key:
    """One setting: its name, what it takes, its default as TOML holds it, what it does, and the section it begins."""

    name: str
    kind: Kind
    default: bool | int | float | str
    meaning: str
    begins: str

    @property
    def variable(self) -> str:
        """The environment variable that wins over the file."""
        return ENVIRONMENT_PREFIX + self.name.upper()


def _key(kind: Kind, default: bool | int | float | str, meaning: str, *, begins: str = "") -> Any:
    """A field of Settings that is a setting; ``begins`` heads the section of the file that it opens."""
    return field(metadata={"kind": kind, "default": default, "meaning": meaning, "begins": begins})


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting, proved good; paths are absolute."""

    root: Path = _key(
        FilePath(), ".", "The lakehouse: data/, exports/ and reports/ stand below it.", begins="Where things are"
    )
    state: Path = _key(
        FilePath(),
        "state/distilld.db",
        "The state store, one SQLite file on a local disk. A relative path is taken from the root.",
    )

    include_partial: bool = _key(
        Switch(),
        False,
        "Ship partially accepted runs to SFT too. Rejected and unreviewed runs never ship there.",
        begins="What ships: a change of these judges every row anew",
    )
    include_review: bool = _key(
        Switch(), False, "Ship runs that need a human review to RAG too. Rejected runs never ship there."
    )
    revoke: bool = _key(
        Switch(),
        True,
        "A later verdict on a run revokes an earlier one. Switch it off only to compare with the older exporters: "
        "runs that were rejected later stay in the datasets then.",
    )
    check_source_files: bool = _key(
        Switch(), False, "Hold a row if its evidence names a source file that does not exist."
    )
    source_files_root: Path = _key(
        FilePath(empty_means="the root"), "", "Where check_source_files looks for source files."
    )
    missing_source_file: str = _key(
        Text(), "", "What stands in an SFT instruction where the evidence names no source file."
    )
    max_line_bytes: int = _key(
        Whole(1024, _BYTES_MOST), 8_388_608, "A longer line is quarantined without being read into memory."
    )
    on_delete: OnDelete = _key(
        Choice(tuple(OnDelete)),
        "keep",
        "When a partition file disappears: 'keep' freezes its rows where they are, 'withdraw' takes them out of the "
        "datasets.",
    )

    tripwire_rows: int = _key(
        Whole(0, _COUNT_MOST),
        1000,
        "It trips when one scan would withdraw more than this many vanished rows of a dataset ...",
        begins="The tripwire: rows that vanish in great number wait for 'distilld prune'",
    )
    tripwire_share: float = _key(Number(0, 1), 0.5, "... and more than this share of the rows that stood in it.")

    debounce_ms: int = _key(
        Whole(0, 60_000),
        100,
        "How long file events are gathered before a scan, in milliseconds.",
        begins="How the input is read",
    )
    settle_seconds: float = _key(
        Number(0, _DAY_SECONDS),
        1.0,
        "A file that shrank, changed in place or returned is read once it has been still for this long, and after "
        "ten times that in any case. 0 switches it off.",
    )
    rescan_seconds: float = _key(
        Number(0, _DAY_SECONDS, least_allowed=False),
        300,
        "How often everything is scanned, whatever the file events said or missed.",
    )
    batch_rows: int = _key(
        Whole(1, 10_000_000), 50_000, "The most rows in one batch. A batch is also cut at 32 MiB of input."
    )
    workers: int = _key(
        Whole(0, 1024),
        0,
        "Processes that judge new partitions where there are many, beside the one that commits. 0: one a core in all.",
    )

    receipts_keep: int = _key(
        Whole(0, _COUNT_MOST),
        10_000,
        "The newest receipts stay, on disk and in the store. 0: all.",
        begins="What is told",
    )
    log_level: LogLevel = _key(Choice(get_args(LogLevel)), "info", "The least level that is logged.")
    log_format: LogFormat = _key(
        Choice(get_args(LogFormat)),
        "auto",
        "'json' is one object a line, 'console' is for people; 'auto' is console on a terminal only.",
    )
    metrics_file: Path | None = _key(
        FilePath(empty_means="none"),
        "",
        "A Prometheus text file that is replaced after every batch and scan; outside data/, exports/ and reports/.",
    )

    def options(self) -> Options:
        """The settings that change the target state, as the pure core takes them."""
        return Options(
            include_partial=self.include_partial,
            include_review=self.include_review,
            revoke=self.revoke,
            on_delete=self.on_delete,
            check_source_files=self.check_source_files,
            source_files_root=str(self.source_files_root),
            missing_source_file=self.missing_source_file,
            max_line_bytes=self.max_line_bytes,
        )


KEYS: Final[Mapping[str, Key]] = MappingProxyType(
    {setting.name: Key(name=setting.name, **setting.metadata) for setting in fields(Settings)}
)
"""Every key by its name, in the order of the config file."""


@dataclass(frozen=True, slots=True)
class ConfigFault:
    """One thing that is wrong with the configuration; every field is safe to print.

    ``key`` is empty where a file as a whole is at fault; ``nearest`` is the known key that an unknown one resembles.
    """

    key: str
    value: str
    allowed: str
    source: str
    nearest: str = ""

    def __str__(self) -> str:
        if self.nearest:
            return f"{self.source}: {self.key} is not a known key; the nearest one is {self.nearest}"
        subject = f"{self.key} = {self.value}" if self.key else self.value
        return f"{self.source}: {subject}; allowed: {self.allowed}"


class ConfigError(UsageError):
    """The configuration is wrong: all of its ``faults``, in the order in which they were found."""

    hint = "'distilld init' writes a config file with every key, its default and what it does"

    def __init__(self, faults: tuple[ConfigFault, ...]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class _Given:
    """A value as somebody gave it, and where."""

    value: object
    source: str


def load(
    *,
    flags: Mapping[str, object],
    environ: Mapping[str, str],
    config_file: Path | None,
    cwd: Path,
    default_counts: bool = True,
) -> Settings:
    """The settings in force: a flag wins over ``DISTILLD_<KEY>``, that over the file, the file over the default.

    ``flags`` is keyed like the file; None stands for a flag that was not given. ``config_file`` None means
    ``config/distilld.toml`` below ``cwd`` if it is there and ``default_counts``; a file that is named must be there.

    Raises ConfigError with every fault of the file, the environment and the flags.
    """
    faults: list[ConfigFault] = []
    # Later layers win. A value that loses is checked all the same: it is wrong, and would bite later.
    layers = [
        list(_from_root_variable(environ)),
        list(_from_file(config_file, cwd, faults)) if config_file or default_counts else [],
        list(_from_environment(environ, faults)),
        list(_from_flags(flags)),
    ]
    values: dict[str, object] = {key.name: key.kind.read(key.default) for key in KEYS.values()}
    for layer in layers:
        for key, given in layer:
            try:
                values[key.name] = key.kind.read(given.value)
            except ValueError:
                faults.append(ConfigFault(key.name, _shown(given.value), key.kind.allowed, given.source))
    if faults:
        raise ConfigError(tuple(faults))
    return _settings(values, cwd)


def commented_toml() -> str:
    """The config file that 'distilld init' writes: every key, its default commented out, and what it does."""
    lines = [
        "# distilld: every setting with its default. Take the '#' away from a key to set it.",
        f"# Read from {DEFAULT_CONFIG_FILE} below the working directory, or from the file that --config names.",
        f"# The environment's {ENVIRONMENT_PREFIX}<KEY> wins over this file, a command line flag over both.",
        "# Relative paths are taken from the working directory, a relative 'state' from the root.",
    ]
    for key in KEYS.values():
        if key.begins:
            lines += ["", "", f"# ---- {key.begins} ----"]
        fallback = f"; {ROOT_VARIABLE} sets the default" if key.name == "root" else ""
        said = f"{key.meaning}\nAllowed: {key.kind.allowed}. Environment: {key.variable}{fallback}."
        lines += ["", *(f"# {part}" for line in said.splitlines() for part in textwrap.wrap(line, _FILE_COLUMNS - 2))]
        lines += [f"#{key.name} = {_toml(key.default)}"]
    return "\n".join(lines) + "\n"


def _from_root_variable(environ: Mapping[str, str]) -> Iterator[tuple[Key, _Given]]:
    if root := environ.get(ROOT_VARIABLE):
        yield KEYS["root"], _Given(root, ROOT_VARIABLE)


def _from_file(config_file: Path | None, cwd: Path, faults: list[ConfigFault]) -> Iterator[tuple[Key, _Given]]:
    named = config_file or DEFAULT_CONFIG_FILE
    source = _plain(str(named))
    for name, value in _parsed_file(cwd / named, source, faults, may_be_missing=config_file is None).items():
        if name in KEYS:
            yield KEYS[name], _Given(value, source)
        else:
            faults.append(_unknown(name, value, source))


def _parsed_file(path: Path, source: str, faults: list[ConfigFault], *, may_be_missing: bool) -> dict[str, object]:
    try:
        return tomllib.loads(read_regular(path, follow_link=True).decode())
    except OSError as error:
        if may_be_missing and isinstance(error, FileNotFoundError | NotADirectoryError):
            return {}
        faults.append(ConfigFault("", f"cannot be read ({error.strerror})", "a readable TOML file", source))
    except UnicodeDecodeError as error:
        faults.append(ConfigFault("", f"is not UTF-8 (byte {error.start})", "a TOML file in UTF-8", source))
    except (ValueError, RecursionError) as error:
        faults.append(ConfigFault("", f"is not TOML ({_cut(_plain(str(error)))})", "a TOML file of flat keys", source))
    return {}


def _from_environment(environ: Mapping[str, str], faults: list[ConfigFault]) -> Iterator[tuple[Key, _Given]]:
    variables = {key.variable: key for key in KEYS.values()}
    for name in sorted(environ):
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        if key := variables.get(name):
            yield key, _Given(key.kind.from_text(environ[name]), name)
        else:
            faults.append(_unknown(name, environ[name], "the environment", tuple(variables)))


def _from_flags(flags: Mapping[str, object]) -> Iterator[tuple[Key, _Given]]:
    for name, value in flags.items():
        if name not in KEYS:
            raise ProgramError(f"a flag sets {name}, which is no setting")
        if value is not None:
            yield KEYS[name], _Given(value, "--" + name.replace("_", "-"))


def _unknown(name: str, value: object, source: str, known: tuple[str, ...] = tuple(KEYS)) -> ConfigFault:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    return ConfigFault(_cut(_plain(name)), _shown(value), f"one of {', '.join(known)}", source, nearest)


def _settings(values: Mapping[str, object], cwd: Path) -> Settings:
    """The checked ``values`` with their paths made absolute."""
    root = cwd / str(values["root"])
    source_files_root, metrics_file = str(values["source_files_root"]), str(values["metrics_file"])
    finished: dict[str, Any] = {
        **values,
        "root": root,
        "state": root / str(values["state"]),
        "source_files_root": cwd / source_files_root if source_files_root else root,
        "on_delete": OnDelete(str(values["on_delete"])),
        "metrics_file": cwd / metrics_file if metrics_file else None,
    }
    return Settings(**finished)


def _toml(value: bool | int | float | str) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    return str(value).lower() if isinstance(value, bool) else str(value)


def _shown(value: object) -> str:
    """A value on one line, short, with every character escaped that does not print."""
    try:
        return _cut(repr(str(value) if isinstance(value, Path) else value))
    except (ValueError, RecursionError):  # more digits, or levels, than Python writes
        return f"<{type(value).__name__}>"


def _plain(text: str) -> str:
    return text if text.isprintable() else repr(text)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
