"""What is asked again while a backend is away, and what is not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from prefect_mipro.errors import (
    BackendUnreachable,
    MiproError,
    Overloaded,
    SessionNotFound,
    StoreFailed,
)
from prefect_mipro.tasks.retries import over_a_restart
from prefect_mipro.tasks.steps import Steps, arun, blocking, run

AT_ONCE = (0.0, 0.0, 0.0)
Outcomes = Iterator[MiproError | str]


def sync(outcomes: Outcomes) -> str:
    return run(_retried(outcomes))


def asynchronous(outcomes: Outcomes) -> str:
    return asyncio.run(arun(_retried(outcomes)))


def _retried(outcomes: Outcomes) -> Steps[str]:
    return over_a_restart(lambda: blocking(_next, outcomes), waits_seconds=AT_ONCE)


def _next(outcomes: Outcomes) -> str:
    outcome = next(outcomes)
    if isinstance(outcome, MiproError):
        raise outcome
    return outcome


@pytest.fixture(params=[sync, asynchronous])
def ask(request: pytest.FixtureRequest) -> Callable[[Outcomes], str]:
    asked: Callable[[Outcomes], str] = request.param
    return asked


def test_what_passes_is_asked_again(ask: Callable[[Outcomes], str]) -> None:
    away = [BackendUnreachable("x"), Overloaded("x"), StoreFailed("x")]
    assert ask(iter([*away, "back"])) == "back"


def test_a_backend_that_stays_away_is_the_last_error(ask: Callable[[Outcomes], str]) -> None:
    with pytest.raises(BackendUnreachable, match="fourth"):
        ask(iter([BackendUnreachable("first")] * 3 + [BackendUnreachable("fourth")]))


def test_what_does_not_pass_is_raised_at_once(ask: Callable[[Outcomes], str]) -> None:
    outcomes: Outcomes = iter([SessionNotFound("x"), "never asked for"])
    with pytest.raises(SessionNotFound):
        ask(outcomes)
    assert next(outcomes) == "never asked for"
