"""Spans of calls, rewards and proposal rounds: none, unless OpenTelemetry is there to take them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from prefect_mipro.server.telemetry.calls import CallMeter, MeteredCall, RawHeaders

EXTRA = "prefect-mipro[otel]"
# The exporters that `OTEL_TRACES_EXPORTER` may name here.
OTLP, CONSOLE, NONE = "otlp", "console", "none"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

log = logging.getLogger(__name__)


CallHeaders = Callable[[], Mapping[str, str]]


class Tell(Protocol):
    """Adds attributes to a span, each under `mipro.` and its name."""

    def __call__(self, **attributes: str | float | bool | None) -> None: ...


class Tracing:
    """Tracing that is off: what is asked of it costs nothing, and no library is loaded for it."""

    @property
    def call_headers(self) -> CallHeaders | None:
        """What a call takes along to its upstream, asked for while the call is under way."""
        return None

    def call(self, meter: CallMeter, headers: RawHeaders) -> MeteredCall:
        """A proxied call with those headers, measured by that meter."""
        return meter.call()

    def continued(self, headers: RawHeaders) -> AbstractContextManager[object]:
        """Spans within belong to the trace that the headers name, if they name one."""
        return _NOTHING

    def span(
        self, name: str, **attributes: str | float | bool | None
    ) -> AbstractContextManager[Tell]:
        """A span of something of ours; an error that leaves it is named in it."""
        return _UNHEARD

    def close(self) -> None:
        """Send what has not been sent yet."""


def tracing_of(environment: Mapping[str, str]) -> Tracing:
    """Tracing as the environment asks for it, in OpenTelemetry's own variables.

    A tracer provider that is set already (by `opentelemetry-instrument`, say) is used. Otherwise
    spans go where `OTEL_TRACES_EXPORTER` and the OTLP endpoints say, or there are none.
    """
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return Tracing()
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if not exporter:
        exporter = OTLP if any(environment.get(name) for name in _ENDPOINTS) else NONE
    if exporter == NONE and "opentelemetry.trace" not in sys.modules:
        return Tracing()
    try:
        from prefect_mipro.server.telemetry import spans

        return spans.tracing(exporter)
    except ModuleNotFoundError as missing:
        if exporter != NONE:
            fields = {"missing": missing.name, "install": EXTRA}
            log.warning("spans are asked for, and OpenTelemetry is not installed", extra=fields)
        return Tracing()


def _unheard(**attributes: str | float | bool | None) -> None:
    return None


_NOTHING: AbstractContextManager[object] = nullcontext()
_UNHEARD: AbstractContextManager[Tell] = nullcontext(_unheard)
