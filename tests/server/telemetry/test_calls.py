"""A proxied call as it is measured: its outcome, its status, its times."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from prefect_mipro.errors import (
    InputInvalid,
    KeyRejected,
    Overloaded,
    StoreFailed,
    UpstreamFailed,
    UpstreamTimedOut,
    UpstreamUnreachable,
)
from prefect_mipro.models.chat import Usage
from prefect_mipro.server.telemetry.calls import CallMeter, MeteredCall, Outcome


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(clock: Clock) -> CallMeter:
    return CallMeter(timer=clock)


def value(meter: CallMeter, name: str, **labels: str) -> float | None:
    registry = CollectorRegistry()
    registry.register(meter)
    return registry.get_sample_value(name, labels)


def answer(call: MeteredCall, status: int = 200, *, streaming: bool = False) -> None:
    call.chosen("s", "r", "c")
    call.forwarded("openai", "m")
    call.started(status, streaming=streaming)


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, Outcome.OK),
        (400, Outcome.UPSTREAM_REFUSED),
        (401, Outcome.UPSTREAM_REFUSED),
        (429, Outcome.RATE_LIMITED),
        (500, Outcome.UPSTREAM_ERROR),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_whole_answer_counts_by_the_upstreams_status(
    meter: CallMeter, status: int, outcome: Outcome, streaming: bool
) -> None:
    with meter.call() as call:
        answer(call, status, streaming=streaming)
        call.finished()
    labels = {"outcome": outcome, "status_class": f"{status // 100}xx"}
    assert value(meter, "mipro_proxy_calls_total", **labels, streaming=str(streaming).lower()) == 1


@pytest.mark.parametrize(
    ("error", "outcome", "status_class"),
    [
        (InputInvalid("x"), Outcome.CLIENT_ERROR, "4xx"),
        (KeyRejected("x"), Outcome.CLIENT_ERROR, "4xx"),
        (Overloaded("x"), Outcome.OVERLOADED, "4xx"),
        (UpstreamTimedOut("x"), Outcome.TIMEOUT, "5xx"),
        (UpstreamUnreachable("x"), Outcome.UNREACHABLE, "5xx"),
        (UpstreamFailed("x"), Outcome.UPSTREAM_ERROR, "5xx"),
        (StoreFailed("x"), Outcome.BACKEND_ERROR, "5xx"),
        (RuntimeError("x"), Outcome.BACKEND_ERROR, "5xx"),
        (asyncio.CancelledError(), Outcome.CANCELLED, "none"),
    ],
)
def test_an_error_before_the_answer_counts_by_its_class(
    meter: CallMeter, error: BaseException, outcome: Outcome, status_class: str
) -> None:
    with pytest.raises(type(error)), meter.call():
        raise error
    assert (
        value(
            meter,
            "mipro_proxy_calls_total",
            outcome=outcome,
            status_class=status_class,
            streaming="false",
        )
        == 1
    )


def test_a_stream_that_breaks_off_keeps_the_status_that_was_sent(meter: CallMeter) -> None:
    def break_off() -> None:
        with meter.call() as call:
            answer(call, streaming=True)
            raise UpstreamUnreachable("broke off")

    with pytest.raises(UpstreamUnreachable):
        break_off()
    labels = {"outcome": "unreachable", "status_class": "2xx", "streaming": "true"}
    assert value(meter, "mipro_proxy_calls_total", **labels) == 1


@pytest.mark.parametrize(
    ("go", "status_class"),
    [
        (lambda call: None, "none"),
        (lambda call: call.forwarded("openai", "m"), "none"),
        (answer, "2xx"),
    ],
)
def test_a_call_that_ends_unfinished_was_left_by_its_caller(
    meter: CallMeter, go: Callable[[MeteredCall], None], status_class: str
) -> None:
    with meter.call() as call:
        go(call)
    labels = {"outcome": "cancelled", "status_class": status_class, "streaming": "false"}
    assert value(meter, "mipro_proxy_calls_total", **labels) == 1


def test_a_stream_without_an_end_is_an_error_of_the_upstream(meter: CallMeter) -> None:
    with meter.call() as call:
        answer(call, streaming=True)
        call.finished()
        call.read(Usage(), model=None, cost_usd=None, broken=True)
    labels = {"outcome": "upstream_error", "status_class": "2xx", "streaming": "true"}
    assert value(meter, "mipro_proxy_calls_total", **labels) == 1


def test_the_usual_series_are_there_before_the_first_call(meter: CallMeter) -> None:
    labels = {"outcome": "timeout", "status_class": "5xx", "streaming": "true"}
    assert value(meter, "mipro_proxy_calls_total", **labels) == 0


def test_calls_under_way_are_counted_while_they_are(meter: CallMeter) -> None:
    with meter.call(), meter.call():
        assert value(meter, "mipro_proxy_calls_in_flight") == 2
    assert value(meter, "mipro_proxy_calls_in_flight") == 0


def test_what_we_add_is_the_time_until_the_upstream_is_asked(
    meter: CallMeter, clock: Clock
) -> None:
    with meter.call() as call:
        clock.now += 0.25
        call.forwarded("openai", "m")
        clock.now += 4.0
        call.started(200, streaming=True)
        clock.now += 8.0
        call.finished()

    def total(name: str) -> float | None:
        return value(meter, f"mipro_proxy_{name}_seconds_sum", streaming="true")

    assert (total("added"), total("first_byte"), total("call_duration")) == (0.25, 4.25, 12.25)


def test_a_duration_is_in_the_first_bucket_that_is_not_below_it(
    meter: CallMeter, clock: Clock
) -> None:
    with meter.call() as call:
        answer(call)
        clock.now += 0.5
        call.finished()

    def bucket(le: str) -> float | None:
        name = "mipro_proxy_call_duration_seconds_bucket"
        return value(meter, name, streaming="false", le=le)

    assert (bucket("0.25"), bucket("0.5"), bucket("600.0"), bucket("+Inf")) == (0, 1, 1, 1)


def test_a_call_without_an_answer_has_no_first_byte(meter: CallMeter) -> None:
    with pytest.raises(Overloaded), meter.call():
        raise Overloaded("full")
    assert value(meter, "mipro_proxy_first_byte_seconds_count", streaming="false") == 0
    assert value(meter, "mipro_proxy_call_duration_seconds_count", streaming="false") == 1


def test_tokens_and_costs_are_summed(meter: CallMeter) -> None:
    usage = Usage(prompt_tokens=7, completion_tokens=2)
    for cost_usd in (0.25, 0.5, None):
        meter.call().read(usage, model="m", cost_usd=cost_usd, broken=False)
    assert value(meter, "mipro_proxy_tokens_total", kind="prompt") == 21
    assert value(meter, "mipro_proxy_tokens_total", kind="completion") == 6
    assert value(meter, "mipro_proxy_cost_usd_total") == 0.75


def test_each_call_is_a_line_of_the_log_at_debug_only(
    meter: CallMeter, caplog: pytest.LogCaptureFixture
) -> None:
    def lines(level: int) -> list[Any]:
        caplog.clear()
        with caplog.at_level(level), meter.call() as call:
            answer(call)
            call.finished()
        return caplog.records

    assert lines(logging.INFO) == []
    (line,) = lines(logging.DEBUG)
    assert (line.outcome, line.status, line.rollout_id) == ("ok", 200, "r")
