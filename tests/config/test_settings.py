"""The settings: where a value comes from, which values are allowed, and how faults are told."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from distilld.config.load import ConfigError, load
from distilld.config.settings import KEYS, Settings
from distilld.config.template import config_text
from distilld.core.model import OnDelete, Options, ProgramError, UsageError

COMMITTED_FILE = Path(__file__).parents[2] / "config" / "distilld.toml"

VALID = [
    ("root", '"/lake"', Path("/lake")),
    ("root", '"lake/../lake"', Path("{cwd}/lake/../lake")),
    ("state", '"elsewhere.db"', Path("{cwd}/elsewhere.db")),
    ("state", '"/var/lib/distilld/distilld.db"', Path("/var/lib/distilld/distilld.db")),
    ("executor", '""', ""),
    ("executor", '"dask://host.example:8786"', "dask://host.example:8786"),
    ("executor", '"dask://[fd00::1]:8786"', "dask://[fd00::1]:8786"),
    ("include_partial", "true", True),
    ("include_review", "true", True),
    ("revoke", "false", False),
    ("check_source_files", "true", True),
    ("source_files_root", '"sources"', Path("{cwd}/sources")),
    ("source_files_root", '""', Path("{cwd}")),
    ("missing_source_file", '"(none)"', "(none)"),
    ("missing_source_file", '"a\\tb"', "a\tb"),
    ("on_delete", '"withdraw"', OnDelete.WITHDRAW),
    ("tripwire_rows", "0", 0),
    ("tripwire_share", "0", 0.0),
    ("tripwire_share", "1", 1.0),
    ("max_line_bytes", "1024", 1024),
    ("max_exports_per_run", "0", 0),
    ("debounce_ms", "0", 0),
    ("settle_seconds", "0", 0.0),
    ("settle_seconds", "0.25", 0.25),
    ("rescan_seconds", "0.5", 0.5),
    ("scrub_hours", "0", 0.0),
    ("scrub_hours", "0.01", 0.01),
    ("batch_rows", "1", 1),
    ("workers", "4", 4),
    ("receipts_keep", "0", 0),
    ("log_level", '"debug"', "debug"),
    ("log_format", '"json"', "json"),
    ("metrics_file", '"metrics.prom"', Path("{cwd}/metrics.prom")),
    ("metrics_file", '""', None),
]

INVALID = [
    ("executor", '"host:8786"', "dask://HOST:PORT"),
    ("executor", '"tcp://host:8786"', "dask://HOST:PORT"),
    ("executor", '"dask://host"', "dask://HOST:PORT"),
    ("executor", '"dask://host:0"', "dask://HOST:PORT"),
    ("executor", '"dask://host:65536"', "dask://HOST:PORT"),
    ("executor", '"dask://user@host:8786"', "dask://HOST:PORT"),
    ("executor", "8786", "dask://HOST:PORT"),
    ("root", '""', "a path"),
    ("root", "1", "a path"),
    ("root", '"a\\u0000b"', "a path"),
    ("root", '"a\\nb"', "a path"),
    ("state", '""', "a path"),
    ("state", "{ file = 'x' }", "a path"),
    ("include_partial", "1", "true or false"),
    ("include_partial", '"true"', "true or false"),
    ("revoke", '"no"', "true or false"),
    ("missing_source_file", "false", "a text"),
    ("on_delete", '"KEEP"', "keep or withdraw"),
    ("on_delete", "true", "keep or withdraw"),
    ("tripwire_rows", "-1", "a whole number from 0 to"),
    ("tripwire_rows", "true", "a whole number from 0 to"),
    ("tripwire_share", "1.01", "a number from 0 up to 1"),
    ("tripwire_share", "-0.1", "a number from 0 up to 1"),
    ("tripwire_share", "nan", "a number from 0 up to 1"),
    ("tripwire_share", "true", "a number from 0 up to 1"),
    ("max_line_bytes", "1023", "a whole number from 1024 to"),
    ("max_exports_per_run", "-1", "a whole number from 0 to"),
    ("debounce_ms", "-1", "a whole number from 0 to"),
    ("debounce_ms", "1.0", "a whole number from 0 to"),
    ("settle_seconds", "-0.001", "a number from 0 up to"),
    ("settle_seconds", "inf", "a number from 0 up to"),
    ("rescan_seconds", "0", "a number above 0 up to"),
    ("rescan_seconds", "1979-05-27", "a number above 0 up to"),
    ("batch_rows", "0", "a whole number from 1 to"),
    ("batch_rows", '"many"', "a whole number from 1 to"),
    ("batch_rows", f"{10**30}", "a whole number from 1 to"),
    ("workers", "-1", "a whole number from 0 to"),
    ("receipts_keep", "-1", "a whole number from 0 to"),
    ("log_level", '"loud"', "debug or info or warning or error"),
    ("log_format", '"xml"', "auto or json or console"),
    ("metrics_file", "[]", "a path"),
]

FROM_ENVIRONMENT = [
    ("include_partial", "true", True),
    ("include_partial", "1", True),
    ("include_partial", "YES", True),
    ("revoke", "false", False),
    ("revoke", "0", False),
    ("revoke", "No", False),
    ("batch_rows", "12", 12),
    ("settle_seconds", "2", 2.0),
    ("settle_seconds", "0.5", 0.5),
    ("on_delete", "withdraw", OnDelete.WITHDRAW),
    ("log_level", "error", "error"),
    ("missing_source_file", "", ""),
    ("metrics_file", "", None),
]

REFUSED_FROM_ENVIRONMENT = [
    ("include_partial", "on"),
    ("include_partial", ""),
    ("batch_rows", ""),
    ("batch_rows", "1e3"),
    ("batch_rows", "1_000"),
    ("batch_rows", "\N{ARABIC-INDIC DIGIT THREE}"),
    ("batch_rows", "9" * 5000),
    ("settle_seconds", "nan"),
    ("settle_seconds", "one"),
    ("root", ""),
    ("root", "a\x1bb"),
    ("root", "a\udcffb"),
    ("missing_source_file", "\udcff"),
]


def loaded(
    cwd: Path,
    toml: str | None = None,
    *,
    flags: dict[str, object] | None = None,
    environ: dict[str, str] | None = None,
) -> Settings:
    """The settings for a working directory whose config/distilld.toml holds ``toml``."""
    if toml is not None:
        (cwd / "config").mkdir(exist_ok=True)
        (cwd / "config" / "distilld.toml").write_text(toml, encoding="utf-8")
    return load(flags=flags or {}, environ=environ or {}, config_file=None, cwd=cwd)


def faults(cwd: Path, toml: str | None = None, **given: Any) -> list[str]:
    """What ``loaded`` complains about."""
    with pytest.raises(ConfigError) as caught:
        loaded(cwd, toml, **given)
    return str(caught.value).splitlines()


def test_defaults_are_those_of_the_contract(tmp_path: Path) -> None:
    """Without flag, variable or file every setting has the default that SPEC 5.1 gives it."""
    assert loaded(tmp_path) == Settings(
        root=tmp_path,
        state=tmp_path / "state" / "distilld.db",
        include_partial=False,
        include_review=False,
        revoke=True,
        check_source_files=False,
        source_files_root=tmp_path,
        missing_source_file="",
        on_delete=OnDelete.KEEP,
        tripwire_rows=1000,
        tripwire_share=0.5,
        max_line_bytes=8_388_608,
        max_exports_per_run=1000,
        debounce_ms=100,
        settle_seconds=1.0,
        rescan_seconds=300.0,
        scrub_hours=24.0,
        batch_rows=50_000,
        workers=0,
        executor="",
        writer="daemon",
        receipts_keep=10_000,
        log_level="info",
        log_format="auto",
        metrics_file=None,
    )


def test_keys_are_the_settings() -> None:
    """The table of keys and the fields of Settings are the same names, in the same order."""
    assert tuple(KEYS) == tuple(field.name for field in fields(Settings))


@pytest.mark.parametrize(("key", "toml", "expected"), VALID)
def test_valid_value_is_taken_from_the_file(tmp_path: Path, key: str, toml: str, expected: object) -> None:
    """A valid value in the file is the value in force, paths made absolute from the working directory."""
    if isinstance(expected, Path):
        expected = Path(str(expected).replace("{cwd}", str(tmp_path)))
    value = getattr(loaded(tmp_path, f"{key} = {toml}\n"), key)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(("key", "toml", "allowed"), INVALID)
def test_invalid_value_is_told_with_key_value_and_what_is_allowed(
    tmp_path: Path, key: str, toml: str, allowed: str
) -> None:
    """A value of the wrong type or range is one fault that names file, key, value and what is allowed."""
    (fault,) = faults(tmp_path, f"{key} = {toml}\n")
    assert re.match(rf"config/distilld\.toml: {key} = .*; allowed: {re.escape(allowed)}", fault)


@pytest.mark.parametrize(("key", "text", "expected"), FROM_ENVIRONMENT)
def test_variable_is_read_as_the_key_takes_it(tmp_path: Path, key: str, text: str, expected: object) -> None:
    """A DISTILLD_<KEY> variable wins over the file, its text read as the key's type asks."""
    value = getattr(loaded(tmp_path, environ={KEYS[key].variable: text}), key)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(("key", "text"), REFUSED_FROM_ENVIRONMENT)
def test_variable_that_spells_no_allowed_value_is_a_fault(tmp_path: Path, key: str, text: str) -> None:
    """A variable whose text is no allowed value is one fault that names the variable."""
    (fault,) = faults(tmp_path, environ={KEYS[key].variable: text})
    assert fault.startswith(f"{KEYS[key].variable}: {key} = ")
    assert fault.isprintable()


def test_flag_wins_over_variable_over_file_over_default(tmp_path: Path) -> None:
    """Of flag, variable, file and default the first that is given decides, key by key."""
    toml = "batch_rows = 2\nworkers = 2\nreceipts_keep = 2\n"
    environ = {"DISTILLD_BATCH_ROWS": "3", "DISTILLD_WORKERS": "3"}
    settings = loaded(tmp_path, toml, environ=environ, flags={"batch_rows": 4, "workers": None})
    assert (settings.batch_rows, settings.workers, settings.receipts_keep, settings.tripwire_rows) == (4, 3, 2, 1000)


@pytest.mark.parametrize(
    ("flag", "variable", "toml", "expected"),
    [
        (None, None, None, "/older"),
        (None, None, 'root = "/file"', "/file"),
        (None, "/variable", 'root = "/file"', "/variable"),
        (Path("/flag"), "/variable", 'root = "/file"', "/flag"),
    ],
)
def test_older_variable_is_the_default_of_root(
    tmp_path: Path, flag: Path | None, variable: str | None, toml: str | None, expected: str
) -> None:
    """LH_DISTILL_ROOT stands in for the default of root, and loses against everything else."""
    environ = {"LH_DISTILL_ROOT": "/older"} | ({"DISTILLD_ROOT": variable} if variable else {})
    assert loaded(tmp_path, toml, environ=environ, flags={"root": flag}).root == Path(expected)


def test_older_variable_that_is_empty_counts_as_not_set(tmp_path: Path) -> None:
    """An empty LH_DISTILL_ROOT leaves the default of root as it is."""
    assert loaded(tmp_path, environ={"LH_DISTILL_ROOT": ""}).root == tmp_path


def test_relative_paths_start_at_the_working_directory_and_state_at_the_root(tmp_path: Path) -> None:
    """A relative state is taken from the root, every other relative path from the working directory."""
    toml = 'root = "lake"\nstate = "s.db"\nsource_files_root = "src"\nmetrics_file = "m.prom"\n'
    settings = loaded(tmp_path, toml)
    assert settings.root == tmp_path / "lake"
    assert settings.state == tmp_path / "lake" / "s.db"
    assert settings.source_files_root == tmp_path / "src"
    assert settings.metrics_file == tmp_path / "m.prom"


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_state_that_is_not_from_the_file_starts_at_the_working_directory(tmp_path: Path, how: str) -> None:
    """The story: --state own.db named another file than the shell's own completion showed."""
    flags: dict[str, object] = {"state": "s.db"} if how == "flag" else {}
    environ = {} if flags else {"DISTILLD_STATE": "s.db"}
    (tmp_path / "lake").mkdir()
    assert loaded(tmp_path, 'root = "lake"\n', environ=environ, flags=flags).state == tmp_path / "s.db"
    below = tmp_path / "lake" / "s.db"
    below.touch()
    (fault,) = faults(tmp_path, 'root = "lake"\n', environ=environ, flags=flags)
    assert fault.startswith(f"{'--state' if how == 'flag' else 'DISTILLD_STATE'}: state = ")
    assert str(below) in fault
    assert str(tmp_path / "s.db") in fault
    (tmp_path / "s.db").touch()
    assert loaded(tmp_path, 'root = "lake"\n', environ=environ, flags=flags).state == tmp_path / "s.db"


def test_source_files_root_is_the_root_by_default(tmp_path: Path) -> None:
    """Without source_files_root the path check looks below the root."""
    assert loaded(tmp_path, 'root = "/lake"').source_files_root == Path("/lake")


def test_unknown_key_names_the_nearest_known_one(tmp_path: Path) -> None:
    """An unknown key in the file is a fault that names the nearest key."""
    (fault,) = faults(tmp_path, "batch_row = 5\n")
    assert fault == "config/distilld.toml: batch_row is not a known key; the nearest one is batch_rows"


def test_unknown_variable_is_a_warning_that_names_the_nearest_known_one(tmp_path: Path) -> None:
    """The story: Kubernetes sets DISTILLD_SERVICE_HOST beside a service named distilld, and every command ended with 2."""
    told: list[str] = []
    environ = {"DISTILLD_ONDELETE": "withdraw", "DISTILLD_SERVICE_HOST": "10.0.0.1", "OTHER": "x"}
    settings = load(flags={}, environ=environ, config_file=None, cwd=tmp_path, warn=told.append)
    assert settings.on_delete is OnDelete.KEEP
    assert told[0] == "the environment: DISTILLD_ONDELETE is not a known key; the nearest one is DISTILLD_ON_DELETE"
    assert "DISTILLD_SERVICE_HOST" in told[1]
    assert "10.0.0.1" not in told[1]


@pytest.mark.parametrize("toml", ["[distilld]\nroot = '/x'\n", "a.b = 1\n", "'' = 1\n", '"\\u001b[2J" = 1\n'])
def test_every_unknown_key_has_a_nearest_one(tmp_path: Path, toml: str) -> None:
    """However far an unknown key is from the known ones, one of them is named, and the message prints safely."""
    (fault,) = faults(tmp_path, toml)
    assert fault.rpartition(" ")[2] in KEYS
    assert fault.isprintable()


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    """Faults of the file, the environment and the flags come in one error, a line each."""
    with pytest.raises(ConfigError) as caught:
        loaded(
            tmp_path,
            "revok = true\nbatch_rows = 0\nlog_level = 'loud'\n",
            environ={"DISTILLD_WORKERS": "-1"},
            flags={"tripwire_share": 7.0},
        )
    error = caught.value
    assert isinstance(error, UsageError)
    assert [line.partition(": ")[2].split(" ")[0] for line in str(error).splitlines()] == [
        "revok", "batch_rows", "log_level", "workers", "tripwire_share",
    ]  # fmt: skip
    assert "init" in error.hint


def test_value_that_loses_is_checked_too(tmp_path: Path) -> None:
    """A wrong value in the file is a fault even where a flag wins over it."""
    (fault,) = faults(tmp_path, "batch_rows = 0\n", flags={"batch_rows": 5})
    assert fault.startswith("config/distilld.toml: ")


def test_flag_is_named_as_it_is_typed(tmp_path: Path) -> None:
    """A fault in a flag names the flag as it stands on the command line."""
    (fault,) = faults(tmp_path, flags={"batch_rows": 0})
    assert fault.startswith("--batch-rows: ")


def test_flag_without_a_key_is_a_bug(tmp_path: Path) -> None:
    """A flag that sets no known key is the program's fault, not the operator's."""
    with pytest.raises(ProgramError):
        loaded(tmp_path, flags={"colour": "blue"})


def test_shown_value_is_escaped_and_short(tmp_path: Path) -> None:
    """A value in a message takes at most 80 characters, and none that does not print."""
    (fault,) = faults(tmp_path, 'log_level = "\\u001b[2J\\u202e\\u0085\\u007f' + "x" * 500 + '"\n')
    value = fault.removeprefix("config/distilld.toml: log_level = ").partition("; allowed: ")[0]
    assert len(value) == 80
    assert value.startswith("'\\x1b[2J\\u202e\\x85\\x7fxxx")
    assert value.endswith("...")
    assert fault.isprintable()


@pytest.mark.parametrize(
    "toml",
    [
        "workers = 0x" + "F" * 5000,
        "workers = [0b1" + "0" * 50_000 + "]",
        # Deeper than any version of Python goes, of parts that each can be read.
        "workers" + (".a" * 1000 + " = {a") * 40 + " = 1" + "}" * 40,
    ],
)
def test_value_that_cannot_be_shown_is_a_fault_like_others(tmp_path: Path, toml: str) -> None:
    """The story: Python writes no such number in decimal and no such depth at all; a start ended with a traceback."""
    (fault,) = faults(tmp_path, toml + "\n")
    assert re.match(r"config/distilld\.toml: workers = <(int|list|dict)>; allowed: a whole number", fault)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"root = \n", "is not TOML"),
        (b"root = '/a'\nroot = '/b'\n", "is not TOML"),
        (b"root = '\xff'\n", "is not UTF-8 (byte 8)"),
        (b"batch_rows = " + b"9" * 5000 + b"\n", "is not TOML"),
        (b"x = " + b"[" * 5000 + b"]" * 5000 + b"\n", "is not TOML"),
        (b"'\x1b[2J' \n", "is not TOML"),
        (b"#" * (1 << 20) + b"\n", "is longer than 1,048,576 bytes"),
    ],
)
def test_file_that_is_no_toml_is_a_fault(tmp_path: Path, content: bytes, told: str) -> None:
    """A file that cannot be parsed is one fault with the file's name and the place, safe to print."""
    file = tmp_path / "my.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(flags={}, environ={}, config_file=file, cwd=tmp_path)
    (fault,) = str(caught.value).splitlines()
    assert fault.startswith(f"{file}: {told}")
    assert fault.isprintable()


def test_default_file_may_be_missing_but_a_named_one_may_not(tmp_path: Path) -> None:
    """Only a file that somebody named must be there."""
    assert loaded(tmp_path).root == tmp_path
    with pytest.raises(ConfigError, match=r"my\.toml: cannot be read \(No such file or directory\)"):
        load(flags={}, environ={}, config_file=Path("my.toml"), cwd=tmp_path)


def test_file_that_cannot_be_read_is_a_fault_even_by_default(tmp_path: Path) -> None:
    """A default file that is there and cannot be read is told, not passed over."""
    (tmp_path / "config" / "distilld.toml").mkdir(parents=True)
    (fault,) = faults(tmp_path)
    assert fault.startswith("config/distilld.toml: cannot be read (is no regular file)")


@pytest.mark.timeout(10)
def test_fifo_in_the_files_place_is_a_fault(tmp_path: Path) -> None:
    """It is not waited for: a start hung on it, and a daemon at SIGHUP, which then heard no signal any more."""
    os.mkfifo(tmp_path / "my.toml")
    with pytest.raises(ConfigError, match=r"my\.toml: cannot be read \(is no regular file\)"):
        load(flags={}, environ={}, config_file=Path("my.toml"), cwd=tmp_path)


def test_file_may_be_reached_by_a_link(tmp_path: Path) -> None:
    """An operator may keep the file elsewhere; a link to nothing is no file."""
    (tmp_path / "kept.toml").write_text("workers = 3\n")
    (tmp_path / "my.toml").symlink_to("kept.toml")
    assert load(flags={}, environ={}, config_file=Path("my.toml"), cwd=tmp_path).workers == 3
    (tmp_path / "kept.toml").unlink()
    with pytest.raises(ConfigError, match="No such file or directory"):
        load(flags={}, environ={}, config_file=Path("my.toml"), cwd=tmp_path)


def test_named_file_is_found_from_the_working_directory(tmp_path: Path) -> None:
    """A relative config file is taken from the working directory, and replaces the default one."""
    (tmp_path / "my.toml").write_text("workers = 3\n")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "distilld.toml").write_text("batch_rows = 7\n")
    settings = load(flags={}, environ={}, config_file=Path("my.toml"), cwd=tmp_path)
    assert (settings.workers, settings.batch_rows) == (3, 50_000)


def test_options_hold_what_changes_the_target_state(tmp_path: Path) -> None:
    """options() hands on every setting that changes the target state, and no other."""
    toml = (
        'root = "/lake"\ninclude_partial = true\ninclude_review = true\nrevoke = false\non_delete = "withdraw"\n'
        'check_source_files = true\nmissing_source_file = "?"\nmax_line_bytes = 2048\n'
        "max_exports_per_run = 7\nworkers = 9\n"
    )
    assert loaded(tmp_path, toml).options() == Options(
        include_partial=True,
        include_review=True,
        revoke=False,
        on_delete=OnDelete.WITHDRAW,
        check_source_files=True,
        source_files_root="/lake",
        missing_source_file="?",
        max_line_bytes=2048,
        max_exports_per_run=7,
    )


def test_committed_file_is_the_generated_one() -> None:
    """config/distilld.toml is what 'distilld init' would write."""
    assert COMMITTED_FILE.read_text(encoding="utf-8") == config_text({}, source="test")


def test_commented_file_changes_nothing(tmp_path: Path) -> None:
    """The commented file as it stands leaves every default in force."""
    assert loaded(tmp_path, config_text({}, source="test")) == loaded(tmp_path)


def test_commented_defaults_are_the_defaults(tmp_path: Path) -> None:
    """With the comment signs taken from the keys, the file names every key and still says the defaults."""
    lines = config_text({}, source="test").splitlines()
    toml = "\n".join(line.removeprefix("#") if line[1:2].isalpha() else line for line in lines)
    defaults = loaded(tmp_path)
    assert sum(line[:1].isalpha() for line in toml.splitlines()) == len(KEYS)
    assert loaded(tmp_path, toml) == defaults


def test_commented_file_names_every_variable() -> None:
    """Each key of the file stands with its environment variable."""
    assert re.findall(r"DISTILLD_[A-Z_]+", config_text({}, source="test")) == [key.variable for key in KEYS.values()]


def test_import_brings_nothing_slow() -> None:
    """Reading the config imports no library that takes long to load."""
    code = "import sys, distilld.config.settings; print(*sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(COMMITTED_FILE.parents[1])}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    slow = {"click", "orjson", "pydantic", "rich", "sqlite_utils", "structlog", "watchfiles"}
    assert not slow & set(run.stdout.split())


def test_a_byte_order_mark_before_the_file_is_fine(tmp_path: Path) -> None:
    """An editor on Windows writes one; it gave 'Invalid statement (line 1, column 1)'."""
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xef\xbb\xbfbatch_rows = 7\n")
    assert load(flags={}, environ={}, config_file=path, cwd=tmp_path).batch_rows == 7


def test_limits_are_the_settings_of_their_names(tmp_path: Path) -> None:
    """What bounds the work of a pass is handed on as it was set, so that a new limit is named here and nowhere else."""
    given: dict[str, object] = {
        "batch_rows": 7,
        "settle_seconds": 0.5,
        "tripwire_rows": 3,
        "tripwire_share": 0.25,
        "receipts_keep": 9,
    }
    given["scrub_hours"] = 6
    given |= {"workers": 2, "executor": "dask://host:8786"}
    limits = load(flags=given, environ={}, config_file=None, cwd=tmp_path).limits()
    assert limits._asdict() == given
