"""The commented config file with some keys set."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from distilld.config.load import ConfigError, load
from distilld.config.template import config_text


@pytest.mark.parametrize("value", ["/srv/lake", 'a"b\\c', "ünï/日", "x = 'y' # z"])
def test_given_values_are_read_back(tmp_path: Path, value: str) -> None:
    """A path with any sign that is allowed in one comes back as it was given, and nothing else is set."""
    text = config_text({"root": value, "check_source_files": True}, source="test")
    assert tomllib.loads(text) == {"root": value, "check_source_files": True}
    path = tmp_path / "own.toml"
    path.write_text(text)
    settings = load(flags={}, environ={}, config_file=path, cwd=tmp_path)
    assert (settings.root, settings.check_source_files) == (tmp_path / value, True)


def test_wrong_values_are_all_told() -> None:
    """A value that is not allowed is a fault that names its key and who gave it."""
    with pytest.raises(ConfigError) as caught:
        config_text({"root": "", "state": "a\x00b"}, source="the command line")
    root, state = str(caught.value).splitlines()
    assert root.startswith("the command line: root = ''; allowed: ")
    assert state.startswith("the command line: state = 'a\\x00b'; allowed: ")
