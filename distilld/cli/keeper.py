"""Root works on a lake as the user who keeps it: what root left behind, that user could not open."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from distilld.core.model import UsageError


def become_keeper(root: Path, state: Path, *, works: bool) -> None:
    """Give up root's powers for those of the user who keeps the lake; nobody else's process changes anything.

    A command that only looks (``works`` is False) goes on as root where the system does not let it become that user.

    Raises:
        UsageError: The system does not let this process become that user.
    """
    if os.geteuid() != 0 or (found := _keeper(root, state)) is None:
        return
    uid, gid = found.st_uid, found.st_gid
    name = f"the user {uid}"
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        groups = [gid]
    else:
        name, gid, groups = entry.pw_name, entry.pw_gid, os.getgrouplist(entry.pw_name, entry.pw_gid)
        os.environ.update(HOME=entry.pw_dir, USER=entry.pw_name, LOGNAME=entry.pw_name)
    try:
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.seteuid(uid)
        # What is imported from here on, that user must come to.
        for module in (os.__file__, __file__):
            with open(module, "rb"):
                pass
        os.seteuid(0)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        if os.getuid() == 0 and os.geteuid() != 0:
            os.seteuid(0)
        if not works and os.geteuid() == 0:
            return
        raise UsageError(
            f"the lake {root} is kept by {name}, and root cannot go on as that user: {error.strerror}",
            hint="run a distilld that this user can run, as this user:"
            f" setpriv --reuid {uid} --regid {gid} --init-groups distilld ...",
        ) from error


def _keeper(root: Path, state: Path) -> os.stat_result | None:
    """What the keeper owns: the first of these that is there and is not root's."""
    for path in (root / "exports", state, state.parent, root):
        try:
            found = os.stat(path)
        except OSError:
            continue
        if found.st_uid != 0:
            return found
    return None
