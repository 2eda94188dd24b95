"""Write the commented config file, with some keys set, for ``init`` and the demo."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from typing import Final

from distilld.config.load import ConfigError, fault_of
from distilld.config.settings import DEFAULT_CONFIG_FILE, ENVIRONMENT_PREFIX, KEYS, ROOT_VARIABLE

_FILE_COLUMNS: Final = 100


def config_text(values: Mapping[str, bool | str], *, source: str) -> str:
    """Return the config file: every key with its meaning, and its default as a comment, unless ``values`` sets it.

    ``source`` says in errors where the values come from.

    Raises ConfigError if a value is not allowed.
    """
    lines = [
        "# distilld: every setting with its default. Remove the '#' before a key to set it.",
        f"# Read from {DEFAULT_CONFIG_FILE} in the working directory, or from the file that --config names.",
        f"# Precedence: command line flag, environment ({ENVIRONMENT_PREFIX}<KEY>), this file, default.",
        "# Relative paths are taken from the working directory; a relative 'state' in this file from the root.",
    ]
    faults = []
    for key in KEYS.values():
        if key.begins:
            lines += ["", "", f"# ---- {key.begins} ----"]
        fallback = f"; {ROOT_VARIABLE} sets the default" if key.name == "root" else ""
        said = f"{key.meaning}\nAllowed: {key.kind.allowed}. Environment: {key.variable}{fallback}."
        lines += ["", *(f"# {part}" for line in said.splitlines() for part in textwrap.wrap(line, _FILE_COLUMNS - 2))]
        value, mark = (values[key.name], "") if key.name in values else (key.default, "#")
        if not key.kind.allows(value):
            faults.append(fault_of(source, key.name, value, key.kind.allowed))
        # A JSON string, boolean or number is one of TOML, too.
        lines.append(f"{mark}{key.name} = {json.dumps(value, ensure_ascii=False)}")
    if faults:
        raise ConfigError(faults)
    return "\n".join(lines) + "\n"
