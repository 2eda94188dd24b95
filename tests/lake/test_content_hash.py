"""One hash for one content, whatever of it takes no room on the disk."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilld.lake import content_hash
from distilld.lake.content_hash import NUL_RUN_BYTES, ContentHash
from tests.support.builders import PROPERTY

pieces = st.lists(st.sampled_from([b"a", b"\0", b"\0" * 3, b"\0" * 9, b"xyz", b"\n"]), max_size=12)


@PROPERTY
@given(pieces, st.lists(st.integers(1, 7), min_size=1, max_size=9), st.booleans())
def test_how_it_is_cut_changes_nothing(parts: list[bytes], cuts: list[int], holes: bool) -> None:
    """Bytes in any pieces, NULs as bytes or as the length of a hole, with a copy taken at each cut: one digest."""
    content = b"".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content_hash, "NUL_RUN_BYTES", 8)
        whole, cut, position = ContentHash(content), ContentHash(), 0
        while position < len(content):
            piece = content[position : position + cuts[position % len(cuts)]]
            cut.update(len(piece) if holes and not piece.strip(b"\0") else piece)
            cut.digest()
            cut, position = cut.copy(), position + len(piece)
        assert cut.digest() == whole.digest()
        if b"\0" * 8 not in content:
            assert whole.digest() == hashlib.sha256(content).digest()


def test_every_difference_counts() -> None:
    """The place and the length of a run, the bytes around it, and whether there is one at all."""
    run = NUL_RUN_BYTES
    contents: list[list[bytes | int]] = [
        [], [run], [run + 1], [b"a", run], [run, b"a"], [b"a", run, b"b"], [b"a", run, b"b", run], [b"ab", run],
        [b"a", run, run, b"b"], [b"a", run - 1, b"b"], [b"b", run, b"a"], [b"%d+%d " % (0, run)],
    ]  # fmt: skip
    digests = set()
    for content in contents:
        made = ContentHash()
        for piece in content:
            made.update(piece)
        digests.add(made.digest())
    assert len(digests) == len(contents)
