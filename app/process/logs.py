"""Structured logs on standard error, with the request's id: one line a message, as text or JSON."""

import logging
import sys
import time
from typing import Literal

import structlog
from structlog.typing import Processor

_QUIET = ("uvicorn.access", "python_multipart", "PIL")
"""Loggers that repeat our lines, or quote data from clients."""

_SELDOM = ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk._shared_internal")
"""Loggers that report an unreachable collector of traces: each try, and each span that the queue has no room for."""

_SELDOM_S = 60.0


class _Seldom(logging.Filter):
    """Filter that lets one line of a logger pass in a minute."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + _SELDOM_S
        return True


def configure_logging(level: str, log_format: Literal["text", "json"]) -> None:
    """Format all log records of the process, those of the standard library included, in one way."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # plain tracebacks: a pretty one shows local variables, which may be images and keys
    renderers: list[Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if log_format == "json"
        else [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    for logger in map(logging.getLogger, _SELDOM):
        logger.filters = [*(each for each in logger.filters if not isinstance(each, _Seldom)), _Seldom()]
