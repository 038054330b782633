"""Decision by `OTEL_*` variables whether traces are exported. Without that, nothing of OpenTelemetry's SDK is imported."""

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import structlog

from app.errors import StartError

if TYPE_CHECKING:  # the SDK is an extra, and importing it takes a third of a second
    from app.tracing.spans import Tracer

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")

_log = structlog.get_logger(__name__)


def start_tracing(environment: Mapping[str, str]) -> "Tracer | None":
    """Start the export of traces if the variables ask for it. Returns None, with a warning, if they cannot be followed.

    A service that classifies without traces is better than none: platforms set these variables for all that they run.
    """
    if not _asked_for(environment):
        return None
    reason = _not_supported(environment)
    if reason is None:
        try:
            from app.tracing.spans import Tracer

            return Tracer()
        except ImportError:
            reason = "OpenTelemetry's SDK is missing: pip install 'vit-serve[otel]'"
        except Exception as error:  # a file of certificates, a number that is none: the SDK raises what it likes
            reason = str(error)
    _log.warning("traces are not exported", reason=reason)
    return None


def check_propagators(environment: Mapping[str, str]) -> None:
    """Raise if a propagator is missing. Call it before FastAPI is imported, which fails on that with a stack trace.

    Raises:
        StartError: a propagator is not installed.
    """
    for name in _value(environment, "OTEL_PROPAGATORS").split(","):
        name = name.strip()
        if name.lower() == "none":
            return
        if name and not entry_points(group="opentelemetry_propagator", name=name):
            raise StartError(f"OTEL_PROPAGATORS: {name} is not installed; tracecontext and baggage always are")


def _asked_for(environment: Mapping[str, str]) -> bool:
    exporter = _value(environment, "OTEL_TRACES_EXPORTER").lower()
    if exporter == "none" or _value(environment, "OTEL_SDK_DISABLED").lower() == "true":
        return False
    return bool(exporter or _first(environment, _ENDPOINTS)[0])


def _not_supported(environment: Mapping[str, str]) -> str | None:
    """Return the variable that asks for what there is not, in a sentence."""
    if _value(environment, "OTEL_TRACES_EXPORTER").lower() not in ("", "otlp"):
        return "OTEL_TRACES_EXPORTER: must be otlp or none"
    protocol, name = _first(environment, _PROTOCOLS)
    if protocol not in ("", "http/protobuf"):
        return f"{name}: must be http/protobuf"
    endpoint, name = _first(environment, _ENDPOINTS)
    if endpoint and not _is_http(endpoint):
        return f"{name}: must be an http:// or https:// URL"
    return None


def _value(environment: Mapping[str, str], name: str) -> str:
    return environment.get(name, "").strip()  # an empty value is none, as OpenTelemetry has it


def _first(environment: Mapping[str, str], names: tuple[str, ...]) -> tuple[str, str]:
    """Return the value of the first variable that is set, with its name."""
    return next(((value, name) for name in names if (value := _value(environment, name))), ("", ""))


def _is_http(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint)
        return parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False
