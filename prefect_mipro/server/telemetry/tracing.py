"""Spans of calls, rewards and proposal rounds: none, unless OpenTelemetry is there to take them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from prefect_mipro.server.telemetry.calls import CallMeter, MeteredCall, RawHeaders

# The exporters that `OTEL_TRACES_EXPORTER` may name here.
OTLP, CONSOLE, NONE = "otlp", "console", "none"

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


def _unheard(**attributes: str | float | bool | None) -> None:
    return None


_NOTHING: AbstractContextManager[object] = nullcontext()
_UNHEARD: AbstractContextManager[Tell] = nullcontext(_unheard)
