"""Traces of requests by OpenTelemetry, where `OTEL_*` variables ask for them. Serving sees `images.py` alone."""
