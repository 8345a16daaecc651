"""What the server tells those who watch it: counts for Prometheus, spans for OpenTelemetry."""
