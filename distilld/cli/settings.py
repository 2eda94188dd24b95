"""From the common options to settings that a command can rely on."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from distilld import config
from distilld.cli.commands import Common
from distilld.config import Settings
from distilld.model import OperatorError, UsageError

_HINT = f"give --root, or set {config.ENVIRONMENT_PREFIX}ROOT, or root in the config file"


def load_settings(common: Common, **flags: object) -> Settings:
    """The settings in force, with a root that is a folder which can be listed.

    Paths are resolved: one lake has one name, whatever link or working directory it is reached by, so that its store
    knows it again.

    Raises:
        ConfigError: The configuration is wrong.
        UsageError: The root is no folder.
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
