"""When the daemon does what: which pass is due, and how long it may rest."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from distilld.core.model import Trigger
from distilld.engine.pass_result import PassResult
from distilld.service.schedule import LONGEST_RETRY_SECONDS, TICK_SECONDS, Schedule


def never() -> bool:
    """Say that every export looks as it did."""
    return False


def passed(now: float = 100.0) -> Schedule:
    """Return a schedule behind its first pass, which found nothing, and with the next scan a minute away."""
    made = Schedule()
    made.passed(now, PassResult(), Trigger.STARTUP, settle_seconds=1.0)
    made.rescan_at, made.recheck_at = now + 60, now + 60
    return made


def test_first_pass_is_due_at_once() -> None:
    """A start looks at everything, and rests only once that is done."""
    assert Schedule().due(100.0, moved=False, disturbed=never) is Trigger.STARTUP
    assert passed().due(100.0, moved=False, disturbed=never) is None


@pytest.mark.parametrize(
    ("change", "now", "moved", "disturbed", "due"),
    [
        (lambda _: None, 160.0, False, never, Trigger.RESCAN),
        (lambda _: None, 101.0, True, never, Trigger.RESCAN),
        (lambda _: None, 101.0, False, lambda: True, Trigger.WATCH),
        (lambda made: setattr(made, "mend_at", 102.0), 101.0, False, lambda: True, None),
        (lambda made: setattr(made, "hinted", True), 101.0, True, never, Trigger.WATCH),
        (lambda made: setattr(made, "again_at", 101.0), 101.0, False, never, Trigger.WATCH),
        (lambda made: made.reload(101.0), 101.0, False, never, Trigger.RELOAD),
    ],
    ids=["period", "moved", "disturbed", "patient", "hinted", "again", "reload"],
)
def test_what_calls_for_a_pass(
    change: Callable[[Schedule], None], now: float, moved: bool, disturbed: Callable[[], bool], due: Trigger | None
) -> None:
    """Each cause of a pass is due by itself; a hint comes before the period's turn."""
    made = passed()
    change(made)
    assert made.due(now, moved=moved, disturbed=disturbed) is due


def test_failure_comes_before_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failure hints wait for the retry, whose pause doubles up to a minute; a folder that moved does not wait."""
    monkeypatch.setattr(random, "uniform", lambda _low, high: high)
    made = passed()
    made.hinted = True
    assert [made.failed(100.0) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, LONGEST_RETRY_SECONDS]
    assert made.due(159.0, moved=False, disturbed=never) is None
    assert made.due(159.0, moved=True, disturbed=never) is Trigger.RECOVERY
    assert made.due(160.0, moved=False, disturbed=never) is Trigger.RECOVERY


def test_rest_ends_with_what_is_due_first() -> None:
    """A rest lasts to the first thing that is due, a tick at most, and never no time at all."""
    made = passed()
    assert made.wait_seconds(100.0) == TICK_SECONDS
    made.checkpoint_at = 100.1
    assert made.wait_seconds(100.0) == pytest.approx(0.1)
    assert 0 < made.wait_seconds(200.0) < 0.01


def test_failure_waits_for_its_retry_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The story: without file events the next scan was overdue from the second failure on, and no rest lasted."""
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    made = passed(100.0)
    made.rescan_at, made.again_at = 101.0, 100.5
    made.failed(101.0)
    made.failed(101.5)
    assert made.due(102.0, moved=False, disturbed=never) is None
    assert made.wait_seconds(102.0) == TICK_SECONDS
    assert made.wait_seconds(103.4) == pytest.approx(0.1)
