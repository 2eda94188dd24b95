"""The state store: opened only by whom it belongs to, whole after every transaction, readable by people at any time."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlite_utils import Database, Migrations

from distilld import __version__
from distilld.core.model import OperatorError
from distilld.store import connection as module
from distilld.store.connection import (
    Form,
    NotAStoreError,
    Store,
    StoreCorruptError,
    StoreFaultError,
    StoreOfOtherRootError,
    StoreTooNewError,
)
from distilld.store.migrations import MIGRATION_SET
from tests.support.committed import at_rest
from tests.support.deaths import Killed, in_child
from tests.support.histories import Lake


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store is to stand."""
    return tmp_path / "state" / "distilld.db"


class TestOpening:
    """Who may open what."""

    def test_a_new_store_is_made_with_its_folders(self, path: Path, tmp_path: Path) -> None:
        """All migrations are applied; it knows its root and the version that wrote it."""
        with closing(Store.open(path, tmp_path)) as store:
            assert Form(store).is_current
            assert (store.recall("root"), store.recall("distilld_version")) == (str(tmp_path), __version__)

    def test_a_writer_goes_without_pandas(self, path: Path, tmp_path: Path) -> None:
        """Where pandas is installed, it is not imported along with sqlite-utils, which only a migration needs."""
        code = (
            "import sys; from pathlib import Path; from distilld.store.connection import Store\n"
            "with Store.open(Path(sys.argv[1]), Path(sys.argv[2])).transaction(): pass\n"
            "print('sqlite_utils' in sys.modules, 'pandas' in sys.modules, 'numpy' in sys.modules)\n"
            "import pandas"
        )
        for imported in ("True False False\n", "False False False\n"):
            run = subprocess.run(
                [sys.executable, "-c", code, str(path), str(tmp_path)], capture_output=True, text=True, check=False
            )
            assert (run.returncode, run.stdout, run.stderr) == (0, imported, "")

    def test_it_is_opened_as_it_was_left(self, path: Path, tmp_path: Path) -> None:
        """A second opening changes nothing in it."""
        Store.open(path, tmp_path).close()
        with closing(sqlite3.connect(path)) as plain:
            before = "\n".join(plain.iterdump())
        Store.open(path, tmp_path).close()
        with closing(sqlite3.connect(path)) as plain:
            assert "\n".join(plain.iterdump()) == before

    def test_a_commit_is_on_the_disk(self, path: Path, tmp_path: Path) -> None:
        """synchronous = FULL and a write-ahead log: a power cut takes no commit back, and readers do not wait."""
        with closing(Store.open(path, tmp_path)) as store:
            pragmas = {name: store.connection.execute(f"PRAGMA {name}").fetchone()[0] for name in
                       ("synchronous", "journal_mode", "foreign_keys")}  # fmt: skip
        assert pragmas == {"synchronous": 2, "journal_mode": "wal", "foreign_keys": 1}

    def test_a_newer_store_is_refused_with_both_versions_named(self, path: Path, tmp_path: Path) -> None:
        """And it is left as it is, by writers and by readers."""
        with closing(Store.open(path, tmp_path)) as store:
            store.remember("distilld_version", "9.8.7")
            store.connection.execute(
                "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('distilld', 'm999_later', '')"
            )
        before = path.read_bytes()
        opens: list[Callable[[], Store]] = [lambda: Store.open(path, tmp_path), lambda: Store.reading(path).__enter__()]
        for opening in opens:
            with pytest.raises(StoreTooNewError) as raised:
                opening()
            assert "9.8.7" in str(raised.value)
            assert __version__ in str(raised.value)
            assert "m999_later" in str(raised.value)
            assert raised.value.hint
        assert path.read_bytes() == before

    def test_the_version_that_wrote_it_is_kept_up_to_date(
        self, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The story: the version was written behind the migrations and only with them; a kill in between left a store
        that a newer version had made and that named none, and a release without a migration never showed."""
        real = Store.remember

        def die(self: Store, name: str, value: str | None) -> None:
            raise Killed

        monkeypatch.setattr(Store, "remember", die)
        with pytest.raises(Killed):
            Store.open(path, tmp_path)
        monkeypatch.setattr(Store, "remember", real)
        with closing(Store.open(path, tmp_path)) as store:
            assert store.recall("distilld_version") == __version__
        monkeypatch.setattr(module, "__version__", "0.1.1")
        with closing(Store.open(path, tmp_path)) as store:
            assert store.recall("distilld_version") == "0.1.1"

    def test_a_store_belongs_to_one_root(self, path: Path, tmp_path: Path) -> None:
        """Both roots are named, and the store is left as it is."""
        Store.open(path, tmp_path).close()
        before = path.read_bytes()
        with pytest.raises(StoreOfOtherRootError) as raised:
            Store.open(path, tmp_path / "other")
        assert str(tmp_path / "other") in str(raised.value)
        assert f"the root {tmp_path}," in str(raised.value)
        assert path.read_bytes() == before

    def test_a_database_of_something_else_is_left_alone(self, path: Path, tmp_path: Path) -> None:
        """The story: ``--state`` named another program's database by mistake, and got 25 tables into it."""
        path.parent.mkdir()
        with closing(sqlite3.connect(path)) as other:
            other.execute("CREATE TABLE invoices (number INTEGER)")
        before = path.read_bytes()
        with pytest.raises(NotAStoreError, match="is a database of something else"):
            Store.open(path, tmp_path)
        assert path.read_bytes() == before

    @pytest.mark.parametrize("content", [b"not a database, but long enough to be looked at" * 100, b"\0" * 8192, None])
    def test_a_file_that_is_no_database_is_corrupt(self, path: Path, tmp_path: Path, content: bytes | None) -> None:
        """Garbage, zeros, a store whose first page was overwritten."""
        Store.open(path, tmp_path).close()
        for beside in path.parent.glob("*-*"):
            beside.unlink()
        path.write_bytes(content if content is not None else b"x" * 100 + path.read_bytes()[100:])
        with pytest.raises(StoreCorruptError, match="is corrupt") as raised:
            Store.open(path, tmp_path)
        assert raised.value.hint

    def test_an_empty_file_becomes_a_store(self, path: Path, tmp_path: Path) -> None:
        """So a start that was killed at once leaves it."""
        path.parent.mkdir()
        path.touch()
        with closing(Store.open(path, tmp_path)) as store:
            assert store.recall("root") == str(tmp_path)

    def test_what_the_system_refuses_is_told(self, path: Path, tmp_path: Path) -> None:
        """A path that cannot be a store's names itself and says what to do."""
        path.parent.write_text("")
        with pytest.raises(StoreFaultError, match=r"cannot open the state store .*distilld\.db") as raised:
            Store.open(path, tmp_path)
        assert raised.value.hint

    @pytest.mark.parametrize(
        "make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/null")], ids=["fifo", "folder", "device"]
    )
    def test_what_is_no_regular_file_is_refused_at_once(
        self, path: Path, tmp_path: Path, make: Callable[[Path], None]
    ) -> None:
        """By writers and readers, and it is left as it is. The story: readers waited for ever for a FIFO."""
        path.parent.mkdir()
        make(path)
        before = path.lstat()
        opens: list[Callable[[], Store]] = [lambda: Store.open(path, tmp_path), lambda: Store.reading(path).__enter__()]
        for opening in opens:
            with pytest.raises(NotAStoreError, match="is no regular file"):
                opening()
        assert path.lstat() == before

    def test_a_file_of_one_byte_is_no_empty_store(self, path: Path, tmp_path: Path) -> None:
        """The story: SQLite takes one byte for an empty database, and wrote a store over it."""
        path.parent.mkdir()
        path.write_bytes(b"\n")
        opens: list[Callable[[], Store]] = [lambda: Store.open(path, tmp_path), lambda: Store.reading(path).__enter__()]
        for opening in opens:
            with pytest.raises(StoreCorruptError):
                opening()
        assert path.read_bytes() == b"\n"

    def test_reading_needs_a_store(self, path: Path) -> None:
        """A reader makes none."""
        with pytest.raises(OperatorError, match="there is no state store"):
            Store.reading(path).__enter__()
        assert not path.parent.exists()

    def test_reading_says_why_a_store_cannot_be_read_yet(self, path: Path, tmp_path: Path) -> None:
        """An empty file, a store that was cut off while it was made, and one of an older version are told apart.

        The stories: all of them, and another program's database as well, were called a store of an older version; and
        beside the daemon of that version, the remedy was a run, which it keeps out.
        """

        def told(hint: str = "run 'distilld run --once'") -> str:
            with pytest.raises(OperatorError) as raised:
                Store.reading(path).__enter__()
            assert raised.value.hint == hint
            return str(raised.value)

        path.parent.mkdir()
        path.touch()
        assert told() == f"the state store {path} is empty"
        with closing(sqlite3.connect(path)) as plain:
            Migrations(MIGRATION_SET).ensure_migrations_table(Database(plain))
        assert told() == f"the state store {path} was cut off while it was made"
        Store.open(path, tmp_path).close()
        with closing(sqlite3.connect(path)) as plain, plain:
            plain.execute("DELETE FROM _sqlite_migrations WHERE name = 'm002_indexes_of_exceptions'")
        remedy = "restart the daemon if one runs, else run 'distilld run --once'"
        assert told(remedy) == f"the state store {path} is of an older version"
        with closing(sqlite3.connect(path)) as plain, plain:
            plain.execute("DELETE FROM lake WHERE name = 'root'")
        assert told() == f"the state store {path} was cut off while it was made"

    def test_reading_a_database_of_something_else(self, path: Path) -> None:
        """A reader is told the same of it as a writer."""
        path.parent.mkdir()
        with closing(sqlite3.connect(path)) as other:
            other.execute("CREATE TABLE invoices (number INTEGER)")
        with pytest.raises(NotAStoreError, match="is a database of something else"):
            Store.reading(path).__enter__()

    def test_a_reader_cannot_write(self, path: Path, tmp_path: Path) -> None:
        """Not even by mistake."""
        Store.open(path, tmp_path).close()
        with pytest.raises(StoreFaultError, match="readonly"), Store.reading(path) as store:
            store.remember("root", "elsewhere")

    def test_a_failed_opening_leaves_no_descriptor_open(self, path: Path, tmp_path: Path) -> None:
        """Whatever was refused."""
        Store.open(path, tmp_path).close()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            with pytest.raises(StoreOfOtherRootError):
                Store.open(path, tmp_path / "other")
        assert len(os.listdir("/proc/self/fd")) == before


class TestTransactions:
    """All of it or nothing."""

    def test_what_raises_is_undone(self, path: Path, tmp_path: Path) -> None:
        """Whatever it raises; and the store goes on."""
        with closing(Store.open(path, tmp_path)) as store:

            def half(error: type[BaseException]) -> None:
                with store.transaction():
                    store.remember("half", "done")
                    raise error

            for error in (ValueError, Killed):
                with pytest.raises(error):
                    half(error)
            with store.transaction():
                store.remember("whole", "done")
            assert (store.recall("half"), store.recall("whole")) == (None, "done")

    def test_a_full_store_is_undone_and_goes_on(self, path: Path, tmp_path: Path) -> None:
        """SQLITE_FULL in the middle: the transaction is gone as a whole, and with room the next one works."""
        with closing(Store.open(path, tmp_path)) as store:
            pages = store.connection.execute("PRAGMA page_count").fetchone()[0]
            store.connection.execute(f"PRAGMA max_page_count = {pages + 2}")

            def fill() -> None:
                with store.transaction():
                    store.remember("first", "small")
                    store.remember("second", "x" * 100_000)

            with pytest.raises(StoreFaultError, match="database or disk is full") as raised:
                fill()
            assert raised.value.hint
            assert store.recall("first") is None
            store.connection.execute("PRAGMA max_page_count = 1000000")
            with store.transaction():
                store.remember("second", "x" * 100_000)
            assert store.recall("second") == "x" * 100_000

    def test_a_second_writer_waits_no_longer_than_told(self, path: Path, tmp_path: Path) -> None:
        """The lock is taken at the beginning: who does not get it has read nothing that could be stale by then."""
        with closing(Store.open(path, tmp_path)) as one, closing(Store.open(path, tmp_path)) as other:
            other.connection.execute("PRAGMA busy_timeout = 1")
            with one.transaction(), pytest.raises(StoreFaultError, match="locked"), other.transaction():
                raise AssertionError("two writers at once")

    def test_a_wrong_statement_is_no_fault_of_the_system(self, path: Path, tmp_path: Path) -> None:
        """It comes through as the bug that it is."""
        with (
            closing(Store.open(path, tmp_path)) as store,
            pytest.raises(sqlite3.OperationalError, match="no such table"),
            store.transaction(),
        ):
            store.connection.execute("SELECT * FROM no_such")

    def test_a_reading_sees_one_state(self, path: Path, tmp_path: Path) -> None:
        """What is committed meanwhile is not in it."""
        with closing(Store.open(path, tmp_path)) as writer:
            with Store.reading(path) as reader:
                assert reader.recall("later") is None
                writer.remember("later", "yes")
                assert reader.recall("later") is None
            with Store.reading(path) as reader:
                assert reader.recall("later") == "yes"

    def test_a_page_that_was_damaged_is_noticed_where_it_is_read(self, lake: Lake) -> None:
        """A store that opens well and is broken inside raises StoreCorruptError, not a bug's traceback."""
        store = lake.root / "state" / "distilld.db"
        for beside in store.parent.glob("*-*"):
            beside.unlink()
        content = bytearray(store.read_bytes())
        with closing(sqlite3.connect(store)) as plain:
            pages = [
                page
                for (page,) in plain.execute(
                    "SELECT rootpage FROM sqlite_master WHERE name IN ('files', 'export_files')"
                )
            ]
            size = plain.execute("PRAGMA page_size").fetchone()[0]
        for beside in store.parent.glob("*-*"):
            beside.unlink()
        for page in pages:
            content[(page - 1) * size : page * size] = b"\xa5" * size
        store.write_bytes(content)
        with pytest.raises(StoreCorruptError):
            lake.start()


VIEWS = (
    "row_places",
    "run_history",
    "seen_ids",
    "quarantine_by_reason",
    "file_lag",
    "batch_history",
    "dataset_history",
)


class TestReaders:
    """People read it with what they have."""

    def test_there_is_no_view_that_is_not_tested_here(self, lake: Lake) -> None:
        """Each new one comes into the list."""
        with lake.opened() as engine:
            views = engine.store.connection.execute("SELECT name FROM sqlite_master WHERE type = 'view'")
            assert set(VIEWS) == {name for (name,) in views}

    @pytest.mark.parametrize("view", VIEWS)
    def test_views_answer_while_a_writer_holds_a_transaction(self, lake: Lake, view: str) -> None:
        """With plain sqlite3 and with the sqlite-utils command, and they see what was committed."""
        path = lake.root / "state" / "distilld.db"
        with lake.opened() as engine, engine.store.transaction():
            engine.store.connection.execute("DELETE FROM batches WHERE 0")
            engine.store.remember("uncommitted", "yes")
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as plain:
                rows = plain.execute(f"SELECT * FROM {view}").fetchall()
            assert rows
            if view == VIEWS[0]:
                shown = subprocess.run(
                    [sys.executable, "-m", "sqlite_utils", "rows", str(path), view],
                    capture_output=True, text=True, check=True,
                )  # fmt: skip
                assert len(json.loads(shown.stdout.replace("\n]", "]"))) == len(rows)

    def test_they_tell_what_stands_in_the_files(self, lake: Lake) -> None:
        """Ids, reasons and lag are those of the exports and of the inputs."""
        with closing(sqlite3.connect(lake.root / "state" / "distilld.db")) as plain:
            seen = plain.execute("SELECT dataset, id FROM seen_ids ORDER BY 1, 2").fetchall()
            reasons = plain.execute(
                "SELECT dataset, sum(rows) FROM quarantine_by_reason GROUP BY 1 ORDER BY 1"
            ).fetchall()
            lag = plain.execute("SELECT sum(unread_bytes), sum(unjudged_lines) FROM file_lag").fetchone()
            (history,) = plain.execute("SELECT count(*) FROM run_history WHERE run_id = 'b1'").fetchone()
        rest = at_rest(lake.root)
        datasets = ("preference", "rag", "sft")
        assert seen == sorted((name, each) for name in datasets for each in rest[name])
        assert reasons == [(name, sum(rest[f"quarantine_{name}"].values())) for name in datasets]
        assert lag == (0, 0)
        assert history == 2

    @pytest.fixture
    def public_folder(self) -> Iterator[Path]:
        """A folder that anybody may read, and that nobody but us may write to."""
        with tempfile.TemporaryDirectory(prefix="distilld-") as folder:
            os.chmod(folder, 0o755)
            yield Path(folder)
            os.chmod(folder, 0o755)

    @pytest.mark.parametrize("running", [True, False], ids=["beside a writer", "after its end"])
    def test_who_may_not_write_can_read(self, public_folder: Path, running: bool) -> None:
        """A WAL database needs its -wal and -shm: a clean close leaves them behind, empty, for operators of the group."""
        path = public_folder / "distilld.db"
        before = os.umask(0o007)
        store = Store.open(path, public_folder)
        os.umask(before)
        store.remember("told", "yes")
        if not running:
            store.close()
            assert {name.name for name in public_folder.iterdir()} == {
                path.name,
                f"{path.name}-wal",
                f"{path.name}-shm",
            }
            assert path.with_name(f"{path.name}-wal").stat().st_size == 0

        def read() -> None:
            if os.geteuid() == 0:
                os.setuid(65534)
            else:
                os.chmod(public_folder, 0o555)
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as reader:
                assert reader.execute("SELECT value FROM lake WHERE name = 'told'").fetchone() == ("yes",)
                with pytest.raises(sqlite3.OperationalError):
                    reader.execute("DELETE FROM lake")

        assert in_child(read) == 0
        if running:
            store.close()

    def test_closing_is_no_place_to_fail(self, path: Path, tmp_path: Path) -> None:
        """The courtesy to readers may fail; the store is closed and whole before it."""
        store = Store.open(path, tmp_path)
        path.unlink()
        store.close()
