"""Load the settings from flags, the environment and one TOML file (SPEC 5.1).

``load`` checks the whole configuration before anything starts: it reports all faults together, each with its key, its
value and what is allowed.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from distilld.config.settings import DEFAULT_CONFIG_FILE, ENVIRONMENT_PREFIX, KEYS, ROOT_VARIABLE, Key, Settings
from distilld.core.model import OnDelete, ProgramError, UsageError
from distilld.files.regular import open_regular

_SHOWN_CHARACTERS: Final = 80
_MOST_BYTES: Final = 1 << 20
_ALLOWED: Final = "allowed: a TOML file of flat keys"


class ConfigError(UsageError):
    """The configuration is wrong; the message has a line for each fault, in the order in which they were found."""

    hint = "'distilld init' writes a config file with every key, its default and what it does"

    def __init__(self, faults: Iterable[str]) -> None:
        super().__init__("\n".join(faults))


def fault_of(source: str, key: str, value: object, allowed: str) -> str:
    """Return the fault that a source sets a key to a value that is not allowed, on one line and safe to print."""
    return f"{source}: {key} = {_shown(value)}; allowed: {allowed}"


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
    faults: list[str] = []
    # Later layers win. A value that loses is checked too, because it would be an error as soon as it wins.
    layers = [
        [_Given(KEYS["root"], root, ROOT_VARIABLE)] if (root := environ.get(ROOT_VARIABLE)) else [],
        list(_from_file(config_file, cwd, faults)) if config_file or default_counts else [],
        list(_from_environment(environ, warn)),
        list(_from_flags(flags)),
    ]
    values: dict[str, object] = {key.name: key.kind.as_setting(key.default) for key in KEYS.values()}
    for layer in layers:
        for key, value, source in layer:
            if key.kind.allows(value):
                values[key.name] = key.kind.as_setting(value)
            else:
                faults.append(fault_of(source, key.name, value, key.kind.allowed))
    if faults:
        raise ConfigError(faults)
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
        raise ConfigError([fault_of(named.source, "state", named.value, allowed)])
    return path


def _from_file(config_file: Path | None, cwd: Path, faults: list[str]) -> Iterator[_Given]:
    named = config_file or DEFAULT_CONFIG_FILE
    source = _plain(str(named))
    for name, value in _parsed_file(cwd / named, source, faults, may_be_missing=config_file is None).items():
        if name in KEYS:
            yield _Given(KEYS[name], value, source)
        else:
            faults.append(_unknown(name, source))


def _parsed_file(path: Path, source: str, faults: list[str], *, may_be_missing: bool) -> dict[str, object]:
    try:
        # The file belongs to the operator, and may be a link.
        with open_regular(path, follow_link=True) as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            faults.append(f"{source}: is longer than {_MOST_BYTES:,} bytes; {_ALLOWED}")
            return {}
        return tomllib.loads(content.decode("utf-8-sig"))
    except OSError as error:
        if may_be_missing and isinstance(error, FileNotFoundError | NotADirectoryError):
            return {}
        faults.append(f"{source}: cannot be read ({error.strerror}); allowed: a readable TOML file")
    except UnicodeDecodeError as error:
        faults.append(f"{source}: is not UTF-8 (byte {error.start}); allowed: a TOML file in UTF-8")
    except (ValueError, RecursionError) as error:
        faults.append(f"{source}: is not TOML ({_cut(_plain(str(error)))}); {_ALLOWED}")
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
            warn(_unknown(name, "the environment", variables))


def _from_flags(flags: Mapping[str, object]) -> Iterator[_Given]:
    for name, value in flags.items():
        if name not in KEYS:
            raise ProgramError(f"a flag sets {name}, which is no setting")
        if value is not None:
            yield _Given(KEYS[name], value, "--" + name.replace("_", "-"))


def _unknown(name: str, source: str, known: Iterable[str] = KEYS) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    return f"{source}: {_cut(_plain(name))} is not a known key; the nearest one is {nearest}"


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
