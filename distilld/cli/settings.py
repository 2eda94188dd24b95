"""Turn the common options into checked settings for a command."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from distilld import logs
from distilld.cli.commands import Common
from distilld.cli.keeper import become_keeper
from distilld.cli.output import complain
from distilld.cli.streams import WorkCommand
from distilld.config.load import load
from distilld.config.settings import DEFAULT_CONFIG_FILE, ENVIRONMENT_PREFIX, KEYS, Settings
from distilld.core.model import OperatorError, UsageError
from distilld.files.regular import open_regular

_NO_ROOT: Final[Mapping[int | None, str]] = MappingProxyType(
    {
        errno.ENOENT: "does not exist",
        errno.ENOTDIR: "is no folder",
        errno.ENAMETOOLONG: "has too long a name",
        errno.ELOOP: "is a link to itself",
    }
)
_FOLDERS_OF_THE_LAKE: Final = ("data", "data/scored-runs", "data/evidence", "exports", "reports")
_BESIDE_STATE: Final = ("", "-wal", "-shm", "-journal", ".lock")
"""The endings of the names of the store's own files."""
_BEGINNING_OF_METRICS: Final = b"# HELP distilld_"
_OTHERS_WRITE: Final = 0o022
_HINT = f"give --root, or set {ENVIRONMENT_PREFIX}ROOT, or root in the config file"


def load_settings(common: Common, **flags: object) -> Settings:
    """Return checked settings: the root is a folder that can be listed, and distilld may write the files.

    Paths are resolved: a lake has one name, by whatever link or working directory it is reached, so that its store
    recognizes it. A ``source_files_root`` that is not the root stays as it is: its mount may come later, and its links
    may change. Afterwards a process of root runs as the user who owns the lake.

    Raises:
        ConfigError: The configuration is wrong.
        UsageError: A path resolves to a name that is not allowed; the root is no folder; the state or metrics file is
            in a folder of the lake's other files, or is not distilld's; a package for the executor is not installed;
            or root cannot become the user who owns the lake.
        OperatorError: The root cannot be read, or the working directory is gone.
    """
    cwd = _working_directory()
    settings = load(
        flags={"root": common.root, "state": common.state, **flags},
        environ=os.environ,
        config_file=common.config,
        default_counts=common.config is not None or _default_config_counts(cwd / DEFAULT_CONFIG_FILE),
        cwd=cwd,
        warn=lambda text: complain(f"warning: {text}"),
    )
    resolved = replace(
        settings,
        root=_resolved("root", settings.root),
        state=_resolved("state", settings.state),
        source_files_root=_source_files_root(settings),
        metrics_file=settings.metrics_file and _resolved("metrics_file", settings.metrics_file),
    )
    _refuse_unusable_root(resolved.root)
    become_keeper(resolved.root, resolved.state, works=WorkCommand.ran)
    _refuse_unusable_state(resolved.root, resolved.state)
    if resolved.executor and WorkCommand.ran:
        from distilld.engine.cluster import refuse_without_dask

        refuse_without_dask(resolved.executor)
    if resolved.metrics_file is not None:
        _refuse_unusable_metrics_file(resolved.root, resolved.state, resolved.metrics_file)
    return resolved


def start_log(settings: Settings) -> None:
    """Write the log of this process as the settings say."""
    logs.configure(level=settings.log_level, fmt=settings.log_format)


def _default_config_counts(path: Path) -> bool:
    """Return whether the working directory's config file is this user's own. If not, print a note.

    Otherwise a user who may write in a folder could control a command that another user runs there. For root, the
    file and both folders must be writable by root alone: another user could have moved a file of root's there.
    """
    try:
        found = [os.stat(each) for each in (path, path.parent, path.parent.parent)]
    except OSError:
        return True  # it does not exist, or reading it reports why
    own = [each.st_uid == os.geteuid() for each in found]
    if own[0] and (os.geteuid() != 0 or (all(own) and not any(each.st_mode & _OTHERS_WRITE for each in found))):
        return True

    name = DEFAULT_CONFIG_FILE
    complain(f"note: {name} is not read, for others own it or may write there; --config {name} reads it")
    return False


def _working_directory() -> Path:
    try:
        return Path.cwd()
    except OSError as error:
        raise OperatorError(
            f"the working directory cannot be found: {error.strerror}", hint="run it in a folder that exists"
        ) from error


def _resolved(name: str, path: Path) -> Path:
    """Return the path that ``path`` resolves to, which must be an allowed value, too."""
    return _allowed(name, Path(os.path.realpath(path)))


def _source_files_root(settings: Settings) -> Path:
    path = settings.source_files_root
    return _allowed("source_files_root", Path(os.path.realpath(path)) if path == settings.root else path)


def _allowed(name: str, path: Path) -> Path:
    kind = KEYS[name].kind
    if not kind.allows(path):
        hint = "a link, or the working directory, leads there"
        raise UsageError(f"{name} = {str(path)!r}; allowed: {kind.allowed}", hint=hint)
    return path


def _refuse_unusable_root(root: Path) -> None:
    try:
        with os.scandir(root):
            pass
    except OSError as error:
        if problem := _NO_ROOT.get(error.errno):
            raise UsageError(
                f"root = {str(root)!r} {problem}; allowed: the folder of a lakehouse", hint=_HINT
            ) from error
        raise OperatorError(f"root = {str(root)!r} cannot be read: {error.strerror}", hint=_HINT) from error


def _refuse_unusable_state(root: Path, state: Path) -> None:
    """Refuse a path that would displace an input, an export or a receipt, or that could block when it is opened."""
    allowed = "a file outside data/, exports/ and reports/ of the root, or one that is yet to be made"
    hint = f"give --state, or set {ENVIRONMENT_PREFIX}STATE, or state in the config file"
    if fault := _fault_of_place(root, state):
        raise UsageError(f"state = {str(state)!r} {fault}; allowed: {allowed}", hint=hint)


def _refuse_unusable_metrics_file(root: Path, state: Path, metrics_file: Path) -> None:
    """Refuse a path that would displace anything but an earlier metrics file."""
    allowed = "a file of its own outside data/, exports/ and reports/ of the root, or empty for none"
    hint = f"set {KEYS['metrics_file'].variable}, or metrics_file in the config file"
    fault = _fault_of_place(root, metrics_file)
    if metrics_file in [state.with_name(state.name + ending) for ending in _BESIDE_STATE]:
        fault = "is a file of the state store"
    elif not fault and _is_of_something_else(metrics_file):
        fault = "is a file of something else"
    if fault:
        raise UsageError(f"metrics_file = {str(metrics_file)!r} {fault}; allowed: {allowed}", hint=hint)


def refuse_place_in_lake(root: Path, folder: Path) -> None:
    """Refuse a folder that is among inputs, exports or receipts.

    Raises:
        UsageError: The folder is there.
    """
    if fault := _folder_of_lake(root, Path(os.path.realpath(folder))):
        raise UsageError(f"{folder} {fault}", hint="choose a folder elsewhere")


def _folder_of_lake(root: Path, path: Path) -> str:
    """Return in which folder of inputs, exports or receipts ``path`` lies; empty if in none."""
    for folder in _FOLDERS_OF_THE_LAKE:
        if path.is_relative_to(os.path.realpath(root / folder)):
            return f"lies below {folder} of the root"
    return ""


def _fault_of_place(root: Path, path: Path) -> str:
    """Return why distilld must not write a file of its own at ``path``; empty if it may."""
    if fault := _folder_of_lake(root, path):
        return fault
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return ""  # it does not exist, or opening it reports why
    return "" if stat.S_ISREG(mode) else "is no regular file"


def _is_of_something_else(metrics_file: Path) -> bool:
    """Return whether the file is neither a metrics file of ours nor what a power cut left of one."""
    try:
        with open_regular(metrics_file) as file:
            found = file.read(len(_BEGINNING_OF_METRICS))
    except OSError:
        return False  # it does not exist, or this user may not read it
    return not _BEGINNING_OF_METRICS.startswith(found.rstrip(b"\0"))
