"""Tracer: spans by OpenTelemetry's SDK, which sends them in a thread of its own (OTLP over HTTP).

The SDK starts the span of a request, since its sampler decides on it. Those below follow that decision and are known from
their start to their end when they are recorded, so they are made as they are exported, in a quarter of the time.
"""

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import cast

import structlog
from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import AttributeValue

from app import __version__
from app.errors import ServiceError
from app.tracing.images import NOT_RECORDED, ImageTrace, OnDecoded

FLUSH_S = 3.0
"""Seconds that the end of the service waits for the last spans to be exported."""

_SCOPE = InstrumentationScope("vit-serve", __version__)
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)

Attributes = Mapping[str, AttributeValue]

_log = structlog.get_logger(__name__)


class Tracer:
    """Spans of requests, images and batches, exported as the `OTEL_*` variables of the process say.

    Spans that cannot be sent wait in a queue (`OTEL_BSP_MAX_QUEUE_SIZE`); when that is full, the oldest are dropped.
    """

    def __init__(self) -> None:
        self._resource = _resource()
        self._provider = TracerProvider(resource=self._resource, shutdown_on_exit=False)
        self._processor = BatchSpanProcessor(OTLPSpanExporter())
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer(_SCOPE.name, _SCOPE.version)
        self._ids = RandomIdGenerator()

    def request(self, name: str, headers: Mapping[str, str], attributes: Attributes) -> "RequestSpan":
        """Start the span of a request.

        Args:
            name: name until its route is known.
            headers: all headers that propagators may ask for, in lower case.
            attributes: those by which a sampler may decide.
        """
        parent = propagate.extract(headers, context=Context())
        return RequestSpan(self, self._tracer.start_span(name, parent, SpanKind.SERVER, attributes))

    def child(self, parent: SpanContext) -> SpanContext:
        """Return the context of another span of the same trace."""
        return SpanContext(parent.trace_id, self._ids.generate_span_id(), False, parent.trace_flags, parent.trace_state)

    def record(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        times: tuple[int, int],
        *,
        attributes: Attributes | None = None,
        links: Sequence[Link] = (),
        error: BaseException | None = None,
    ) -> None:
        """Export a span that has ended.

        Args:
            name: its name.
            context: its ids.
            parent: the span that it is part of; None for the first of a trace.
            times: start and end, in nanoseconds since 1970.
            attributes: what is known of it.
            links: spans of other traces.
            error: what ended it.
        """
        given = dict(attributes or {})
        if error is not None:
            given["error.type"] = _error_type(error)
        self._processor.on_end(
            ReadableSpan(
                name,
                context=context,
                parent=parent,
                resource=self._resource,
                attributes=given,
                links=links,
                status=_status(error),
                start_time=times[0],
                end_time=times[1],
                instrumentation_scope=_SCOPE,
            )
        )

    @contextmanager
    def batch(self, images: Sequence[ImageTrace], size: int, padded_size: int) -> Iterator[None]:
        """See `BatchTracer`. The batch has a trace of its own, since it belongs to several requests."""
        traced = cast(Sequence[_Image], images)
        began, error = time.time_ns(), None
        for image in traced:
            image.leave_queue(began)
        try:
            yield
        except BaseException as caught:
            error = caught
            raise
        finally:
            times = began, time.time_ns()
            batch = SpanContext(self._ids.generate_trace_id(), self._ids.generate_span_id(), False, _SAMPLED)
            link = [Link(batch)]
            runs = [self.child(image.request) for image in traced]
            for image, run in zip(traced, runs, strict=True):
                self.record("inference", run, image.request, times, links=link, error=error)
            sizes = {"vit.batch.size": size, "vit.batch.padded_size": padded_size}
            self.record("batch", batch, None, times, attributes=sizes, links=[Link(run) for run in runs], error=error)

    async def close(self, timeout_s: float = FLUSH_S) -> None:
        """Export what is queued, for a bounded time."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def flush() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(done.set)

        threading.Thread(target=flush, name="export the last spans", daemon=True).start()  # a pool's thread would be joined
        try:
            async with asyncio.timeout(timeout_s):
                await done.wait()
        except TimeoutError:
            _log.warning("the last spans could not be exported in time", seconds=timeout_s)


class RequestSpan:
    """Span of one request, recorded or not."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        self._context = span.get_span_context()

    @property
    def ids(self) -> dict[str, str]:
        """Fields of log lines, as OpenTelemetry names them."""
        trace_id, span_id, flags = self._context.trace_id, self._context.span_id, self._context.trace_flags
        return {"trace_id": f"{trace_id:032x}", "span_id": f"{span_id:016x}", "trace_flags": f"{flags:02x}"}

    def image(self) -> ImageTrace:
        """Return the spans of another of its images."""
        return _Image(self._tracer, self._context) if self._span.is_recording() else NOT_RECORDED

    def end(self, name: str, attributes: Attributes, *, failed: bool) -> None:
        """End the span.

        Args:
            name: its name, now that its route is known.
            attributes: what is known only now.
            failed: the service failed, not the client.
        """
        self._span.update_name(name)
        self._span.set_attributes(attributes)
        if failed:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


class _Image(ImageTrace):
    """Spans of an image whose request is recorded."""

    def __init__(self, tracer: Tracer, request: SpanContext) -> None:
        self.tracer = self._tracer = tracer
        self.request = request
        self._queued_at: int | None = None

    @contextmanager
    def decoding(self) -> Iterator[OnDecoded]:
        began = time.time_ns()

        def decoded(wait_s: float, decode_s: float) -> None:
            taken = began + int(wait_s * 1e9)
            self._record("decode_wait", (began, taken))
            self._record("decode", (taken, taken + int(decode_s * 1e9)))

        try:
            yield decoded
        except BaseException as error:
            self._record("decode", (began, time.time_ns()), error)
            raise

    @contextmanager
    def queued(self) -> Iterator[None]:
        self._queued_at = time.time_ns()
        try:
            yield
        except BaseException as error:
            self.leave_queue(time.time_ns(), error)
            raise

    def leave_queue(self, now: int, error: BaseException | None = None) -> None:
        """Record the time in the queue, unless an earlier batch has."""
        if self._queued_at is not None:
            self._record("queue", (self._queued_at, now), error)
            self._queued_at = None

    def _record(self, name: str, times: tuple[int, int], error: BaseException | None = None) -> None:
        self._tracer.record(name, self._tracer.child(self.request), self.request, times, error=error)


def _resource() -> Resource:
    given = OTELResourceDetector().detect().attributes
    defaults = {"service.name": "vit-serve", "service.version": __version__}
    return Resource.create({name: value for name, value in defaults.items() if name not in given})


def _error_type(error: BaseException) -> str:
    """Return the kind of an error; never its message, which may quote what a client sent."""
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    return error.code if isinstance(error, ServiceError) else type(error).__qualname__


def _status(error: BaseException | None) -> Status:
    """Return the status of a span: what was cancelled has not failed."""
    failed = error is not None and not isinstance(error, asyncio.CancelledError)
    return Status(StatusCode.ERROR if failed else StatusCode.UNSET)
