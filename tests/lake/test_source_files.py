"""The path check (SPEC 3.5): which source files exist below the root, and when nothing can be said of them."""

from __future__ import annotations

import os
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from distilld.core.model import UnreadableError
from distilld.lake.source_files import SourceFiles


class TestSourceFiles:
    """The path check (SPEC 3.5)."""

    @pytest.fixture
    def check(self, tmp_path: Path) -> SourceFiles:
        """A root with one file in a folder, a link to it, and links that lead out and in a circle."""
        root = tmp_path / "root"
        (root / "src").mkdir(parents=True)
        (root / "src/lib.rs").write_text("")
        (root / "alias.rs").symlink_to("src/lib.rs")
        (tmp_path / "outside.rs").write_text("")
        (root / "out.rs").symlink_to("../outside.rs")
        (root / "circle").symlink_to("circle")
        return SourceFiles(root)

    @pytest.mark.parametrize("name", ["src/lib.rs", "alias.rs", "./src/../src/lib.rs", "src", "src/"])
    def test_what_exists_below_the_root(self, check: SourceFiles, name: str) -> None:
        """It is found by its real path, folders too."""
        assert check.missing([name]) == ()

    @pytest.mark.parametrize(
        "name", ["src/none.rs", "../outside.rs", "out.rs", "/etc/passwd", "circle", "a\0b", "x" * 5000, "src/lib.rs/x"]
    )
    def test_what_does_not(self, check: SourceFiles, name: str) -> None:
        """What is not there, leads out, or is impossible as a name does not exist."""
        assert check.missing([name]) == (name,)

    @pytest.mark.parametrize("name", ["", ".", "/", "src/..", "../root", "{root}", "{root}/"])
    def test_the_root_is_not_below_itself(self, tmp_path: Path, check: SourceFiles, name: str) -> None:
        """The story: an empty entry, or '.', counted as a file that exists, and the row exported."""
        entry = name.format(root=tmp_path / "root")
        assert check.missing([entry]) == (entry,)

    @pytest.mark.parametrize(
        "name", ["src/lib.rs/", "src/lib.rs/.", "src/lib.rs/..", "src/lib.rs/../lib.rs", "alias.rs/"]
    )
    def test_nothing_stands_below_a_file(self, check: SourceFiles, name: str) -> None:
        """The story: what the system refuses as 'not a directory' counted as the file, for its real path is that."""
        assert check.missing([name]) == (name,)

    def test_below_the_root_of_all(self) -> None:
        """Where sources are looked for below '/', everything but '/' is below it."""
        assert SourceFiles(Path("/")).missing(["/", "tmp", "/tmp/."]) == ("/",)

    @pytest.mark.parametrize("entry", [None, 1, [], {}])
    def test_an_entry_that_is_no_string_does_not_exist(self, check: SourceFiles, entry: object) -> None:
        """And its value is shown to nobody."""
        assert check.missing(["src/lib.rs", entry]) == ("an entry that is no string",)

    def test_a_lone_surrogate_is_impossible_as_a_name(self, check: SourceFiles) -> None:
        """It does not exist, and raises nothing."""
        assert check.missing(["\ud800"]) == ("\ud800",)

    def test_a_sibling_whose_name_begins_like_the_root_is_outside(self, tmp_path: Path, check: SourceFiles) -> None:
        """``root-2`` is not below ``root``."""
        (tmp_path / "root-2").mkdir()
        (tmp_path / "root-2/x").write_text("")
        assert check.missing(["../root-2/x"]) == ("../root-2/x",)

    def test_what_the_system_will_not_say_is_an_error(
        self, check: SourceFiles, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """EACCES and EIO are errors, not answers."""

        def refused(*_: object, **__: object) -> str:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os.path, "realpath", refused)
        with pytest.raises(UnreadableError, match="a source file of the path check: Permission denied"):
            check.missing(["src/lib.rs"])

    @pytest.mark.parametrize(
        "name", ["../private/x", "{out}/private/x", "{out}/private/../root/src", "led/x", "led/.."]
    )
    def test_what_is_refused_outside_the_root_leads_out(
        self, tmp_path: Path, check: SourceFiles, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        """It does not exist, whether the entry itself or a link leads there, and even if it would come back.

        The story: one evidence row that named a file in another user's folder made every pass fail.
        """
        (tmp_path / "private").mkdir()
        (tmp_path / "root/led").symlink_to("../private")
        refuse_search(monkeypatch, tmp_path / "private")
        entry = name.format(out=tmp_path)
        assert check.missing([entry]) == (entry,)

    @pytest.mark.parametrize("refused", [".", "root", "root/src"])
    @pytest.mark.parametrize("name", ["src/lib.rs", "src/../alias.rs", "{out}/root/src/none.rs"])
    def test_what_is_refused_inside_the_root_is_an_error(
        self, tmp_path: Path, check: SourceFiles, monkeypatch: pytest.MonkeyPatch, refused: str, name: str
    ) -> None:
        """On the way to the root as well: nothing can be said of any entry then."""
        refuse_search(monkeypatch, tmp_path / refused)
        with pytest.raises(UnreadableError, match="Permission denied"):
            check.missing([name.format(out=tmp_path)])


def refuse_search(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """The system refuses every path that leads through a folder."""
    real = os.stat

    def refusing(path: Any, **named: Any) -> os.stat_result:
        *passed, _ = accumulate(os.fspath(path).split("/"), "{}/{}".format)
        if str(folder) in map(os.path.realpath, filter(None, passed)):
            raise PermissionError(13, "Permission denied")
        return real(path, **named)

    monkeypatch.setattr(os, "stat", refusing)
