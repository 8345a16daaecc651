"""Spans of proxied calls and of what follows from them, as OpenTelemetry's own SDK takes them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from prefect_mipro.errors import RewardInvalid, UpstreamTimedOut
from prefect_mipro.models.chat import Usage
from prefect_mipro.server.telemetry.calls import CallMeter, MeteredCall
from prefect_mipro.server.telemetry.exporters import tracing_of
from prefect_mipro.server.telemetry.spans import Spans
from prefect_mipro.server.telemetry.tracing import Tracing

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = [(b"traceparent", f"00-{TRACE_ID}-b7ad6b7169203331-01".encode())]
SECRET = "a private word"


class Heard:
    """A provider that keeps in memory what it is told."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        """The spans that have ended, by name."""
        return {span.name: span for span in self._exporter.get_finished_spans()}

    def attributes(self, name: str) -> dict[str, Any]:
        return dict(self.spans[name].attributes or {})


@pytest.fixture
def heard() -> Iterator[Heard]:
    heard = Heard()
    yield heard
    heard.provider.shutdown()


@pytest.fixture
def spans(heard: Heard) -> Spans:
    return Spans(heard.provider)


def serve(call: MeteredCall, status: int = 200) -> None:
    with call:
        call.chosen("s", "r", "c")
        call.forwarded("openai", "gpt-x")
        call.started(status, streaming=True)
        call.read(
            Usage(prompt_tokens=7, completion_tokens=2),
            model="gpt-x-2026",
            cost_usd=0.5,
            broken=False,
        )
        call.finished()


def test_a_call_tells_who_served_it_in_the_words_of_the_conventions(
    heard: Heard, spans: Spans
) -> None:
    serve(spans.call(CallMeter(timer=lambda: 1.0), []))
    assert heard.attributes("chat gpt-x") == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-x",
        "gen_ai.request.stream": True,
        "gen_ai.response.model": "gpt-x-2026",
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 2,
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "mipro.candidate_id": "c",
        "mipro.cost_usd": 0.5,
        "mipro.first_byte_seconds": 0.0,
        "mipro.outcome": "ok",
        "mipro.rollout_id": "r",
        "mipro.session_id": "s",
    }
    assert heard.spans["chat gpt-x"].kind is SpanKind.SERVER
    assert heard.spans["chat gpt-x"].status.status_code is StatusCode.UNSET


def test_the_upstream_call_is_a_span_within(heard: Heard, spans: Spans) -> None:
    serve(spans.call(CallMeter(), []))
    call, upstream = heard.spans["chat gpt-x"], heard.spans["POST /chat/completions"]
    assert upstream.kind is SpanKind.CLIENT
    assert upstream.parent is not None
    assert upstream.parent.span_id == _context(call).span_id
    assert heard.attributes("POST /chat/completions")["http.response.status_code"] == 200


def test_the_trace_of_the_caller_goes_on_and_reaches_the_upstream(
    heard: Heard, spans: Spans
) -> None:
    with spans.call(CallMeter(), PARENT) as call:
        call.forwarded("openai", "gpt-x")
        sent = spans.call_headers()
    _, trace_id, span_id, _ = sent["traceparent"].split("-")
    assert trace_id == TRACE_ID
    assert int(span_id, 16) == _context(heard.spans["POST /chat/completions"]).span_id
    assert "traceparent" not in spans.call_headers()


def test_baggage_stays_here(spans: Spans) -> None:
    with spans.call(CallMeter(), [*PARENT, (b"baggage", SECRET.encode())]) as call:
        call.forwarded("openai", "gpt-x")
        assert set(spans.call_headers()) == {"traceparent"}


def test_a_failure_is_named_and_its_message_is_not(heard: Heard, spans: Spans) -> None:
    with suppress(UpstreamTimedOut), spans.call(CallMeter(), []) as call:
        call.forwarded("openai", "gpt-x")
        raise UpstreamTimedOut(SECRET)
    for name in ("chat gpt-x", "POST /chat/completions"):
        assert heard.spans[name].status.status_code is StatusCode.ERROR
        assert heard.attributes(name)["error.type"] == "UpstreamTimedOut"
        assert SECRET not in heard.spans[name].to_json()
    assert heard.attributes("chat gpt-x")["http.response.status_code"] == 504


def test_an_upstream_that_refuses_is_a_failed_call(heard: Heard, spans: Spans) -> None:
    serve(spans.call(CallMeter(), []), status=429)
    assert heard.attributes("chat gpt-x")["error.type"] == "rate_limited"
    assert heard.attributes("POST /chat/completions")["error.type"] == "429"


def test_a_call_that_its_caller_left_is_cancelled(heard: Heard, spans: Spans) -> None:
    with spans.call(CallMeter(), []):
        pass
    assert heard.attributes("chat")["error.type"] == "cancelled"


def test_a_span_of_ours_carries_what_it_is_told(heard: Heard, spans: Spans) -> None:
    with spans.continued(PARENT), spans.span("reward", session_id="s") as tell:
        tell(candidate_id="c", rollout_id=None)
    assert heard.attributes("reward") == {"mipro.session_id": "s", "mipro.candidate_id": "c"}
    assert _context(heard.spans["reward"]).trace_id == int(TRACE_ID, 16)


def test_an_error_that_leaves_a_span_is_named_in_it(heard: Heard, spans: Spans) -> None:
    with suppress(RewardInvalid), spans.span("reward"):
        raise RewardInvalid(SECRET)
    assert heard.attributes("reward") == {"error.type": "RewardInvalid"}
    assert SECRET not in heard.spans["reward"].to_json()


def test_off_a_call_is_a_plain_one_and_nothing_is_sent_along() -> None:
    off = Tracing()
    assert type(off.call(CallMeter(), PARENT)) is MeteredCall
    assert off.call_headers is None
    with off.continued(PARENT), off.span("reward") as tell:
        tell(candidate_id="c")


@pytest.mark.parametrize(
    "environment",
    [
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "console"},
        {"OTEL_TRACES_EXPORTER": "zipkin"},
    ],
)
def test_it_stays_off_unless_the_environment_says_where_to(environment: dict[str, str]) -> None:
    assert type(tracing_of(environment)) is Tracing


def test_nothing_of_opentelemetry_is_loaded_for_nothing() -> None:
    program = (
        "import sys, prefect_mipro.server.telemetry.exporters as t; "
        "t.tracing_of({}).call; assert not [m for m in sys.modules if 'opentelemetry' in m]"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_provider_that_is_set_already_is_used() -> None:
    program = (
        "from opentelemetry import trace; from opentelemetry.sdk.trace import TracerProvider; "
        "trace.set_tracer_provider(TracerProvider()); "
        "from prefect_mipro.server.telemetry.exporters import tracing_of; "
        "from prefect_mipro.server.telemetry.tracing import Tracing; "
        "assert type(tracing_of({})) is not Tracing"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_spans_go_where_the_environment_says() -> None:
    program = (
        "import os; from prefect_mipro.server.telemetry.exporters import tracing_of; "
        "from prefect_mipro.server.telemetry.calls import CallMeter; "
        "tracing = tracing_of(os.environ)\n"
        "with tracing.call(CallMeter(), []) as call: call.finished()\n"
        "tracing.close()"
    )
    environment = {**os.environ, "OTEL_TRACES_EXPORTER": "console", "OTEL_SERVICE_NAME": "mine"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert '"gen_ai.operation.name": "chat"' in done.stderr
    assert '"service.name": "mine"' in done.stderr


def _context(span: ReadableSpan) -> Any:
    return span.get_span_context()
