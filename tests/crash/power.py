"""What a power cut takes: everything that no fsync has made to last.

A file keeps the content that it had at its last fsync, and a name stands as it stood when its folder was last synced.
The store is taken at its word: SQLite syncs what it commits.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.calls import Watcher


class Disk(Watcher):
    """Follows what the program makes below a root, and undoes at a cut what was not made to last.

    With ``names_last`` the names reach the disk on their own, as journals do it, and only the bytes are lost: the
    files have their new lengths then, and NUL bytes in them.
    """

    def __init__(self, root: Path, stash: Path, *, names_last: bool) -> None:
        self._root = root
        self._stash = stash
        self._names_last = names_last
        self._names: list[tuple[Path, Callable[[], object]]] = []
        self._contents: dict[int, bytes] = {}
        self._made = False
        self._kept = 0

    def before(self, name: str, arguments: tuple[Any, ...]) -> None:
        match name:
            case "open":
                path, flags = arguments
                self._made = bool(flags & os.O_CREAT) and not os.path.lexists(path)
            case "write" | "ftruncate":
                self._remember(arguments[0])
            case "rename" | "replace":
                source, target = map(Path, arguments[:2])
                self._name_changes(target, self._undo_rename(source, target))
            case "unlink" | "remove":
                path = Path(arguments[0])
                if os.path.lexists(path):
                    self._name_changes(path, self._undo_unlink(path))

    def after(self, name: str, arguments: tuple[Any, ...]) -> None:
        match name:
            case "open" if self._made:
                path = Path(arguments[0])
                self._contents[path.stat().st_ino] = b""
                self._name_changes(path, path.unlink)
            case "mkdir":
                path = Path(arguments[0])
                self._name_changes(path, lambda: shutil.rmtree(path))
            case "rmdir":
                path = Path(arguments[0])
                self._name_changes(path, path.mkdir)
            case "fsync":
                self._synced(arguments[0])

    def _name_changes(self, path: Path, undo: Callable[[], object]) -> None:
        self._names.append((path.parent, undo))

    def _undo_rename(self, source: Path, target: Path) -> Callable[[], object]:
        old = self._keep(target) if target.exists() else None

        def undo() -> None:
            target.rename(source)
            if old is not None:
                old.rename(target)

        return undo

    def _undo_unlink(self, path: Path) -> Callable[[], object]:
        old = self._keep(path)
        return lambda: old.rename(path)

    def _keep(self, path: Path) -> Path:
        """Another name for a file, so that it can come back as the very file that it was."""
        self._kept += 1
        other = self._stash / str(self._kept)
        os.link(path, other)
        return other

    def _remember(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if status.st_ino not in self._contents:
            self._contents[status.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

    def _synced(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            folder = Path(f"/proc/self/fd/{descriptor}").readlink()
            self._names = [change for change in self._names if change[0] != folder]
        else:
            self._contents.pop(status.st_ino, None)

    def cut(self) -> None:
        if not self._names_last:
            for _, undo in reversed(self._names):
                undo()
        for path in [*self._root.rglob("*"), *self._stash.iterdir()]:
            if path.is_file() and not path.is_symlink():
                status = path.stat()
                content = self._contents.get(status.st_ino)
                if content is not None:
                    path.write_bytes(content.ljust(status.st_size, b"\0") if self._names_last else content)
