"""Spans by OpenTelemetry. Loaded only where they are taken.

They tell who served what, how it ended and how many tokens it took, in the words of the semantic
conventions for generative AI; never prompts, answers, keys, or paths, which hold secrets.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import (
    NoOpTracerProvider,
    ProxyTracerProvider,
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    TracerProvider,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from prefect_mipro import __version__
from prefect_mipro.models.chat import Usage
from prefect_mipro.server.telemetry.calls import CallMeter, MeteredCall, Outcome, RawHeaders
from prefect_mipro.server.telemetry.tracing import CONSOLE, NONE, OTLP, CallHeaders, Tell, Tracing

SERVICE = "prefect-mipro"
OPERATION = "chat"
UPSTREAM_CALL = "POST /chat/completions"
LONGEST_NAME = 120
LONGEST_FLUSH_SECONDS = 3.0
# Not the propagators of `OTEL_PROPAGATORS`: baggage is nobody's business at a model's vendor.
_PROPAGATOR = TraceContextTextMapPropagator()
_TRACE_HEADERS = {field.encode() for field in _PROPAGATOR.fields}

log = logging.getLogger(__name__)


class Spans(Tracing):
    """Tracing through a tracer provider; `end` is called at the end, where the provider is ours."""

    def __init__(
        self, provider: TracerProvider, *, end: Callable[[], object] | None = None
    ) -> None:
        self._end = end
        self._tracer = provider.get_tracer(SERVICE, __version__)

    @property
    def call_headers(self) -> CallHeaders:
        """`traceparent` (and `tracestate`) of the span that is current."""
        return _headers_of_current_span

    def call(self, meter: CallMeter, headers: RawHeaders) -> MeteredCall:
        return TracedCall(meter, self._tracer, _trace_of(headers))

    @contextmanager
    def continued(self, headers: RawHeaders) -> Iterator[None]:
        token = context.attach(_trace_of(headers))
        try:
            yield
        finally:
            context.detach(token)

    @contextmanager
    def span(self, name: str, **attributes: str | float | bool | None) -> Iterator[Tell]:
        with self._tracer.start_as_current_span(
            name, record_exception=False, set_status_on_exception=False
        ) as span:

            def tell(**more: str | float | bool | None) -> None:
                for key, value in more.items():
                    if value is not None:
                        span.set_attribute(f"mipro.{key}", value)

            tell(**attributes)
            try:
                yield tell
            except BaseException as error:
                _fail(span, type(error).__name__)
                raise

    def close(self) -> None:
        """Send what has not been sent yet, unless its receiver is out of reach."""
        if self._end is not None:
            ending = threading.Thread(target=self._end, name="last-spans", daemon=True)
            ending.start()
            ending.join(LONGEST_FLUSH_SECONDS)


class TracedCall(MeteredCall):
    """A proxied call with a span of its own, and one within for its upstream."""

    _upstream: Span | None = None

    def __init__(self, meter: CallMeter, tracer: Tracer, parent: Context) -> None:
        super().__init__(meter)
        self._tracer = tracer
        self._span = tracer.start_span(
            OPERATION,
            context=parent,
            kind=SpanKind.SERVER,
            attributes={"gen_ai.operation.name": OPERATION, "http.request.method": "POST"},
        )

    def __enter__(self) -> Self:
        self._outer = context.attach(trace.set_span_in_context(self._span))
        return super().__enter__()

    def chosen(self, session_id: str, rollout_id: str, candidate_id: str) -> None:
        super().chosen(session_id, rollout_id, candidate_id)
        self._span.set_attributes(
            {
                "mipro.session_id": session_id,
                "mipro.rollout_id": rollout_id,
                "mipro.candidate_id": candidate_id,
            }
        )

    def forwarded(self, provider: str, model: object) -> None:
        self._span.set_attribute("gen_ai.provider.name", provider)
        if isinstance(model, str):
            name = model[:LONGEST_NAME]
            self._span.update_name(f"{OPERATION} {name}")
            self._span.set_attribute("gen_ai.request.model", name)
        self._upstream = self._tracer.start_span(
            UPSTREAM_CALL,
            context=trace.set_span_in_context(self._span),
            kind=SpanKind.CLIENT,
            attributes={"http.request.method": "POST", "mipro.provider": provider},
        )
        # `call_headers` finds it there. Leaving the whole call leaves this, too.
        context.attach(trace.set_span_in_context(self._upstream))
        super().forwarded(provider, model)

    def started(self, status: int, *, streaming: bool) -> None:
        super().started(status, streaming=streaming)
        self._span.set_attribute("gen_ai.request.stream", streaming)
        self._span.set_attribute("mipro.first_byte_seconds", self.started_at - self.began_at)
        if self._upstream is not None:
            self._upstream.set_attribute("http.response.status_code", status)
            if status >= 400:
                _fail(self._upstream, str(status))

    def read(
        self, usage: Usage, *, model: str | None, cost_usd: float | None, broken: bool
    ) -> None:
        super().read(usage, model=model, cost_usd=cost_usd, broken=broken)
        if cost_usd is not None:
            self._span.set_attribute("mipro.cost_usd", cost_usd)
        self._span.set_attribute("gen_ai.usage.input_tokens", usage.prompt_tokens)
        self._span.set_attribute("gen_ai.usage.output_tokens", usage.completion_tokens)
        if model is not None:
            self._span.set_attribute("gen_ai.response.model", model[:LONGEST_NAME])

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        context.detach(self._outer)
        super().__exit__(kind, error, traceback)
        cause = kind.__name__ if kind is not None else str(self.outcome)
        if self._upstream is not None:
            if kind is not None or self.outcome is Outcome.CANCELLED:
                _fail(self._upstream, cause)
            self._upstream.end()
        self._span.set_attribute("mipro.outcome", self.outcome)
        if self.status:
            self._span.set_attribute("http.response.status_code", self.status)
        if self.outcome is not Outcome.OK:
            _fail(self._span, cause)
        self._span.end()


def tracing(exporter: str) -> Tracing:
    """Spans to the provider that is set, else to the exporter of that name, else none at all."""
    provider = trace.get_tracer_provider()
    if not isinstance(provider, ProxyTracerProvider | NoOpTracerProvider):
        return Spans(provider)
    if exporter == NONE:
        return Tracing()
    if exporter not in (OTLP, CONSOLE):
        log.warning("no such exporter of spans here", extra={"exporter": exporter})
        return Tracing()
    return _exported(exporter)


def _exported(exporter: str) -> Spans:
    from opentelemetry.sdk import trace as sdk
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter

    spans_to: SpanExporter
    if exporter == CONSOLE:
        spans_to = ConsoleSpanExporter(out=sys.stderr)
    else:
        # The type checker's environment need not have it.
        from opentelemetry.exporter.otlp.proto.http import trace_exporter  # type: ignore[import-not-found, unused-ignore]

        spans_to = trace_exporter.OTLPSpanExporter()
    ours = Resource.create({"service.name": SERVICE, "service.version": __version__})
    # What the environment says of the service counts more.
    resource = ours.merge(OTELResourceDetector().detect())
    provider = sdk.TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(spans_to))
    return Spans(provider, end=provider.shutdown)


def _trace_of(headers: RawHeaders) -> Context:
    """The trace that a request belongs to, if it says so."""
    told = {name: value.decode("latin-1") for name, value in headers if name in _TRACE_HEADERS}
    return _PROPAGATOR.extract({name.decode(): value for name, value in told.items()})


def _headers_of_current_span() -> Mapping[str, str]:
    headers: dict[str, str] = {}
    _PROPAGATOR.inject(headers)
    return headers


def _fail(span: Span, cause: str) -> None:
    """Mark a span as failed by the name of what happened: messages may hold pieces of answers."""
    span.set_attribute("error.type", cause)
    span.set_status(StatusCode.ERROR)
