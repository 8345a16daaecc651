"""Telemetry: counts for Prometheus, spans for OpenTelemetry."""
