"""Write the commented config file, with some keys set, for ``init`` and the demo."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from typing import Final

from distilld.config.load import ConfigError, ConfigFault
from distilld.config.settings import DEFAULT_CONFIG_FILE, ENVIRONMENT_PREFIX, KEYS, ROOT_VARIABLE
from distilld.core.model import ProgramError

_FILE_COLUMNS: Final = 100


def commented_toml() -> str:
    """Return the config file of 'distilld init': every key with its meaning, and its default as a comment."""
    lines = [
        "# distilld: every setting with its default. Remove the '#' before a key to set it.",
        f"# Read from {DEFAULT_CONFIG_FILE} in the working directory, or from the file that --config names.",
        f"# Precedence: command line flag, environment ({ENVIRONMENT_PREFIX}<KEY>), this file, default.",
        "# Relative paths are taken from the working directory; a relative 'state' in this file from the root.",
    ]
    for key in KEYS.values():
        if key.begins:
            lines += ["", "", f"# ---- {key.begins} ----"]
        fallback = f"; {ROOT_VARIABLE} sets the default" if key.name == "root" else ""
        said = f"{key.meaning}\nAllowed: {key.kind.allowed}. Environment: {key.variable}{fallback}."
        lines += ["", *(f"# {part}" for line in said.splitlines() for part in textwrap.wrap(line, _FILE_COLUMNS - 2))]
        lines += [f"#{key.name} = {_toml(key.default)}"]
    return "\n".join(lines) + "\n"


def config_text(values: Mapping[str, bool | str], *, source: str) -> str:
    """Return the commented file with the keys in ``values`` set; ``source`` says in errors where these come from.

    Raises ConfigError if a value is not allowed.
    """
    text = commented_toml()
    faults = []
    for name, value in values.items():
        kind = KEYS[name].kind
        try:
            kind.read(value)
        except ValueError:
            faults.append(ConfigFault(name, repr(value), kind.allowed, source))
            continue
        start = f"\n#{name} = "
        head, found, rest = text.partition(start)
        if not found:
            raise ProgramError(f"the config file has no line for {name}")
        text = f"{head}\n{name} = {_toml(value)}\n{rest.partition(chr(10))[2]}"
    if faults:
        raise ConfigError(tuple(faults))
    return text


def _toml(value: bool | int | float | str) -> str:
    """Return a value as TOML: a JSON string, boolean or number is one, too."""
    return json.dumps(value, ensure_ascii=False)
