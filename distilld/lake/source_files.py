"""The path check (SPEC 3.5): whether the source files that an evidence row names exist.

Below a root that is away, such as a mount that is missing, every file is missing. That says nothing of the files, so
it counts as a refusal of the system: the row waits.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, NamedTuple

from distilld.core.firewall import MissingFiles
from distilld.core.model import Options, UnreadableError
from distilld.lake.scan import printable

REMEDY_OF_ROOT: Final = "mount it, make it readable for distilld's user, or correct source_files_root"
_ROOT: Final = "source_files_root "
"""How the path begins in an error that is about the root, and not about a file below it."""
_IMPOSSIBLE: Final = frozenset({errno.ENAMETOOLONG, errno.ELOOP})


def path_check(options: Options) -> MissingFiles | None:
    """Return the path check that the options ask for, or None."""
    return SourceFiles(Path(options.source_files_root)).missing if options.check_source_files else None


def is_root(path: str) -> bool:
    """Return whether the path of an error means the root of the path check."""
    return path.startswith(_ROOT)


class SourceFiles:
    """Tells which source files of an evidence row exist below a root, by realpath.

    The root is looked at for each row: a mount or a link may change at any time.
    """

    def __init__(self, root: Path) -> None:
        self._path = str(root)
        self._known: _Root | None = None

    def missing(self, names: Sequence[Any]) -> tuple[str, ...]:
        """Return the ``names`` that are no string, are not possible as a name, are not below the root, or do not exist.

        Raises:
            UnreadableError: The system cannot tell (EACCES, EIO), unless that is because of something outside the
                root. Or the root is away: it does not exist, is no folder, is empty, or was replaced meanwhile.
        """
        root = self._known = self._root(self._known)
        missing = tuple(_shown(name) for name in names if not root.has(name))
        if missing:
            self._known = None
            if self._is_empty():
                raise self._away(OSError(errno.ENOENT, "it is empty"))
            # Last, so that all answers are about one folder.
            if self._root() != root:
                raise self._away(OSError(errno.ENOENT, "it was replaced meanwhile"))
        return missing

    def _root(self, known: _Root | None = None) -> _Root:
        """Return what the root is now: ``known`` if it is still that folder, because its real path takes long."""
        try:
            # The slash asks for a folder.
            status = os.stat(f"{self._path}/")
            folder = (status.st_dev, status.st_ino)
            if known is not None and known.folder == folder:
                return known
            return _Root(self._path, os.path.realpath(self._path, strict=True), folder)
        except OSError as error:
            raise self._away(error) from error

    def _is_empty(self) -> bool:
        """Return whether there is nothing in the root, as in the mount point of a mount that is missing."""
        try:
            with os.scandir(self._path) as entries:
                return next(entries, None) is None
        except PermissionError:
            return False  # its files can be found without listing it
        except OSError as error:
            raise self._away(error) from error

    def _away(self, error: OSError) -> UnreadableError:
        return UnreadableError(_ROOT + printable(self._path), error, hint=REMEDY_OF_ROOT)


class _Root(NamedTuple):
    """What the root was at one moment: its path as it was given, its real path, and the identity of its folder."""

    path: str
    real: str
    folder: tuple[int, int]

    def has(self, name: Any) -> bool:
        """Return whether ``name`` exists below the folder."""
        if not isinstance(name, str):
            return False
        path = os.path.join(self.path, name)
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
        return real != self.real and self._holds(real)

    def _holds(self, real: str) -> bool:
        return real == self.real or real.startswith(self.real.rstrip("/") + "/")

    def _is_refused_outside(self, path: str) -> bool:
        """Return whether a path that the system refuses is outside the root at the refused step."""
        for step in (self.path, *accumulate(path.split("/"), "{}/{}".format)):
            try:
                os.stat(step)
            except FileNotFoundError:
                continue  # the empty step before the first slash
            except OSError:
                return not self._holds(os.path.realpath(step))
        return False


def _shown(name: Any) -> str:
    return name if isinstance(name, str) else "an entry that is no string"
