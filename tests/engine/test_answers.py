"""A worker that answers wrongly: the pass ends with a clear error, nothing is committed, the next pass does it all."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from distilld.core.line_facts import EXPORTED, id_of
from distilld.core.model import Dataset, Marks
from distilld.engine import index
from distilld.engine.answers import WrongAnswer
from distilld.engine.judge_task import PlainTasks
from distilld.engine.sink import RAG_EXPORTED, RAG_QUARANTINED, SFT_EXPORTED, SFT_QUARANTINED
from distilld.engine.spans import JudgedRow, Part, SpanDone
from distilld.lake.lines import digest_of
from tests.engine.test_executors import are_equal
from tests.engine.test_spans import NEVER
from tests.support.history_lake import A, B, C, HistoryLake, rag_id, run

Lie = Callable[[Any], bool]
"""Changes what came of a span or of some tasks; says whether there was anything to change."""


class Liar(ThreadPoolExecutor):
    """A worker that lies once."""

    def __init__(self, lie: Lie) -> None:
        super().__init__(1)
        self.lie = lie
        self.lied = False

    def submit(self, fn: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        return super().submit(lambda: self.changed(fn(*arguments, **named)))

    def changed(self, answers: list[Any]) -> list[Any]:
        """The answers, one of them changed."""
        for answer in answers:
            for done in answer if isinstance(answer, list) else ():
                self.lied = self.lied or self.lie(done)
        return answers


class Finished:
    """The finished lines of an answer by stream, to be changed and put back with digests that fit."""

    def __init__(self, done: SpanDone | PlainTasks) -> None:
        self.parts: list[Any] = done.items if isinstance(done, SpanDone) else done.parts
        self.lines: list[list[bytes]] = [[], [], [], []]
        for part in self.parts:
            if isinstance(part, Part):
                assert isinstance(part.content, bytes)
                self.lines[part.stream] += part.content.splitlines(keepends=True)

    def put_back(self) -> None:
        """Put the lines back."""
        self.parts[:] = [
            *(
                Part(stream, 0, b"".join(lines), Marks.of(lines, map(digest_of, lines)))
                for stream, lines in enumerate(self.lines)
                if lines
            ),
            *(item for item in self.parts if not isinstance(item, Part)),
        ]


def of_rows(lie: Callable[[SpanDone, Finished], None], least: int = 2) -> Lie:
    """Lie about a span of which at least so many rows were exported."""
    return lambda done: (
        isinstance(done, SpanDone) and sum(row[0] == EXPORTED for row in done.fresh) >= least and told(done, lie)
    )


def told(done: Any, lie: Callable[[Any, Finished], None]) -> bool:
    """Tell a lie, with digests that fit."""
    finished = Finished(done)
    lie(done, finished)
    finished.put_back()
    return True


def replace(old: bytes, new: bytes, stream: int = RAG_EXPORTED) -> Lie:
    """Replace something in the first line of a stream; the digest that is told of it fits."""

    def lie(done: SpanDone, finished: Finished) -> None:
        line = finished.lines[stream][0]
        changed = finished.lines[stream][0] = line.replace(old, new)
        assert changed != line
        place = 1 if stream in (RAG_EXPORTED, RAG_QUARANTINED) else 3
        for number, row in enumerate(done.fresh):
            if row[place] == digest_of(line):
                done.fresh[number] = (*row[:place], digest_of(changed), *row[place + 1 :])  # type: ignore[assignment]

    return of_rows(lie)


def exchange_digests(done: SpanDone, _: Finished) -> None:
    """Say of each of two exported rows what is recorded of the other one."""
    one, other = (number for number, row in enumerate(done.fresh) if row[0] == EXPORTED)
    first, second = done.fresh[one], done.fresh[other]
    done.fresh[one] = (*second[:5], first[5])
    done.fresh[other] = (*first[:5], second[5])


def leave_out(done: SpanDone, finished: Finished) -> None:
    """Leave a row out, its lines and in all counts."""
    rag, _, sft, _, _, _ = done.fresh.pop(0)
    finished.lines[RAG_QUARANTINED if rag else RAG_EXPORTED].pop(0)
    finished.lines[SFT_QUARANTINED if sft else SFT_EXPORTED].pop(0)
    done.outcomes[0][rag] -= 1
    done.outcomes[1][sft] -= 1


def repeat(done: SpanDone, finished: Finished) -> None:
    """Give a row twice, its lines and in all counts, and leave another one out."""
    leave_out(done, finished)
    rag, _, sft, _, _, _ = done.fresh[-1]
    done.fresh.append(done.fresh[-1])
    finished.lines[RAG_QUARANTINED if rag else RAG_EXPORTED].append(
        finished.lines[RAG_QUARANTINED if rag else RAG_EXPORTED][-1]
    )
    finished.lines[SFT_QUARANTINED if sft else SFT_EXPORTED].append(
        finished.lines[SFT_QUARANTINED if sft else SFT_EXPORTED][-1]
    )
    done.outcomes[0][rag] += 1
    done.outcomes[1][sft] += 1


def exchange_streams(done: SpanDone, finished: Finished) -> None:
    """Put the lines of RAG into SFT, and those of SFT into RAG."""
    lines = finished.lines
    lines[:] = lines[SFT_EXPORTED], lines[SFT_QUARANTINED], lines[RAG_EXPORTED], lines[RAG_QUARANTINED]
    done.fresh[:] = [(sft, two, rag, one, found, walk) for rag, one, sft, two, found, walk in done.fresh]
    done.outcomes = done.outcomes[1], done.outcomes[0]


def tell_other_digests(place: int) -> Callable[[SpanDone, Finished], None]:
    """Say of rows that their lines have other digests than they have."""

    def lie(done: SpanDone, _: Finished) -> None:
        done.fresh[:] = [(*row[:place], bytes(16), *row[place + 1 :]) for row in done.fresh]  # type: ignore[misc]

    return lie


def add_a_line(_: SpanDone, finished: Finished) -> None:
    """Export a line of no row."""
    finished.lines[RAG_EXPORTED].append(finished.lines[RAG_EXPORTED][0].replace(b"rag-", b"rag-0", 1))


def export_a_held_row(done: SpanDone, finished: Finished) -> None:
    """Export the row that waits for a review: its line says so."""
    number = next(number for number, row in enumerate(done.fresh) if row[0] != EXPORTED and row[5] & 7 == 3)
    code, _, *rest = done.fresh[number]
    finished.lines[RAG_QUARANTINED] = [line for line in finished.lines[RAG_QUARANTINED] if b'"four"' not in line]
    line = finished.lines[RAG_EXPORTED][0].replace(b"one", b"four").replace(b"accepted", b"needs_human_review")
    line = line.replace(rag_id("one").encode(), rag_id("four").encode())
    finished.lines[RAG_EXPORTED].append(line)
    done.fresh[number] = (EXPORTED, digest_of(line), *rest)  # type: ignore[assignment]
    done.outcomes[0][code] -= 1
    done.outcomes[0][EXPORTED] += 1


def take_for_plain(done: Any) -> bool:
    """Give a contested row as if no other named its run."""
    if not isinstance(done, SpanDone):
        return False
    for item in done.items:
        if isinstance(item, JudgedRow):
            finished = Finished(done)
            done.items.remove(item)
            rag, sft = item.rag[0].line("now"), item.sft[0].line("now")
            finished.lines[RAG_EXPORTED].append(rag)
            finished.lines[SFT_EXPORTED].append(sft)
            done.fresh.append((EXPORTED, digest_of(rag), EXPORTED, digest_of(sft), item.found, item.walk))
            done.outcomes[0][EXPORTED] += 1
            done.outcomes[1][EXPORTED] += 1
            finished.put_back()
            return True
    return False


def give_another_id(done: Any) -> bool:
    """Give a contested row, which is finished by the process that commits, another id."""
    if not isinstance(done, SpanDone):
        return False
    for number, item in enumerate(done.items):
        if isinstance(item, JudgedRow) and item.rag[0].gate is None:
            free = item.rag[0]
            head = free.parts[0].replace(b'"rag-', b'"rag-0', 1)
            done.items[number] = item._replace(rag=(free._replace(parts=(head, *free.parts[1:])), item.rag[1]))
            return True
    return False


def of_pairs(lie: Callable[[PlainTasks, Finished], None]) -> Lie:
    """Lie about tasks of which a pair was exported."""
    return lambda done: isinstance(done, PlainTasks) and bool(done.outcomes[EXPORTED]) and told(done, lie)


def change_pair(place: int, value: object) -> Lie:
    """Say something else of a pair than its rows do."""

    def lie(done: PlainTasks, _: Finished) -> None:
        done.pairs[0] = (*done.pairs[0][:place], value, *done.pairs[0][place + 1 :])

    return of_pairs(lie)


def exchange_sides(_: PlainTasks, finished: Finished) -> None:
    """Prefer the rejected answer."""
    line = finished.lines[0][0]
    finished.lines[0][0] = line.replace(b'"one"', b'"?"').replace(b'"two"', b'"one"').replace(b'"?"', b'"two"')


def exchange_sides_and_digest(done: PlainTasks, finished: Finished) -> None:
    """The same with a digest that fits."""
    exchange_sides(done, finished)
    done.pairs[0] = (*done.pairs[0][:9], digest_of(finished.lines[0][0]), done.pairs[0][10])


def export_an_overruled_pair(done: Any) -> bool:
    """Export a pair one of whose runs is accepted by now."""
    if not isinstance(done, PlainTasks):
        return False
    finished = Finished(done)
    number, pair = next((number, pair) for number, pair in enumerate(done.pairs) if pair[8] != EXPORTED)
    line = finished.lines[0][0].replace(b'"one"', b'"six"').replace(b'"two"', b'"seven"')
    old, new = (id_of(Dataset.PREFERENCE, key).encode() for key in (done.pairs[1 - number][7], pair[7]))
    finished.lines = [[finished.lines[0][0], line.replace(old, new)], []]
    done.pairs[number] = (*pair[:8], EXPORTED, digest_of(finished.lines[0][1]), pair[10])
    done.outcomes[pair[8]], done.outcomes[EXPORTED] = 0, 2
    finished.put_back()
    return True


def leave_out_a_pair(done: PlainTasks, finished: Finished) -> None:
    """Leave a pair out, its line and in the counts."""
    done.pairs.pop(0)
    finished.lines[0].pop(0)
    done.outcomes[EXPORTED] -= 1


def leave_out_a_task(done: PlainTasks, finished: Finished) -> None:
    """Leave a task out as well."""
    leave_out_a_pair(done, finished)
    done.tasks -= 1


ABOUT_ROWS: dict[str, Lie] = {
    "another id": replace(rag_id("one").encode(), b"rag-0123456789abcdef"),
    "another run": replace(b'"source_run_id":"one"', b'"source_run_id":"three"'),
    "another category": replace(b'"accepted"', b'"partially_accepted"'),
    "another run in SFT": replace(b'"source_run_id":"one"', b'"source_run_id":"three"', SFT_EXPORTED),
    "another category in SFT": replace(b'"accepted"', b'"partially_accepted"', SFT_EXPORTED),
    "lines of two rows exchanged": of_rows(exchange_digests),
    "a row is missing": of_rows(leave_out),
    "a row comes twice": of_rows(repeat),
    "RAG and SFT exchanged": of_rows(exchange_streams),
    "digests of RAG do not fit": of_rows(tell_other_digests(1)),
    "digests of SFT do not fit": of_rows(tell_other_digests(3)),
    "a line of no row": of_rows(add_a_line),
    "a held row is exported": of_rows(export_a_held_row),
    "a contested row is taken for plain": take_for_plain,
    "a contested row has another id": give_another_id,
}
ABOUT_PAIRS: dict[str, Lie] = {
    "a pair has another id": change_pair(7, 1),
    "a pair has another run": change_pair(2, "three"),
    "a pair has another digest": change_pair(9, bytes(16)),
    "sides of a pair exchanged": of_pairs(exchange_sides_and_digest),
    "an overruled pair is exported": export_an_overruled_pair,
    "a pair is missing": of_pairs(leave_out_a_pair),
    "a task is missing": of_pairs(leave_out_a_task),
}


def fill(lake: HistoryLake) -> None:
    """Plain rows that are exported and held, runs that two rows name, a pair."""
    lake.both(A, run("one", task_id="t"), run("two", "rejected", "t"), run("three"), run("four", "needs_human_review"))
    lake.both(C, run("six", task_id="o"), run("seven", "rejected", "o"), run("seven", "accepted", "p"))
    lake.both(B, run("again"), run("again", provenance__sig_hash="other"), run("five", "partially_accepted"))


@pytest.mark.parametrize(
    ("lie", "unread"),
    [
        *(pytest.param(lie, 0, id=f"{name}, read with the rows") for name, lie in ABOUT_ROWS.items()),
        *(pytest.param(lie, NEVER, id=name) for name, lie in (ABOUT_ROWS | ABOUT_PAIRS).items()),
    ],
)
def test_wrong_answer_is_an_error_and_nothing_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: Lie, unread: int
) -> None:
    """The lie is seen before anything is written; when the worker answers rightly, all is as if it always had."""
    monkeypatch.setattr(index, "LEAVE_FROM", unread)
    executor = Liar(lie)
    actual, expected = HistoryLake(tmp_path / "actual", executor=executor), HistoryLake(tmp_path / "expected")
    for lake in (actual, expected):
        fill(lake)
    with pytest.raises(WrongAnswer, match="a worker gave a wrong answer"):
        actual.go()
    assert executor.lied
    assert not any(actual.files().values())
    assert not actual.ask("SELECT 1 FROM batches")
    for lake in (actual, expected):
        lake.go()
    are_equal(expected, actual)
    for lake in (actual, expected):
        lake.stop()
    executor.shutdown()
