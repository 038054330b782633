"""Structured logs on standard error, with the request's id: one line a message, as text or JSON."""

import logging
import sys
import time
from collections.abc import Sequence
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor

_QUIET = ("uvicorn.access", "python_multipart", "PIL")
"""Loggers that repeat our lines, or quote data from clients."""

_SELDOM = ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk._shared_internal")
"""Loggers that report an unreachable collector of traces: each try, and each span that the queue has no room for."""

_SELDOM_S = 60.0

_SHARED: tuple[Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)
"""Processors of every line."""


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
    renderers = _renderers(log_format)
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = _Handler(sys.stderr, [*_SHARED, *renderers])
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
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


class QuickLogger:
    """Logger for lines of which there are many, at level INFO, with fields of numbers and plain text.

    It makes no record of the standard library, which takes three times as long, unless a handler of others wants one.

    Args:
        name: name of the logger.
    """

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)
        self._log = structlog.get_logger(name)

    def info(self, event: str, **fields: Any) -> None:
        """Log one line."""
        handlers = self._logger.root.handlers
        if len(handlers) != 1 or not isinstance(handlers[0], _Handler) or self._logger.handlers:
            self._log.info(event, **fields)
        elif self._logger.isEnabledFor(logging.INFO):
            handlers[0].write({**fields, "event": event})


class _Handler(logging.StreamHandler[TextIO]):
    """Handler of all records of the process, which can write a line without one."""

    def __init__(self, stream: TextIO, processors: Sequence[Processor]) -> None:
        super().__init__(stream)
        self._processors = processors

    def write(self, event: EventDict) -> None:
        """Write an event of level INFO; no lock is needed, since a line is one call. As `emit`, it never raises."""
        line: Any = event
        try:
            for process in self._processors:
                line = process(None, "info", line)
            self.stream.write(f"{line}\n")
            self.stream.flush()
        except Exception:
            self.handleError(logging.makeLogRecord({"msg": event.get("event")}))


def _renderers(log_format: Literal["text", "json"]) -> list[Processor]:
    # plain tracebacks: a pretty one shows local variables, which may be images and keys
    if log_format == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)]
