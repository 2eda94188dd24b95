"""Lines without a present row: departed ones leave; retained ones leave if their reason to stay is gone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from distilld.core.line_facts import EXPORTED
from distilld.core.model import Cause, Dataset
from distilld.engine.lane import Lane
from distilld.engine.row_batch import RowBatch
from distilld.store.loose_lines import Departure, RetainedRow
from distilld.store.work import Recorded, WorkRow


class LooseRows:
    """Decides within one batch which lines without a present row leave."""

    def __init__(self, batch: RowBatch, lanes: Mapping[Dataset, Lane]) -> None:
        self._batch = batch
        self._work = batch.work
        self._out = batch.out
        self._lanes = lanes
        self._moving: dict[int, RetainedRow] = {}
        """Absent rows, by id, whose lines are in a present file too, and were judged there since the last look."""

    def note_judged(self, row: WorkRow) -> None:
        """Note that a row was judged that had no outcome in a dataset: absent rows may have waited for it."""
        self._moving |= {each.retained_id: each for each in self._work.moved_to(row.digest, row.run_id)}

    def take_departures(self, departures: Iterable[Departure]) -> None:
        """Remove lines whose rows are gone, unless another row takes the same id."""
        for each in departures:
            if each.outcome != EXPORTED:
                self._lanes[each.dataset].freed.add_quarantined(each)
            else:
                revoked = each.cause != Cause.PRUNED and self._batch.forbids(each.dataset, each.run_id)
                cause = Cause.REVOKED if revoked else Cause(each.cause)
                recorded = Recorded(EXPORTED, each.line, each.batch)
                self._lanes[each.dataset].free(each.sample_key or 0, recorded, each.run_id, cause)

    def take_retained(self, retained: Iterable[RetainedRow]) -> None:
        """Withdraw retained rows whose run is revoked, and absent rows whose line is in a present file again.

        Absent rows of other runs wait until that line is judged, since its row takes theirs over: :meth:`take_moved`.
        Rows of one run come together, so that its present rows are read once.
        """
        left = set(self._out.retained_left)
        of_run: tuple[str | None, dict[bytes, list[tuple[int, bool]]]] = None, {}
        for row in retained:
            copies = []
            if row.kind == "absent":
                if of_run[0] != row.run_id:
                    of_run = row.run_id, self._work.rows_of_run(row.run_id)
                copies = self._work.copies(row.digest, of_run[1])
            waits = any(not judged and walk not in self._batch.done for walk, judged in copies)
            self._out.retained_seen.append(row.retained_id)
            for dataset, code, line, batch in (
                (Dataset.RAG, row.rag, row.rag_line, row.rag_batch),
                (Dataset.SFT, row.sft, row.sft_line, row.sft_batch),
            ):
                if code is None or line is None or batch is None or (dataset, row.retained_id) in left:
                    continue
                revoked = code == EXPORTED and self._batch.forbids(dataset, row.run_id)
                if not revoked and (waits or not copies):
                    continue
                self._out.retained_left.append((dataset, row.retained_id))
                self._out.totals[dataset, "retained", code] -= 1
                if code == EXPORTED:
                    cause = Cause.REVOKED if revoked else Cause.DISPLACED
                    self._lanes[dataset].free(row.sample_key or 0, Recorded(EXPORTED, line, batch), row.run_id, cause)
                else:
                    self._out.changes[dataset].quarantined.drop(line)

    def take_moved(self) -> bool:
        """Withdraw absent rows whose lines were judged elsewhere since the last call; return whether there are any."""
        moving, self._moving = self._moving, {}
        self.take_retained(sorted(moving.values(), key=lambda row: row.run_id or ""))
        return bool(moving)
