"""Counters and histograms, each with its unit in its name. Label values come from fixed sets, never from a caller."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from app.errors import EngineDead, OutOfMemory, ServiceError

# a time of birth for each series doubles their number and serves nobody
disable_created_metrics()  # type: ignore[no-untyped-call] # prometheus_client leaves it unannotated

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class _ReadCounter(Collector):
    """A counter whose value is read when the metrics are."""

    def __init__(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        self._name, self._documentation, self._read = name, documentation, read

    def collect(self) -> Iterable[Metric]:
        yield CounterMetricFamily(self._name, self._documentation, self._read())


class Metrics:
    """All that is measured of one service."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "vit_http_requests", "Answered HTTP requests.", ("method", "route", "status"), registry=registry
        )
        self.request_seconds = Histogram(
            "vit_http_request_seconds",
            "From a request's arrival to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.rate_limited = Counter(
            "vit_rate_limited_requests",
            "Requests over a limit, by what it counts: `key`, `address`.",
            ("limit",),
            registry=registry,
        )
        self.http_refused = Counter(
            "vit_http_refused", "Requests and connections that were ended before any route.", ("reason",), registry=registry
        )
        self.images = Counter("vit_images", "Images by outcome: `ok` or what went wrong.", ("outcome",), registry=registry)
        self.runs = Counter(
            "vit_batches", "Runs of the model by outcome: `ok` or what went wrong.", ("outcome",), registry=registry
        )
        self.decode_seconds = self._seconds("vit_decode_seconds", "Waiting for a decoder, and decoding, an image.")
        self.decoder_restarts = Counter(
            "vit_decoder_restarts",
            "Decoding processes that were lost, by reason: `start` ended before they decoded anything.",
            ("reason",),
            registry=registry,
        )
        for reason in ("timeout", "crashed", "killed", "start"):
            self.decoder_restarts.labels(reason)
        self.queue_seconds = self._seconds("vit_queue_seconds", "An image's wait for its batch to run.")
        self.inference_seconds = self._seconds("vit_inference_seconds", "The run of the batch that an image was in.")
        self.batch_size = Histogram(
            "vit_batch_size_images", "Images in a run of the model that went well.", buckets=_BATCH_SIZES, registry=registry
        )

    def _seconds(self, name: str, documentation: str) -> Histogram:
        return Histogram(name, documentation, buckets=_SECONDS, registry=self.registry)

    def gauge(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """Register a value that is read when the metrics are."""
        Gauge(name, documentation, registry=self.registry).set_function(read)

    def counter(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """Register a count that is kept elsewhere, and read when the metrics are."""
        self.registry.register(_ReadCounter(name, documentation, read))

    @contextmanager
    def outcome_of_image(self) -> Iterator[None]:
        """Count what becomes of one image; the label is `ok`, `cancelled`, or the error's code."""
        try:
            yield
        except asyncio.CancelledError:
            self.images.labels("cancelled").inc()
            raise
        except ServiceError as error:
            self.images.labels(error.code).inc()
            raise
        except Exception:
            self.images.labels("internal_error").inc()
            raise
        else:
            self.images.labels("ok").inc()

    @contextmanager
    def outcome_of_run(self, batch_size: int) -> Iterator[None]:
        """Count what becomes of one run of the model."""
        try:
            yield
        except asyncio.CancelledError:
            self.runs.labels("cut_off").inc()
            raise
        except OutOfMemory:
            self.runs.labels("out_of_memory").inc()
            raise
        except EngineDead:
            self.runs.labels("engine_dead").inc()
            raise
        except Exception:
            self.runs.labels("failed").inc()
            raise
        else:
            self.runs.labels("ok").inc()
            self.batch_size.observe(batch_size)

    def observe_timings(self, decode_s: float, queue_s: float, inference_s: float) -> None:
        self.decode_seconds.observe(decode_s)
        self.queue_seconds.observe(queue_s)
        self.inference_seconds.observe(inference_s)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)
