"""Load the settings from flags, the environment and one TOML file (SPEC 5.1).

``load`` checks the whole configuration before anything starts: it reports all faults together, each with its key, its
value and what is allowed.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from distilld.config.settings import DEFAULT_CONFIG_FILE, ENVIRONMENT_PREFIX, KEYS, ROOT_VARIABLE, Key, Settings
from distilld.core.model import OnDelete, ProgramError, UsageError
from distilld.files.regular import open_regular

_SHOWN_CHARACTERS: Final = 80
_MOST_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class ConfigFault:
    """One fault of the configuration; every field is safe to print.

    ``key`` is empty if the fault is in a file as a whole; ``nearest`` is the known key that an unknown one resembles.
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
    """The configuration is wrong; ``faults`` are in the order in which they were found."""

    hint = "'distilld init' writes a config file with every key, its default and what it does"

    def __init__(self, faults: tuple[ConfigFault, ...]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = faults


class _Given(NamedTuple):
    """A value for a key before it is checked, and its source."""

    key: Key
    value: object
    source: str


def load(
    *,
    flags: Mapping[str, object],
    environ: Mapping[str, str],
    config_file: Path | None,
    cwd: Path,
    default_counts: bool = True,
    warn: Callable[[str], None] = lambda _: None,
) -> Settings:
    """Return the settings: a flag wins over ``DISTILLD_<KEY>``, the variable over the file, the file over the default.

    ``flags`` has the keys of the file; None means that a flag was not given. ``config_file`` None means
    ``config/distilld.toml`` below ``cwd`` if it exists and ``default_counts`` is true; a named file must exist.
    ``warn`` is called with problems that are no faults.

    Raises ConfigError with every fault of the file, the environment and the flags.
    """
    faults: list[ConfigFault] = []
    # Later layers win. A value that loses is checked too, because it would be an error as soon as it wins.
    layers = [
        [_Given(KEYS["root"], root, ROOT_VARIABLE)] if (root := environ.get(ROOT_VARIABLE)) else [],
        list(_from_file(config_file, cwd, faults)) if config_file or default_counts else [],
        list(_from_environment(environ, warn)),
        list(_from_flags(flags)),
    ]
    values: dict[str, object] = {key.name: key.kind.read(key.default) for key in KEYS.values()}
    for layer in layers:
        for key, value, source in layer:
            try:
                values[key.name] = key.kind.read(value)
            except ValueError:
                faults.append(ConfigFault(key.name, _shown(value), key.kind.allowed, source))
    if faults:
        raise ConfigError(tuple(faults))
    named = next((given for layer in reversed(layers[2:]) for given in layer if given.key.name == "state"), None)
    if named is not None:
        values["state"] = _named_state(named, cwd, cwd / str(values["root"]))
    return _settings(values, cwd)


def _named_state(named: _Given, cwd: Path, root: Path) -> Path:
    """Return the state store that a flag or the environment names; relative to the working directory.

    Raises:
        ConfigError: It does not exist, but the same path below the root does.
    """
    path, below = cwd / str(named.value), root / str(named.value)
    if not path.exists() and below.exists():
        allowed = f"a state store; there is none at {_plain(str(path))}, and one at {_plain(str(below))}"
        raise ConfigError((ConfigFault("state", _shown(named.value), allowed, named.source),))
    return path


def _from_file(config_file: Path | None, cwd: Path, faults: list[ConfigFault]) -> Iterator[_Given]:
    named = config_file or DEFAULT_CONFIG_FILE
    source = _plain(str(named))
    for name, value in _parsed_file(cwd / named, source, faults, may_be_missing=config_file is None).items():
        if name in KEYS:
            yield _Given(KEYS[name], value, source)
        else:
            faults.append(_unknown(name, value, source))


def _parsed_file(path: Path, source: str, faults: list[ConfigFault], *, may_be_missing: bool) -> dict[str, object]:
    try:
        # The file belongs to the operator, and may be a link.
        with open_regular(path, follow_link=True) as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            faults.append(ConfigFault("", f"is longer than {_MOST_BYTES:,} bytes", "a TOML file of flat keys", source))
            return {}
        return tomllib.loads(content.decode("utf-8-sig"))
    except OSError as error:
        if may_be_missing and isinstance(error, FileNotFoundError | NotADirectoryError):
            return {}
        faults.append(ConfigFault("", f"cannot be read ({error.strerror})", "a readable TOML file", source))
    except UnicodeDecodeError as error:
        faults.append(ConfigFault("", f"is not UTF-8 (byte {error.start})", "a TOML file in UTF-8", source))
    except (ValueError, RecursionError) as error:
        faults.append(ConfigFault("", f"is not TOML ({_cut(_plain(str(error)))})", "a TOML file of flat keys", source))
    return {}


def _from_environment(environ: Mapping[str, str], warn: Callable[[str], None]) -> Iterator[_Given]:
    variables = {key.variable: key for key in KEYS.values()}
    for name in sorted(environ):
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        if key := variables.get(name):
            yield _Given(key, key.kind.from_text(environ[name]), name)
        else:
            # Kubernetes sets such names in every pod of a namespace with a service named distilld.
            warn(str(_unknown(name, environ[name], "the environment", tuple(variables))))


def _from_flags(flags: Mapping[str, object]) -> Iterator[_Given]:
    for name, value in flags.items():
        if name not in KEYS:
            raise ProgramError(f"a flag sets {name}, which is no setting")
        if value is not None:
            yield _Given(KEYS[name], value, "--" + name.replace("_", "-"))


def _unknown(name: str, value: object, source: str, known: tuple[str, ...] = tuple(KEYS)) -> ConfigFault:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    return ConfigFault(_cut(_plain(name)), _shown(value), f"one of {', '.join(known)}", source, nearest)


def _settings(values: Mapping[str, object], cwd: Path) -> Settings:
    """Return the settings from checked ``values``, with absolute paths."""
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


def _shown(value: object) -> str:
    """Return a value as short text on one line, with unprintable characters escaped."""
    try:
        return _cut(repr(str(value) if isinstance(value, Path) else value))
    except (ValueError, RecursionError):  # more digits or levels than Python can print
        return f"<{type(value).__name__}>"


def _plain(text: str) -> str:
    return text if text.isprintable() else repr(text)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
