"""From the common options to settings that a command can rely on."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

from distilld import config
from distilld.cli.commands import Common
from distilld.config import Settings
from distilld.model import OperatorError, UsageError

_NO_PLACE_FOR_STATE = ("data", "data/scored-runs", "data/evidence", "exports", "reports")
_HINT = f"give --root, or set {config.ENVIRONMENT_PREFIX}ROOT, or root in the config file"


def load_settings(common: Common, **flags: object) -> Settings:
    """The settings in force, with a root that is a folder which can be listed, and a state that may be a store.

    Paths are resolved: one lake has one name, whatever link or working directory it is reached by, so that its store
    knows it again.

    Raises:
        ConfigError: The configuration is wrong.
        UsageError: The root is no folder, or the state lies where the lake's own files do, or is no regular file.
        OperatorError: The root cannot be read.
    """
    settings = config.load(
        flags={"root": common.root, "state": common.state, **flags},
        environ=os.environ,
        config_file=common.config,
        cwd=Path.cwd(),
    )
    resolved = replace(
        settings,
        root=Path(os.path.realpath(settings.root)),
        state=Path(os.path.realpath(settings.state)),
        source_files_root=Path(os.path.realpath(settings.source_files_root)),
    )
    _refuse_unusable_root(resolved.root)
    _refuse_unusable_state(resolved.root, resolved.state)
    return resolved


def _refuse_unusable_root(root: Path) -> None:
    if not root.is_dir():
        problem = "is no folder" if root.exists() else "does not exist"
        raise UsageError(f"root = {str(root)!r} {problem}; allowed: the folder of a lakehouse", hint=_HINT)
    try:
        with os.scandir(root):
            pass
    except OSError as error:
        raise OperatorError(f"root = {str(root)!r} cannot be read: {error.strerror}", hint=_HINT) from error


def _refuse_unusable_state(root: Path, state: Path) -> None:
    """Refuse a path that would displace an input, an export or a receipt, or that opening would wait for."""
    allowed = "a file outside data/, exports/ and reports/ of the root, or one that is yet to be made"
    hint = f"give --state, or set {config.ENVIRONMENT_PREFIX}STATE, or state in the config file"
    for folder in _NO_PLACE_FOR_STATE:
        if state.is_relative_to(os.path.realpath(root / folder)):
            raise UsageError(f"state = {str(state)!r} lies below {folder} of the root; allowed: {allowed}", hint=hint)
    try:
        mode = os.stat(state).st_mode
    except OSError:
        return  # there is none yet, or opening it says why
    if not stat.S_ISREG(mode):
        raise UsageError(f"state = {str(state)!r} is no regular file; allowed: {allowed}", hint=hint)
