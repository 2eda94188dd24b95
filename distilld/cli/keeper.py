"""Root changes to the user who owns the lake, since that user could not open files that root creates."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from distilld.core.model import UsageError


def become_keeper(root: Path, state: Path, *, works: bool) -> None:
    """Change from root to the user who owns the lake. Do nothing if this process is not root's, or the lake is.

    A command that only reads (``works`` is False) continues as root if the system refuses the change.

    Raises:
        UsageError: The system refuses the change of user.
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
        # That user must be able to read the modules that are imported later.
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
    """Return the status of the first of these paths that exists and is not root's: its user owns the lake."""
    for path in (root / "exports", state, state.parent, root):
        try:
            found = os.stat(path)
        except OSError:
            continue
        if found.st_uid != 0:
            return found
    return None
