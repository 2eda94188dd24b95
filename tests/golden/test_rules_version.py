"""What any row comes to is pinned: a change of the rules must come with a new RULES_VERSION.

Where this test is red, some row of some lake would get other bytes than before. If that is meant, raise RULES_VERSION
in distilld/core/model.py, so that every lake is judged anew, and pin the new digest under the new number. If it is not
meant, a rule was broken by accident.
"""

from __future__ import annotations

import hashlib
from itertools import product
from typing import Any

from distilld.core.model import RULES_VERSION, Options
from tests.golden.test_phase4_core import lake
from tests.support.builders import ABSENT, Lake, all_missing, changed, evidence, export, jsonl, none_missing, scored

PINNED = {3: "1eb4d5785bb2bf96be099f2f4e916d86d8612f32267a536cea9b86a48ce5306c"}

ODD: list[Any] = [
    ABSENT,
    None,
    True,
    0,
    1.5,
    1e21,
    "",
    " ",
    "é😀\u2028\x7f",
    "\ud800",
    [],
    ["x", None, 2.0],
    {"2": 1, "1": {}},
]
CATEGORIES = ["accepted", "partially_accepted", "rejected", "needs_human_review"]
BROKEN = [b"{", b"[]", b" ", b'{"a":1e309}', b'{"a":' * 201, b'\xff{"a":1}', b'{"a":"\\ud800"}', b'{"a":1,"a":2.0}']


def odd_rows() -> Lake:
    """A partition for each field of a row and of its evidence, with odd values in it, and one of broken lines."""
    found: dict[str, tuple[bytes, bytes]] = {"9999/1/1/broken.jsonl": (jsonl(BROKEN), b"")}
    for path in [*_paths(scored(), "scored"), *_paths(evidence(), "evidence")]:
        rows, given = [], []
        for number, (category, value) in enumerate(product(CATEGORIES, ODD)):
            run = f"{path}-{number}"
            own = {"evidence_run_id": run, "evidence_task_id": f"{path}-{number % 3}", "category": category}
            kind, _, field = path.partition("/")
            change = {field.replace("/", "."): value}
            rows.append(changed({**scored(), **own}, change if kind == "scored" else {}))
            said = evidence(run_id=run, text=f"{run}\n{'long ' * 500}", provenance__source_file="data/_kb/audits.jsonl")
            given.append(changed(said, change if kind == "evidence" else {}))
        found[f"2026/01/01/{path.replace('/', '-')}.jsonl"] = (jsonl(rows), jsonl(given))
    return found


def _paths(row: dict[str, Any], prefix: str) -> list[str]:
    return [
        path
        for key, value in row.items()
        for path in (f"{prefix}/{key}", *(_paths(value, f"{prefix}/{key}") if isinstance(value, dict) else []))
    ]


def test_what_rows_come_to_is_pinned() -> None:
    """Over a lake of good rows and one of odd rows, by several options, all six files have the bytes they had."""
    digest = hashlib.sha256()
    for partitions, options, missing in [
        (lake(), Options(), None),
        (odd_rows(), Options(), None),
        (odd_rows(), Options(include_partial=True, include_review=True, missing_source_file="<none>"), none_missing),
        (odd_rows(), Options(revoke=False), all_missing),
    ]:
        for name, content in export(partitions, options, missing).files().items():
            digest.update(f"{name} {len(content)}\n".encode() + content)
    assert {RULES_VERSION: digest.hexdigest()} == {RULES_VERSION: PINNED[RULES_VERSION]}
