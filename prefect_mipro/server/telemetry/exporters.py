"""Choice of a span exporter. OpenTelemetry is loaded only if there is one."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping

from prefect_mipro.server.telemetry.tracing import NONE, OTLP, Tracing

EXTRA = "prefect-mipro[otel]"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

log = logging.getLogger(__name__)


def tracing_of(environment: Mapping[str, str]) -> Tracing:
    """The tracing that OpenTelemetry's own environment variables ask for.

    A tracer provider that is already set (for example by `opentelemetry-instrument`) is used.
    Otherwise spans go where `OTEL_TRACES_EXPORTER` and the OTLP endpoints point, or nowhere.
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
