"""Which lines an export must hold, in what order, and which lines a damaged export lost (SPEC 6)."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from itertools import zip_longest

from distilld.core.line_facts import EXPORTED
from distilld.core.model import Dataset
from distilld.store.departures import Departures


class ExportLines(Departures):
    """Finds the lines of exports by their digests."""

    def expect(self, name: str) -> None:
        """Collect in ``temp.expected`` the digests of the lines that an export must hold."""
        self._stage("expected", "(digest BLOB PRIMARY KEY, copies INTEGER) WITHOUT ROWID")
        dataset, sign = _lines_in(name)
        if dataset == Dataset.PREFERENCE:
            lines = f"SELECT line FROM pairs WHERE outcome {sign} {EXPORTED}"
        else:
            lines = (
                f"SELECT {dataset}_line AS line FROM scored_rows WHERE {dataset} {sign} {EXPORTED}"
                f" UNION ALL SELECT {dataset}_line FROM retained_rows WHERE {dataset} {sign} {EXPORTED}"
            )
        lines += f" UNION ALL SELECT line FROM departures WHERE dataset = '{dataset}' AND outcome {sign} {EXPORTED}"
        self._run(f"INSERT INTO expected SELECT line, count(*) FROM ({lines}) WHERE line IS NOT NULL GROUP BY line")

    def is_expected(self, digest: bytes) -> bool:
        """Return whether another line with this digest is expected; if so, it counts as found."""
        return bool(
            self._run("UPDATE expected SET copies = copies - 1 WHERE digest = ? AND copies > 0", (digest,)).rowcount
        )

    def miss_expected(self, name: str) -> None:
        """Record lines not found as missing; queue present rows again, withdraw retained ones as lost."""
        self._run("DELETE FROM missing_lines WHERE name = ?", (name,))
        self._run("INSERT INTO missing_lines SELECT ?, digest, copies FROM expected WHERE copies > 0", (name,))
        lines = "(SELECT digest FROM expected WHERE copies > 0)"
        dataset, sign = _lines_in(name)
        self._lose(name)
        if dataset == Dataset.PREFERENCE:
            self._run(
                f"INSERT OR IGNORE INTO rejudge_tasks SELECT DISTINCT task_id, 1 FROM pairs WHERE line IN {lines}"
            )
        else:
            self._run(
                "INSERT OR IGNORE INTO rejudge_rows (walk, forced) SELECT walk, 0 FROM scored_rows"
                f" WHERE {dataset} {sign} {EXPORTED} AND {dataset}_line IN {lines}"
            )
        self._unstage("expected")

    def lose_missing(self) -> None:
        """Withdraw rows that were retained after an export lost their lines, which cannot be written again."""
        for name in self._column("SELECT DISTINCT name FROM missing_lines"):
            self._lose(name)

    def _lose(self, name: str) -> None:
        """Move retained rows and pairs with lost lines to ``departures``."""
        dataset, sign = _lines_in(name)
        lines = f"(SELECT digest FROM missing_lines WHERE name = '{name}')"
        if dataset != Dataset.PREFERENCE:
            where = f"{dataset} {sign} {EXPORTED} AND {dataset}_line IN {lines}"
            self.move_rows(Dataset(dataset), where, "'lost'")
            return
        # Quarantined pairs of one run can have equal lines: those that leave or can be written again are the missing ones.
        those = f"outcome {sign} {EXPORTED}"
        self._stage_rows(
            "lost_pairs",
            "SELECT r.pair_id FROM (SELECT *, row_number() OVER (PARTITION BY line ORDER BY retained, pair_id) AS nth"
            f" FROM (SELECT NULL AS pair_id, line, 0 AS retained FROM departures WHERE dataset = 'preference' AND {those}"
            f" UNION ALL SELECT pair_id, line, retained IS NOT NULL FROM pairs WHERE {those} AND sample_key IN"
            f" (SELECT sample_key FROM pairs WHERE retained IS NOT NULL AND {those})) WHERE line IN {lines}) r"
            f" CROSS JOIN missing_lines m ON m.name = '{name}' AND m.digest = r.line WHERE r.retained AND r.nth <= m.copies",
        )
        self.move_pairs("pair_id IN (SELECT pair_id FROM lost_pairs)", "'lost'")
        self._unstage("lost_pairs")

    def is_in_order(self, name: str, lines: Iterable[tuple[int, int, object]]) -> bool:
        """Return whether ``lines`` (see :meth:`order_lines`) are exactly those with a place, in walk order."""
        with closing(self._run(f"SELECT key FROM ({_places_in(name)}) ORDER BY place, slot")) as expected:
            return all(
                line is not None and row is not None and line[2] == row[0] for line, row in zip_longest(lines, expected)
            )

    def order_lines(
        self, name: str, lines: Iterable[tuple[int, int, object]]
    ) -> Generator[tuple[int, int], None, None]:
        """Yield (offset, length) of an export's lines in canonical walk order; close it if it is not read to its end.

        Rows of absent partitions keep their places. Retained pairs, vanished rows and orphans come last. ``lines`` has
        offset, length and key of each line: the sample key in a dataset, the digest in a quarantine file.
        """
        self._stage("lines", "(start INTEGER PRIMARY KEY, length INTEGER, key)")
        self._many("INSERT INTO lines VALUES (?, ?, ?)", lines)
        # To sort the rows for an index is faster than to put each in its place.
        self._run("DROP INDEX IF EXISTS temp.places_by_key")
        self._stage_rows(
            "places",
            f"SELECT *, row_number() OVER (PARTITION BY key ORDER BY place, slot) AS nth FROM ({_places_in(name)})",
        )
        self._run("CREATE INDEX temp.places_by_key ON places (key, nth)")
        yield from self._run(
            "SELECT l.start, l.length FROM (SELECT *, row_number() OVER (PARTITION BY key ORDER BY start) AS nth"
            " FROM lines) l LEFT JOIN places p ON p.key = l.key AND p.nth = l.nth"
            " ORDER BY p.place IS NULL, p.place, p.slot, l.start"
        )
        self._unstage("lines", "places")


def _places_in(name: str) -> str:
    """Return SQL for an export's lines by key, each with its place in canonical walk order."""
    dataset, sign = _lines_in(name)
    if dataset == Dataset.PREFERENCE:
        key = "sample_key" if dataset == name else "line"
        return (
            f"SELECT {key} AS key, (SELECT min(f.walk) FROM scored_rows f WHERE f.task_id = r.task_id"
            f" AND f.evidence_found = 1) AS place, slot FROM pairs r WHERE retained IS NULL AND outcome {sign} {EXPORTED}"
        )
    key = "sample_key" if dataset == name else f"{dataset}_line"
    return (
        f"SELECT {key} AS key, walk AS place, 0 AS slot FROM scored_rows WHERE {dataset} {sign} {EXPORTED}"
        f" UNION ALL SELECT {key}, p.walk_base + f.line, 1 FROM retained_rows f CROSS JOIN partitions p"
        f" USING (partition_id) WHERE f.kind = 'absent' AND {dataset} {sign} {EXPORTED}"
    )


def _lines_in(export: str) -> tuple[str, str]:
    """Return an export's dataset, and the SQL operator that compares its rows' outcomes with EXPORTED."""
    dataset = export.removeprefix("quarantine_")
    return dataset, "=" if dataset == export else "<>"
