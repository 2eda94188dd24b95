"""The partitions on disk: walk order, three levels exactly, and whatever is no regular file told and left alone."""

from __future__ import annotations

import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilld.core.model import InputChanged, InputKind, UnreadableError
from distilld.lake.scan import ListingError, Scan, open_partition, printable, scan, tree_path, walk_key
from tests.support.builders import PROPERTY

SCORED, EVIDENCE = InputKind.SCORED, InputKind.EVIDENCE


def put(root: Path, path: str, content: bytes = b"{}\n", tree: str = "scored-runs") -> Path:
    """A file of an input tree."""
    file = root / "data" / tree / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def paths(found: Scan, kind: InputKind = SCORED) -> list[str]:
    """The paths of one tree, in the order of the scan."""
    return [file.path for file in found.files if file.kind is kind]


def problems(found: Scan) -> dict[str, str]:
    """What is not read, and why."""
    return {oddity.path: oddity.problem for oddity in found.oddities}


def test_walk_order_compares_components_not_strings(tmp_path: Path) -> None:
    """The folder ``a`` stands before ``a-b``, though as strings ``a-b/…`` comes before ``a/…``."""
    wanted = [
        "2026/a/01/x.jsonl",
        "2026/a/02/x.jsonl",
        "2026/a-b/01/x.jsonl",
        "2026/a.b/01/x.jsonl",
        "2027/0/0/x.jsonl",
    ]
    for path in reversed(wanted):
        put(tmp_path, path)
    assert paths(scan(tmp_path)) == wanted
    assert sorted(wanted) != wanted


def test_walk_order_takes_the_extension_along(tmp_path: Path) -> None:
    """``a.jsonl`` stands behind ``a-b.jsonl`` and before ``a0.jsonl``: names are compared whole."""
    wanted = [f"2026/04/27/{name}" for name in ("a-b.jsonl", "a.b.jsonl", "a.jsonl", "a0.jsonl")]
    for path in wanted:
        put(tmp_path, path)
    assert paths(scan(tmp_path)) == wanted


def test_walk_order_is_by_code_point(tmp_path: Path) -> None:
    """U+FFFD stands before U+1F600, which UTF-16 would have the other way round."""
    wanted = ["2026/04/27/\ufffd.jsonl", "2026/04/27/\U0001f600.jsonl"]
    for path in reversed(wanted):
        put(tmp_path, path)
    assert paths(scan(tmp_path)) == wanted


@PROPERTY
@given(st.lists(st.text("a-/.0é", min_size=1).filter(lambda path: "//" not in path), unique=True))
def test_walk_key_is_a_total_order_of_components(names: list[str]) -> None:
    """Sorting by the key sorts by components, and no two paths share a key."""
    keys = [walk_key(name) for name in sorted(names, key=walk_key)]
    assert keys == sorted(tuple(name.split("/")) for name in names)
    assert len(set(keys)) == len(names)


def test_three_levels_exactly(tmp_path: Path) -> None:
    """Files one level higher or lower are not read, and are no fault."""
    put(tmp_path, "x.jsonl")
    put(tmp_path, "2026/x.jsonl")
    put(tmp_path, "2026/04/x.jsonl")
    put(tmp_path, "2026/04/27/x.jsonl")
    put(tmp_path, "2026/04/27/deeper/x.jsonl")
    found = scan(tmp_path)
    assert paths(found) == ["2026/04/27/x.jsonl"]
    assert found.oddities == ()


def test_only_jsonl_and_dotfiles_too(tmp_path: Path) -> None:
    """Every regular file that ends in .jsonl is read, a dotfile and a bare suffix too; nothing else is."""
    for name in (".hidden.jsonl", ".jsonl", "x.jsonl", "x.JSONL", "x.json", "x.jsonl.gz", "x.jsonl~", "x"):
        put(tmp_path, f"2026/04/27/{name}")
    assert [path.rpartition("/")[2] for path in paths(scan(tmp_path))] == [".hidden.jsonl", ".jsonl", "x.jsonl"]


def test_both_trees_are_walked_side_by_side(tmp_path: Path) -> None:
    """A partition's evidence stands beside its scored rows."""
    put(tmp_path, "2026/04/28/b.jsonl")
    put(tmp_path, "2026/04/27/a.jsonl")
    put(tmp_path, "2026/04/28/b.jsonl", tree="evidence")
    found = scan(tmp_path)
    assert [(file.path[-7:], file.kind) for file in found.files] == [
        ("a.jsonl", SCORED),
        ("b.jsonl", EVIDENCE),
        ("b.jsonl", SCORED),
    ]


@pytest.mark.parametrize("folder", ["26/04/27", "2026/13/27", "2026/00/27", "2026/04/32", "2026/04/00", "2026/4/27"])
def test_odd_folder_names_are_read_and_told(tmp_path: Path, folder: str) -> None:
    """A folder that is no date is read all the same, and named once, though it stands in both trees."""
    put(tmp_path, f"{folder}/x.jsonl")
    put(tmp_path, f"{folder}/x.jsonl", tree="evidence")
    found = scan(tmp_path)
    assert paths(found) == [f"{folder}/x.jsonl"]
    assert found.odd_folders == (folder,)


def test_folder_without_partitions_draws_no_warning(tmp_path: Path) -> None:
    """Folders that hold no partition are nobody's concern, whatever their names; 'tmp' was warned of once."""
    put(tmp_path, "tmp/x/y/notes.txt")
    (tmp_path / "data/scored-runs/2026/lost+found").mkdir(parents=True)
    assert scan(tmp_path).odd_folders == ()


def test_dates_are_not_odd(tmp_path: Path) -> None:
    """YYYY/MM/DD draws no warning."""
    put(tmp_path, "2026/12/31/x.jsonl")
    assert scan(tmp_path).odd_folders == ()


def test_lock_link_of_an_editor_is_no_input(tmp_path: Path) -> None:
    """Emacs keeps one beside a file that it has open; health was red for as long. Any other link is reported."""
    real = put(tmp_path, "2026/04/27/real.jsonl")
    (real.parent / ".#real.jsonl").symlink_to("ann@host.example.4711:1777300000")
    (real.parent / ".#other.jsonl").symlink_to("real.jsonl")
    assert problems(scan(tmp_path)) == {"data/scored-runs/2026/04/27/.#other.jsonl": "is a link and is not followed"}


def test_links_are_reported_and_not_followed(tmp_path: Path) -> None:
    """Neither a linked file nor a linked folder at any level is read."""
    real = put(tmp_path, "2026/04/27/real.jsonl")
    (real.parent / "linked.jsonl").symlink_to(real)
    (real.parent / "dangling.jsonl").symlink_to("nowhere")
    (real.parent.parent / "28").symlink_to(real.parent)
    (tmp_path / "data/scored-runs/2027").symlink_to(tmp_path / "data/scored-runs/2026")
    (tmp_path / "data/scored-runs/loop").symlink_to(".")
    found = scan(tmp_path)
    assert paths(found) == ["2026/04/27/real.jsonl"]
    linked = ("2026/04/27/linked.jsonl", "2026/04/27/dangling.jsonl", "2026/04/28", "2027", "loop")
    assert problems(found) == {f"data/scored-runs/{path}": "is a link and is not followed" for path in linked}


def test_what_is_no_regular_file_is_reported_and_blocks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A FIFO, a socket and a folder named x.jsonl are told; the file beside them is read."""
    folder = put(tmp_path, "2026/04/27/real.jsonl").parent
    os.mkfifo(folder / "fifo.jsonl")
    (folder / "folder.jsonl").mkdir()
    monkeypatch.chdir(folder)  # a socket's address must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.jsonl")
        found = scan(tmp_path)
    assert paths(found) == ["2026/04/27/real.jsonl"]
    names = ("fifo", "folder", "socket")
    assert problems(found) == {f"data/scored-runs/2026/04/27/{name}.jsonl": "is no regular file" for name in names}


@pytest.mark.skipif(sys.platform == "darwin", reason="this system has no such names")
def test_hostile_names_are_reported_in_a_form_that_harms_nobody(tmp_path: Path) -> None:
    """A name that is not UTF-8 or holds control characters is told with those escaped, and not read; a folder's too."""
    folder = put(tmp_path, "2026/04/27/real.jsonl").parent
    for name in (
        b"\xff\xfe.jsonl",
        b"line\nfeed.jsonl",
        b"esc\x1b[31m.jsonl",
        b"del\x7f.jsonl",
    ):
        (Path(os.fsdecode(os.fsencode(folder) + b"/" + name))).write_bytes(b"{}\n")
    hostile = Path(os.fsdecode(os.fsencode(folder.parent) + b"/\x80\n"))
    hostile.mkdir()
    (hostile / "x.jsonl").write_bytes(b"{}\n")
    found = scan(tmp_path)
    assert paths(found) == ["2026/04/27/real.jsonl"]
    base = "data/scored-runs/2026/04"
    assert problems(found) == {
        f"{base}/27/\\xff\\xfe.jsonl": "has a name that is not UTF-8",
        f"{base}/27/line\\x0afeed.jsonl": "has control characters in its name",
        f"{base}/27/esc\\x1b[31m.jsonl": "has control characters in its name",
        f"{base}/27/del\\x7f.jsonl": "has control characters in its name",
        f"{base}/\\x80\\x0a": "has a name that is not UTF-8",
    }


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\u00a0", "\u200b", "\ufeff"], ids=ascii)
def test_odd_signs_that_are_no_control_characters_are_read(tmp_path: Path, sign: str) -> None:
    """The story: files whose names hold a line separator were left out, with the verdicts in them."""
    put(tmp_path, f"2026/04/2{sign}7/a{sign}.jsonl")
    found = scan(tmp_path)
    assert paths(found) == [f"2026/04/2{sign}7/a{sign}.jsonl"]
    assert not found.oddities


def test_printable_leaves_no_end_of_line() -> None:
    """A path stands on one line, whatever its reader takes for the end of one."""
    assert printable("a\u2028b\u2029c\nd\x85") == "a\\x2028b\\x2029c\\x0ad\\x85"


def test_printable_leaves_plain_paths_alone() -> None:
    """A path without anything odd is shown as it is, letters beyond ASCII too."""
    assert printable("data/évidence/😀 x.jsonl") == "data/évidence/😀 x.jsonl"


def test_missing_trees_are_empty(tmp_path: Path) -> None:
    """What is missing is told apart from what is empty, and is no error here."""
    assert scan(tmp_path) == Scan((), (), (), frozenset(InputKind), {})
    (tmp_path / "data/evidence").mkdir(parents=True)
    assert scan(tmp_path).missing == {SCORED}


@pytest.mark.parametrize("linked", ["data", "data/scored-runs"])
def test_the_trees_themselves_may_be_links(tmp_path: Path, linked: str) -> None:
    """Operators mount them elsewhere; a link that leads nowhere is an error, for a mount may be missing."""
    put(tmp_path / "disk", "2026/04/27/x.jsonl")
    root = tmp_path / "root"
    (root / linked).parent.mkdir(parents=True)
    (root / linked).symlink_to(tmp_path / "disk" / linked)
    assert paths(scan(root)) == ["2026/04/27/x.jsonl"]
    with open_partition(root, SCORED, "2026/04/27/x.jsonl") as (descriptor, facts):
        assert (os.pread(descriptor, 10, 0), facts.size) == (b"{}\n", 3)
    (tmp_path / "disk").rename(tmp_path / "unmounted")
    with pytest.raises(ListingError, match=f"cannot list {linked}: it is a link to nothing"):
        scan(root)


def test_a_tree_that_is_a_file_is_reported(tmp_path: Path) -> None:
    """It cannot be listed, so what it holds is unknown; the other tree is read all the same."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/scored-runs").write_text("")
    put(tmp_path, "2026/04/27/x.jsonl", tree="evidence")
    found = scan(tmp_path)
    assert [(each.path, each.problem) for each in found.not_listed] == [
        ("data/scored-runs/", "cannot be listed: Not a directory")
    ]
    assert found.is_unknown(SCORED, "2026/04/27/x.jsonl")
    assert not found.is_unknown(EVIDENCE, "2026/04/27/x.jsonl")
    assert paths(found, EVIDENCE) == ["2026/04/27/x.jsonl"]


def test_a_folder_that_may_be_listed_and_not_searched_is_unknown_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a day folder of mode 0444 the names can be had and nothing else: no file of it counts as looked at."""
    put(tmp_path, "2026/04/27/x.jsonl")
    put(tmp_path, "2026/04/28/x.jsonl")
    real = os.scandir

    class Entry:
        name = "z.jsonl"

        def stat(self, **_: object) -> os.stat_result:
            raise PermissionError(13, "Permission denied")

    class Listing:
        def __init__(self, folder: str) -> None:
            with real(folder) as entries:
                self.found: list[Any] = list(entries)
            if folder.endswith("27"):
                self.found.append(Entry())

        def __enter__(self) -> list[Any]:
            return self.found

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Listing)
    found = scan(tmp_path)
    assert paths(found) == ["2026/04/28/x.jsonl"]
    assert [each.path for each in found.not_listed] == ["data/scored-runs/2026/04/27/"]


def test_lost_and_found_is_no_partition_folder(tmp_path: Path) -> None:
    """The story: on a lake that is a mount of its own, root's ``lost+found`` ended every pass."""
    put(tmp_path, "lost+found/01/01/x.jsonl")
    put(tmp_path, "2026/lost+found/01/x.jsonl")
    found = scan(tmp_path)
    assert found.ignored == ("data/scored-runs/lost+found",)
    assert (found.not_listed, found.oddities) == ((), ())
    assert paths(found) == ["2026/lost+found/01/x.jsonl"]


def test_a_root_that_may_not_be_searched_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The story: a look at the tree that failed with EACCES escaped as an error of another kind, or meant 'missing'."""
    real = os.stat

    def refused(path: Any, **named: Any) -> os.stat_result:
        if str(path).endswith("scored-runs"):
            raise PermissionError(13, "Permission denied")
        return real(path, **named)

    put(tmp_path, "2026/04/27/x.jsonl")
    monkeypatch.setattr(os, "stat", refused)
    with pytest.raises(ListingError, match="cannot list data/scored-runs: Permission denied"):
        scan(tmp_path)


def test_a_file_that_goes_between_listing_and_look_is_left_to_the_next_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is neither an error nor a partition."""
    gone = put(tmp_path, "2026/04/27/gone.jsonl")
    put(tmp_path, "2026/04/27/stays.jsonl")
    real = os.scandir

    class Listing:
        def __init__(self, folder: str) -> None:
            with real(folder) as entries:
                self.found = list(entries)
            if folder.endswith("27"):
                gone.unlink()

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.found

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Listing)
    assert paths(scan(tmp_path)) == ["2026/04/27/stays.jsonl"]


@pytest.mark.parametrize("what", ["link", "fifo", "folder", "gone", "linked folder", "folder gone", "folder is a file"])
def test_open_refuses_what_is_no_partition_any_more(tmp_path: Path, what: str) -> None:
    """What took the file's place since the scan is not followed, not read, and not waited for."""
    file = put(tmp_path, "2026/04/27/x.jsonl")
    elsewhere = tmp_path / "elsewhere"
    match what:
        case "link":
            file.rename(elsewhere)
            file.symlink_to(elsewhere)
        case "fifo":
            file.unlink()
            os.mkfifo(file)
        case "folder":
            file.unlink()
            file.mkdir()
        case "gone":
            file.unlink()
        case "linked folder":
            file.parent.rename(elsewhere)
            file.parent.symlink_to(elsewhere)
        case "folder gone":
            file.parent.rename(elsewhere)
        case "folder is a file":
            file.parent.rename(elsewhere)
            file.parent.write_text("")

    def attempt() -> None:
        with (
            pytest.raises((InputChanged, UnreadableError), match=r"2026/04/27/x\.jsonl"),
            open_partition(tmp_path, SCORED, "2026/04/27/x.jsonl"),
        ):
            pass

    opener = threading.Thread(target=attempt, daemon=True)
    opener.start()
    opener.join(timeout=10)
    assert not opener.is_alive(), "the open blocks"


def test_open_gives_no_descriptor_away(tmp_path: Path) -> None:
    """However often opening goes well or wrong, no descriptor is left open."""
    put(tmp_path, "2026/04/27/x.jsonl")
    before = os.listdir("/proc/self/fd")
    for name in ("x", "gone", "x") * 3:
        try:
            with open_partition(tmp_path, SCORED, f"2026/04/27/{name}.jsonl"):
                pass
        except InputChanged:
            assert name == "gone"
    assert os.listdir("/proc/self/fd") == before


def test_tree_path_is_below_the_root() -> None:
    """The path that receipts and logs show."""
    assert tree_path(EVIDENCE, "2026/04/27/x.jsonl") == "data/evidence/2026/04/27/x.jsonl"


def test_what_is_no_partition_is_counted(tmp_path: Path) -> None:
    """The story: eight files at another depth or with another suffix, none of them read, and not a word about it."""
    put(tmp_path, "2026/04/27/read.jsonl")
    for path in ("2026/04/27/a.ndjson", "2026/04/27/b.ndjson", "2026/04/27/c.JSONL", "2026/04/27/d.jsonl.gz",
                 "2026/04/27/note\x1b.txt", "2026/04/e.jsonl", "f.jsonl", "2026/04/27/deep/g.jsonl",
                 "2026/04/27/.hidden.tmp"):  # fmt: skip
        put(tmp_path, path)
    put(tmp_path, "2026/04/27/h.ndjson", tree="evidence")
    found = scan(tmp_path)
    assert paths(found) == ["2026/04/27/read.jsonl"]
    assert {stray.kind: (stray.entries, stray.example) for stray in found.strays} == {
        ".JSONL": (1, "data/scored-runs/2026/04/27/c.JSONL"),
        ".jsonl.gz": (1, "data/scored-runs/2026/04/27/d.jsonl.gz"),
        ".ndjson": (3, "data/scored-runs/2026/04/27/a.ndjson"),
        "another depth": (3, "data/scored-runs/2026/04/27/deep"),
        "another name": (1, "data/scored-runs/2026/04/27/note\\x1b.txt"),
    }
