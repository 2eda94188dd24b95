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
        real = os.path.realpath

        def refused(path: str, **named: Any) -> str:
            if path.endswith("lib.rs"):
                raise PermissionError(13, "Permission denied")
            return real(path, **named)

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


class TestRootThatIsAway:
    """Below a root that is not there, every file is missing, and that says nothing of the files."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        """A root with one file, beside a folder with another one."""
        for name in ("root", "other"):
            (tmp_path / name).mkdir()
            (tmp_path / name / f"{name}.rs").touch()
        return tmp_path / "root"

    @pytest.mark.parametrize("names", [["root.rs"], ["none.rs"], [None]])
    def test_root_that_does_not_exist(self, root: Path, names: list[object]) -> None:
        """Nothing is said of any entry until it is there, whether it was there before or not."""
        check = SourceFiles(root)
        check.missing(["root.rs"])
        root.rename(root.with_name("away"))
        for each in (check, SourceFiles(root)):
            with pytest.raises(UnreadableError, match=rf"^cannot read source_files_root {root}: No such file"):
                each.missing(names)
        root.with_name("away").rename(root)
        assert check.missing(["root.rs", "none.rs"]) == ("none.rs",)

    def test_root_that_is_a_file(self, root: Path) -> None:
        """It is no folder of sources."""
        with pytest.raises(UnreadableError, match="Not a directory"):
            SourceFiles(root / "root.rs").missing(["x.rs"])

    @pytest.mark.parametrize("target", ["nothing", "root"])
    def test_root_that_is_a_broken_link(self, root: Path, target: str) -> None:
        """It leads to nothing, or to itself."""
        root.rename(root.with_name("away"))
        root.symlink_to(target)
        with pytest.raises(UnreadableError, match="source_files_root"):
            SourceFiles(root).missing(["root.rs"])

    def test_empty_root(self, root: Path) -> None:
        """It is the mount point of a mount that is missing."""
        (root / "root.rs").unlink()
        with pytest.raises(UnreadableError, match=r"source_files_root .*: it is empty"):
            SourceFiles(root).missing(["root.rs"])

    def test_root_that_may_not_be_listed(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its files can be found all the same."""

        def refused(_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "scandir", refused)
        assert SourceFiles(root).missing(["root.rs", "none.rs"]) == ("none.rs",)

    def test_root_that_cannot_be_listed(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The disk fails, so nobody knows what is there."""

        def failing(_: object) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "scandir", failing)
        assert SourceFiles(root).missing(["root.rs"]) == ()
        with pytest.raises(UnreadableError, match="Input/output error"):
            SourceFiles(root).missing(["none.rs"])

    @pytest.mark.parametrize("step", ["first.rs", "second.rs", "scandir"])
    @pytest.mark.parametrize("mounted", [True, False])
    def test_mount_that_comes_or_goes_between_two_steps(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, step: str, mounted: bool
    ) -> None:
        """A link stands for the mount: it leads to the empty mount point, or to what is mounted, and then to the other.

        No file of either folder is called missing.
        """
        real_stat, real_scandir = os.stat, os.scandir
        point, mount = root.with_name("point"), root.with_name("mount")
        point.mkdir()
        root.rename(mount)
        (mount / "first.rs").touch()
        (mount / "second.rs").touch()
        root.symlink_to(mount if mounted else point)

        def switch(reached: str) -> None:
            if reached == step:
                root.unlink()
                root.symlink_to(point if mounted else mount)

        def stat(path: Any, **named: Any) -> os.stat_result:
            switch(str(path).rpartition("/")[2])
            return real_stat(path, **named)

        def scandir(path: str) -> Any:
            switch("scandir")
            return real_scandir(path)

        check = SourceFiles(root)
        with monkeypatch.context() as patch:
            patch.setattr(os, "stat", stat)
            patch.setattr(os, "scandir", scandir)
            with pytest.raises(UnreadableError, match=r"it is empty|it was replaced meanwhile"):
                check.missing(["first.rs", "second.rs", "none.rs"])
        root.unlink()
        root.symlink_to(mount)
        assert check.missing(["first.rs", "second.rs", "none.rs"]) == ("none.rs",)

    @pytest.mark.parametrize("late", [False, True])
    def test_link_that_leads_elsewhere_later(self, root: Path, late: bool) -> None:
        """The root may be a link, as to the newest release: what it leads to now counts."""
        link = root.with_name("link")
        link.symlink_to("nothing" if late else "root")
        check = SourceFiles(link)
        if late:
            with pytest.raises(UnreadableError):
                check.missing(["root.rs"])
        else:
            assert check.missing(["root.rs", "other.rs"]) == ("other.rs",)
        link.unlink()
        link.symlink_to("other")
        assert check.missing(["other.rs"]) == ()
        assert check.missing(["root.rs"]) == ("root.rs",)

    def test_folder_that_moves_behind_its_link(self, root: Path) -> None:
        """The same folder has another real path then; its files are not outside, whatever takes its old place."""
        link = root.with_name("link")
        link.symlink_to("root")
        check = SourceFiles(link)
        assert check.missing(["root.rs"]) == ()
        root.rename(root.with_name("moved"))
        link.unlink()
        link.symlink_to("moved")
        root.mkdir()
        (root / "none.rs").touch()
        with pytest.raises(UnreadableError, match="it was replaced meanwhile"):
            check.missing(["root.rs", "none.rs"])
        assert check.missing(["root.rs", "none.rs"]) == ("none.rs",)


def refuse_search(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """The system refuses every path that leads through a folder."""
    real = os.stat

    def refusing(path: Any, **named: Any) -> os.stat_result:
        *passed, _ = accumulate(os.fspath(path).split("/"), "{}/{}".format)
        if str(folder) in map(os.path.realpath, filter(None, passed)):
            raise PermissionError(13, "Permission denied")
        return real(path, **named)

    monkeypatch.setattr(os, "stat", refusing)
