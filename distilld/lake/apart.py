"""Keep the input trees apart from distilld's own folders: its output must not become input (SPEC 5)."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from distilld.core.model import EXPORT_PATHS, REPORTS, SET_ASIDE, InputKind, OperatorError, UsageError
from distilld.core.remedies import remedy_of
from distilld.lake.scan import TREES

_Identity = tuple[int, int]
_OWN_FOLDERS: Final = sorted({str(Path(path).parent) for path in EXPORT_PATHS.values()})


def refuse_overlaps(root: Path, state: Path) -> None:
    """Refuse folders that overlap. They are compared by device and inode, as links and bind mounts have other names.

    Raises:
        UsageError: A tree contains, or is in, another tree, exports or reports; or contains the root or the state
            store; or one of distilld's own folders is a link.
        OperatorError: The system cannot tell.
    """
    for path in (*_OWN_FOLDERS, SET_ASIDE, REPORTS):
        if _is_link(root, path):
            raise UsageError(f"{path} is a link and is not followed", hint="put a folder in its place")
    trees = {TREES[kind]: _line(root / TREES[kind]) for kind in InputKind}
    own = {name: _line(root / name) for name in ("exports", "reports", *_OWN_FOLDERS, SET_ASIDE, REPORTS)}
    # These may contain the trees, but must not be in one.
    holders = {f"the root {root}": _line(root), f"the folder of the state store {state.parent}": _line(state.parent)}
    for name, tree in trees.items():
        for other, place in holders.items():
            if tree and tree[0] in place:
                raise _overlap(name, other)
        for other, place in {**trees, **own}.items():
            if other != name and tree and place and (tree[0] in place or place[0] in tree):
                raise _overlap(name, other)


def _is_link(root: Path, path: str) -> bool:
    try:
        return stat.S_ISLNK(os.lstat(root / path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise OperatorError(f"cannot look at {path}: {error.strerror}", hint=remedy_of(error)) from error


def _overlap(tree: str, other: str) -> UsageError:
    return UsageError(
        f"the input tree {tree} and {other} overlap: one contains the other, or both are the same folder",
        hint="give each a folder of its own; look where links and mounts lead with 'realpath'",
    )


def _line(folder: Path) -> tuple[_Identity, ...]:
    """Return the identities of a folder and all its parents, from the folder upwards; empty if it does not exist."""
    real, found = Path(os.path.realpath(folder)), list[_Identity]()
    with suppress(OSError):
        for each in (real, *real.parents):
            status = os.stat(each)
            found.append((status.st_dev, status.st_ino))
    return tuple(found)
