"""The commented config file with some of its keys set: what ``init`` and the demo write."""

from __future__ import annotations

import json
from collections.abc import Mapping

from distilld.config.settings import KEYS, ConfigError, ConfigFault, commented_toml
from distilld.core.model import ProgramError


def config_text(values: Mapping[str, bool | str], *, source: str) -> str:
    """Every key commented out with its default, those in ``values`` set. ``source`` names who gave them.

    Raises ConfigError where a value is not allowed.
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
        # A JSON text or switch is one of TOML's as well.
        text = f"{head}\n{name} = {json.dumps(value, ensure_ascii=False)}\n{rest.partition(chr(10))[2]}"
    if faults:
        raise ConfigError(tuple(faults))
    return text
