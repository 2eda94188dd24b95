"""The partitions on disk: walk, stat, open (SPEC 2).

A folder that cannot be listed does not count as empty: the scan reports it, and its content is unknown. No function
here follows a link below the two input trees, or blocks on a FIFO.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Final, NamedTuple

from distilld.core.json_text import escaped
from distilld.core.model import InputChanged, InputKind, OperatorError, StatFacts, UnreadableError
from distilld.core.plan import FileKey
from distilld.core.remedies import remedy_of

TREES: Final = {InputKind.SCORED: "data/scored-runs", InputKind.EVIDENCE: "data/evidence"}
SUFFIX: Final = ".jsonl"

LOST_AND_FOUND: Final = "lost+found"
"""The folder that a file system has at the top of a mount; only root may list it."""
_OWN_TROUBLE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_WENT_AWAY: Final = frozenset({errno.ENOENT, errno.ENOTDIR})

_ANOTHER_DEPTH: Final = "another depth"
_LIKE_PARTITIONS: Final = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".jsonl.zst", ".jsonl.bz2", ".jsonl.xz")

_FOLDER_NAMES: Final = (re.compile(r"[0-9]{4}"), re.compile(r"0[1-9]|1[0-2]"), re.compile(r"0[1-9]|[12][0-9]|3[01]"))
_EDITOR_LOCK: Final = re.compile(r"[^/]+@[^/]+\.[0-9]+(:[0-9]+)?")
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]")
_UNSAFE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""Control characters, and the two Unicode separators that end a line for some readers."""
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class ListingError(OperatorError):
    """The input trees cannot be listed, so their content is unknown; nothing is withdrawn because of that."""

    def __init__(self, path: str, cause: OSError | str) -> None:
        why = cause if isinstance(cause, str) else cause.strerror or str(cause)
        self.remedy = "mount what is missing" if isinstance(cause, str) else remedy_of(cause)
        super().__init__(f"cannot list {path}: {why}", hint=f"nothing was changed; {self.remedy}")
        self.path = path


class PartitionFile(NamedTuple):
    """One file of an input tree; ``path`` is relative to its tree (``a/b/c/name.jsonl``)."""

    kind: InputKind
    path: str
    stat: StatFacts

    @property
    def key(self) -> FileKey:
        """Return how records name it."""
        return self.kind, self.path


@dataclass(frozen=True, slots=True)
class Oddity:
    """An entry of an input tree that is not read; ``path`` is below the root, and safe to print."""

    path: str
    problem: str


class Stray(NamedTuple):
    """Entries of one kind in the trees that are no partitions: their count, and the path of one, safe to print."""

    kind: str
    entries: int
    example: str


class Unlisted(NamedTuple):
    """A folder that could not be listed: its content is unknown, never deleted (SPEC 2).

    ``below`` is relative to its tree and ends in ``/``; it is empty for the tree itself. ``problem`` is empty for a
    folder that was removed during the scan: the next scan decides.
    """

    kind: InputKind
    below: str
    problem: str

    def holds(self, kind: InputKind, path: str) -> bool:
        """Return whether a partition with this path would be below the folder."""
        return kind is self.kind and path.startswith(self.below)


@dataclass(frozen=True, slots=True)
class Scan:
    """The result of one scan of both trees: files in walk order, entries that are not read, folders with odd names.

    ``odd_folders`` have files, but a name that is no date; they are relative to their tree (``a/b/c``), and one that is
    in both trees counts once. ``folders`` are all listed folders by absolute path, with st_dev and st_ino; they are
    watched. ``unlisted`` could not be listed. ``ignored`` are folders of the file system. ``strays`` are not read
    although they may look like partitions.
    """

    files: tuple[PartitionFile, ...]
    oddities: tuple[Oddity, ...]
    odd_folders: tuple[str, ...]
    missing: frozenset[InputKind]
    folders: Mapping[str, tuple[int, int]]
    unlisted: tuple[Unlisted, ...] = ()
    ignored: tuple[str, ...] = ()
    strays: tuple[Stray, ...] = ()

    def facts(self) -> dict[FileKey, StatFacts]:
        """Return the facts of each file."""
        return {file.key: file.stat for file in self.files}

    def is_unknown(self, kind: InputKind, path: str) -> bool:
        """Return whether a partition is below a folder that could not be listed, so that its record stays valid."""
        return any(folder.holds(kind, path) for folder in self.unlisted)

    @property
    def not_listed(self) -> tuple[Oddity, ...]:
        """Return the folders whose listing failed, for the report."""
        return tuple(
            Oddity(printable(tree_path(each.kind, each.below)), each.problem) for each in self.unlisted if each.problem
        )


def walk_key(path: str) -> tuple[str, ...]:
    """Return the sort key of the walk order: path components, compared by code point (SPEC 2)."""
    return tuple(path.split("/"))


def printable(path: str) -> str:
    """Return a path with characters escaped that could harm a terminal or a log."""
    return _UNSAFE.sub(lambda match: f"\\x{ord(match.group()):02x}", escaped(path))


def scan(root: Path) -> Scan:
    """List both trees; the scan continues after a folder that cannot be listed.

    Raises:
        ListingError: It is unknown whether a tree exists, or this process lacks descriptors or memory.
    """
    walker = _Walker(root)
    for kind in InputKind:
        walker.walk_tree(kind)
    # Each tree is already in walk order. The sort is stable: of a partition's two files, evidence comes first.
    files = [*walker.files[InputKind.EVIDENCE], *walker.files[InputKind.SCORED]]
    files.sort(key=_walk_text)
    return Scan(
        tuple(files),
        tuple(walker.oddities),
        tuple(walker.odd_folders),
        frozenset(walker.missing),
        walker.folders,
        tuple(walker.unlisted),
        tuple(walker.ignored),
        tuple(Stray(kind, *found) for kind, found in sorted(walker.strays.items())),
    )


def _walk_text(file: PartitionFile) -> str:
    """Return a key with the order of :func:`walk_key` that compares faster: no name contains a NUL."""
    return file[1].replace("/", "\0")


class _Walker:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[InputKind, list[PartitionFile]] = {kind: [] for kind in InputKind}
        self.oddities: list[Oddity] = []
        self.odd_folders: dict[str, None] = {}
        self.missing: list[InputKind] = []
        self.folders: dict[str, tuple[int, int]] = {}
        self.unlisted: list[Unlisted] = []
        self.ignored: list[str] = []
        self.strays: dict[str, tuple[int, str]] = {}

    def walk_tree(self, kind: InputKind) -> None:
        if is_missing(self.root, kind):
            self.missing.append(kind)
        else:
            self._walk_folder(kind, str(self.root / TREES[kind]), "", 0, odd=False)

    def _walk_folder(self, kind: InputKind, folder: str, below: str, depth: int, *, odd: bool) -> None:
        try:
            # Stat it before it is listed: if another folder replaces it in between, the identities differ.
            status = os.stat(folder)
            with os.scandir(folder) as entries:
                # Already in walk order, which makes the final sort fast.
                found = sorted(entries, key=attrgetter("name"))
        except OSError as error:
            self._leave_unlisted(kind, below, depth, error)
            return
        self.folders[folder] = (status.st_dev, status.st_ino)
        taken_before, reported_before = len(self.files[kind]), len(self.oddities)
        try:
            if depth == len(_FOLDER_NAMES):
                self._take_files(kind, found, below)
                if odd and len(self.files[kind]) > taken_before:
                    self.odd_folders[below.rstrip("/")] = None
            else:
                for entry in found:
                    self._enter(kind, entry, below, depth, odd=odd)
        except OSError as error:
            # The folder can be listed but not entered: drop its incomplete result.
            del self.files[kind][taken_before:], self.oddities[reported_before:]
            self._leave_unlisted(kind, below, depth, error)

    def _leave_unlisted(self, kind: InputKind, below: str, depth: int, error: OSError) -> None:
        """Record a folder as unlisted.

        Raises:
            ListingError: The cause is this process, not the folder.
        """
        if error.errno in _OWN_TROUBLE:
            raise ListingError(printable(f"{TREES[kind]}/{below}"), error) from error
        went_away = depth > 0 and error.errno in _WENT_AWAY
        problem = "" if went_away else f"cannot be listed: {error.strerror or error}"
        self.unlisted.append(Unlisted(kind, below, problem))

    def _enter(self, kind: InputKind, entry: os.DirEntry[str], below: str, depth: int, *, odd: bool) -> None:
        path = f"{below}{entry.name}"
        if depth == 0 and entry.name == LOST_AND_FOUND:
            self.ignored.append(tree_path(kind, path))
        elif entry.is_symlink():
            self._report(kind, path, "is a link and is not followed")
        elif entry.is_dir(follow_symlinks=False):
            if not _FOLDER_NAMES[depth].fullmatch(entry.name):
                problem = _name_problem(entry.name)
                if problem:
                    self._report(kind, path, problem)
                    return
                odd = True
            self._walk_folder(kind, entry.path, path + "/", depth + 1, odd=odd)
        else:
            self._stray(kind, path, _ANOTHER_DEPTH)

    def _stray(self, kind: InputKind, path: str, what: str) -> None:
        """Count an entry that is no partition; hidden files are ignored as temporary."""
        if not path.rpartition("/")[2].startswith("."):
            entries, example = self.strays.get(what, (0, printable(tree_path(kind, path))))
            self.strays[what] = entries + 1, example

    def _take_files(self, kind: InputKind, found: list[os.DirEntry[str]], below: str) -> None:
        """Add the files of a partition folder; this loop must be fast, because a lake has many files."""
        take, make, facts_of = self.files[kind].append, tuple.__new__, StatFacts.of
        for entry in found:
            name = entry.name
            if not name.endswith(SUFFIX):
                folder = entry.is_dir(follow_symlinks=False)
                self._stray(kind, below + name, _ANOTHER_DEPTH if folder else _suffix_of(name))
                continue
            if _is_editor_lock(entry):
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # it was removed after the listing; the next scan decides
            problem = None if stat.S_ISREG(status.st_mode) else _kind_problem(status.st_mode)
            problem = problem or _name_problem(name)
            if problem is None:
                # The same as the constructor of the class, but faster.
                take(make(PartitionFile, (kind, below + name, facts_of(status))))
            else:
                self._report(kind, below + name, problem)

    def _report(self, kind: InputKind, path: str, problem: str) -> None:
        self.oddities.append(Oddity(printable(f"{TREES[kind]}/{path}"), problem))


def is_missing(root: Path, kind: InputKind) -> bool:
    """Return whether an input tree does not exist.

    Raises:
        ListingError: The system cannot tell, or a link is broken: a mount may be missing.
    """
    tree = root / TREES[kind]
    try:
        os.stat(tree)
    except FileNotFoundError as error:
        for path in (tree, tree.parent):
            if path.is_symlink() and not path.exists():
                raise ListingError(path.relative_to(root).as_posix(), "it is a link to nothing") from error
        return True
    except OSError as error:
        raise ListingError(TREES[kind], error) from error
    return False


def _is_editor_lock(entry: os.DirEntry[str]) -> bool:
    """Return whether it is an Emacs lock: a broken link next to an open file, which names its user and host."""
    if not entry.name.startswith(".#"):
        return False
    try:
        return _EDITOR_LOCK.fullmatch(os.readlink(entry.path)) is not None
    except OSError:
        return False


def _suffix_of(name: str) -> str:
    """Return the suffix of a file that is no partition, if the suffix resembles one."""
    lower = name.lower()
    return next((name[-len(suffix) :] for suffix in _LIKE_PARTITIONS if lower.endswith(suffix)), "another name")


def _kind_problem(mode: int) -> str:
    return "is a link and is not followed" if stat.S_ISLNK(mode) else "is no regular file"


def _name_problem(name: str) -> str | None:
    if name.isascii() and name.isprintable():
        return None
    try:
        name.encode()
    except UnicodeEncodeError:
        return "has a name that is not UTF-8"
    return "has control characters in its name" if _CONTROL.search(name) else None


def tree_path(kind: InputKind, path: str) -> str:
    """Return a partition's path below the root."""
    return f"{TREES[kind]}/{path}"


def is_partition(path: str) -> bool:
    """Return whether a scan would read a file at this path below a tree."""
    parts = path.split("/")
    names = len(parts) == len(_FOLDER_NAMES) + 1 and not {"", ".", ".."}.intersection(parts)
    return names and path.endswith(SUFFIX) and not any(map(_name_problem, parts))


@contextmanager
def open_partition(root: Path, kind: InputKind, path: str) -> Iterator[tuple[int, StatFacts]]:
    """Open a partition for reading: it follows no link below the tree, never blocks, and opens only regular files.

    Yield the descriptor and the facts of its fstat.

    Raises:
        InputChanged: It is gone, or no longer a regular file: the next scan decides.
        UnreadableError: The system cannot open it.
    """
    descriptor = _open_below(root / TREES[kind], path, tree_path(kind, path))
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InputChanged(tree_path(kind, path))
        yield descriptor, StatFacts.of(status)
    finally:
        os.close(descriptor)


def _open_below(tree: Path, path: str, shown: str) -> int:
    *folders, name = path.split("/")
    folder = -1
    try:
        folder = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for part in folders:
            inner = os.open(part, _FOLDER_FLAGS, dir_fd=folder)
            os.close(folder)
            folder = inner
        return os.open(name, _FILE_FLAGS, dir_fd=folder)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputChanged(shown) from error
    except OSError as error:
        raise UnreadableError(shown, error) from error
    finally:
        if folder >= 0:
            os.close(folder)
