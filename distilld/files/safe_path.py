"""Find programs on the search path, never in the working directory."""

from __future__ import annotations

import os
import shutil


def find_program(name: str, search_path: str) -> str | None:
    """Return the absolute path of a program, or None. A name with a slash is already a path."""
    if "/" in name:
        return os.path.abspath(name)
    folders = [each for each in search_path.split(os.pathsep) if os.path.isabs(each)]
    return shutil.which(name, path=os.pathsep.join(folders)) if folders else None
