"""The path check (SPEC 3.5): whether the source files that an evidence row names exist."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from distilld.core.firewall import MissingFiles
from distilld.core.model import Options, UnreadableError

_IMPOSSIBLE: Final = frozenset({errno.ENAMETOOLONG, errno.ELOOP})


def path_check(options: Options) -> MissingFiles | None:
    """Return the path check that the options ask for, or None."""
    return SourceFiles(Path(options.source_files_root)).missing if options.check_source_files else None


class SourceFiles:
    """Tells which source files of an evidence row exist below a root, by realpath."""

    def __init__(self, root: Path) -> None:
        self._root = os.path.realpath(root)

    def missing(self, names: Sequence[Any]) -> tuple[str, ...]:
        """Return the ``names`` that are no string, are not possible as a name, are not below the root, or do not exist.

        Raises:
            UnreadableError: The system cannot tell (EACCES, EIO), unless that is because of something outside the root.
        """
        return tuple(_shown(name) for name in names if not self._exists(name))

    def _exists(self, name: Any) -> bool:
        if not isinstance(name, str):
            return False
        path = os.path.join(self._root, name)
        try:
            # stat also refuses paths that realpath may simplify: a path below a file, and a file called ``name/``.
            os.stat(path)
            real = os.path.realpath(path, strict=True)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return False
        except OSError as error:
            if error.errno in _IMPOSSIBLE or self._is_refused_outside(path):
                return False
            raise UnreadableError("a source file of the path check", error) from error
        return real != self._root and self._holds(real)

    def _holds(self, real: str) -> bool:
        return real == self._root or real.startswith(self._root.rstrip("/") + "/")

    def _is_refused_outside(self, path: str) -> bool:
        """Return whether a path that the system refuses is outside the root at the refused step."""
        for step in (self._root, *accumulate(path.split("/"), "{}/{}".format)):
            try:
                os.stat(step)
            except FileNotFoundError:
                continue  # the empty step before the first slash
            except OSError:
                return not self._holds(os.path.realpath(step))
        return False


def _shown(name: Any) -> str:
    return name if isinstance(name, str) else "an entry that is no string"
