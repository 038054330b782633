"""Prometheus metrics, with units in their names. Values of labels come from fixed sets, never from a client."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

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

# the `_created` series double the number of time series
disable_created_metrics()  # type: ignore[no-untyped-call] # prometheus_client leaves it unannotated

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 2.5, 5, 10, 30)
"""Bounds of buckets. Alerts and the dashboard compare with 1 and 2 s; percentiles between two bounds are guesses."""
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

_RESTART_REASONS = ("timeout", "crashed", "killed", "start")
_HTTP_REFUSED_REASONS = ("too_many_connections", "dropped", "evicted", "silent", "slow_reader")
_REFUSED_CODES = ("rate_limited", "queue_full", "too_many_connections", "not_ready", "draining")
_FAILURE_CODES = ("internal_error", "inference_failed", "deadline_exceeded")
_IMAGE_CODES = ("undecodable_image", "unsupported_image_format", "image_too_large", "queue_full", "not_ready", "draining")
_LOAD_OUTCOMES = ("ok", "failed")
_BATCH_OUTCOMES = ("ok", "cut_off", "out_of_memory", "engine_dead", "failed")


class _ReadCounter(Collector):
    """Counter that reads its value at each scrape."""

    def __init__(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        self._name, self._documentation, self._read = name, documentation, read

    def collect(self) -> Iterable[Metric]:
        yield CounterMetricFamily(self._name, self._documentation, self._read())


class Metrics:
    """Metrics of one service. Those of a model carry its name as the label `model`."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "vit_http_requests", "Answered HTTP requests.", ("method", "route", "status", "protocol"), registry=registry
        )
        self.request_seconds = Histogram(
            "vit_http_request_seconds",
            "Time from a request's arrival to the end of its answer.",
            ("method", "route"),
            buckets=_SECONDS,
            registry=registry,
        )
        self.problems = Counter(
            "vit_http_problems", "Requests answered with an error, by the problem's code.", ("code",), registry=registry
        )
        self.rate_limited = Counter(
            "vit_rate_limited_requests",
            "Requests over a rate limit: of a `key` or an `address`.",
            ("limit",),
            registry=registry,
        )
        self.http_refused = Counter(
            "vit_http_refused", "Requests and connections ended before any route.", ("reason",), registry=registry
        )
        self.decoder_restarts = Counter(
            "vit_decoder_restarts",
            "Decoding workers lost, by reason: `start` ended before they decoded anything.",
            ("reason",),
            registry=registry,
        )
        self.decoder_busy_seconds = Counter(
            "vit_decoder_busy_seconds", "Time that decoding workers had an image, whatever came of it.", registry=registry
        )
        _begin_at_zero(self.problems.labels, *_REFUSED_CODES, *_FAILURE_CODES)
        _begin_at_zero(self.rate_limited.labels, "key", "address")
        _begin_at_zero(self.http_refused.labels, *_HTTP_REFUSED_REASONS)
        _begin_at_zero(self.decoder_restarts.labels, *_RESTART_REASONS)
        self.ready = Gauge("vit_ready", "1 while the service takes requests.", registry=registry)
        self.inflight_requests = Gauge("vit_inflight_requests", "Requests accepted and not yet answered.", registry=registry)
        self.inflight_bytes = Gauge(
            "vit_inflight_bytes", "Bytes of requests that arrive or wait for their answer.", registry=registry
        )
        self.max_inflight_images = Gauge(
            "vit_max_inflight_images", "Limit of `vit_inflight_images`, which all models share.", registry=registry
        )
        self.max_inflight_bytes = Gauge("vit_max_inflight_bytes", "Limit of `vit_inflight_bytes`.", registry=registry)
        self._of_models = _MetricsOfModels(registry)
        self._by_name: dict[str, ModelMetrics] = {}

    def of_model(self, name: str) -> "ModelMetrics":
        """Return the metrics of one model, the same for all its versions."""
        if name not in self._by_name:
            self._by_name[name] = ModelMetrics(self._of_models, name)
        return self._by_name[name]

    def forget_model(self, name: str) -> None:
        """Remove all series of a model that is no longer listed."""
        if self._by_name.pop(name, None) is not None:
            self._of_models.remove(name)

    def counter(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """Register a counter that reads its value at each scrape."""
        self.registry.register(_ReadCounter(name, documentation, read))

    def gauge(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """Register a gauge that reads its value at each scrape."""
        Gauge(name, documentation, registry=self.registry).set_function(read)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


def _begin_at_zero(series: Callable[[str], Counter], *values: str) -> None:
    """Create the series of labels that alerts watch: `increase` sees no first count of one that appears with it."""
    for value in values:
        series(value)


class _MetricsOfModels:
    """Metrics with the label `model`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(Counter, labelnames=("model", "outcome"), registry=registry)
        seconds = partial(Histogram, labelnames=("model",), buckets=_SECONDS, registry=registry)
        gauge = partial(Gauge, labelnames=("model",), registry=registry)
        self.images = counter("vit_images", "Images by outcome: `ok` or an error's code.")
        self.batches = counter("vit_batches", "Batches by outcome: `ok` or the failure.")
        self.decode_wait_seconds = seconds("vit_decode_wait_seconds", "Waiting of an image for a decoding worker.")
        self.decode_seconds = seconds("vit_decode_seconds", "Decoding of an image by its worker, without waiting for one.")
        self.queue_seconds = seconds("vit_queue_seconds", "Time of an image in the queue.")
        self.inference_seconds = seconds("vit_inference_seconds", "Inference of the batch that an image was in.")
        self.batch_size = Histogram(
            "vit_batch_size_images", "Images in a batch that succeeded.", ("model",), buckets=_BATCH_SIZES, registry=registry
        )
        self.padding = Counter(
            "vit_batch_padding_images",
            "Rows without an image in batches that were padded to a compiled size.",
            ("model",),
            registry=registry,
        )
        self.inflight_images = gauge("vit_inflight_images", "Images accepted and not yet answered.")
        self.queued_images = gauge("vit_queued_images", "Images that wait for a batch.")
        self.max_batch_size = gauge("vit_max_batch_size_images", "Images in a batch at most; less once memory ran out.")
        self.info = Gauge(
            "vit_model_info",
            "1 for a model that is loaded, with what runs it.",
            ("model", "architecture", "served_by", "engine", "device", "dtype"),
            registry=registry,
        )
        self.bytes = gauge("vit_model_bytes", "Memory that a model took when it was loaded; 0 while it is not.")
        self.ready = gauge("vit_model_ready", "1 while a model answers.")
        self.loads = counter("vit_model_loads", "Loads of a model, the first and later ones: `ok` or `failed`.")
        self.explanations = counter("vit_explanations", "Images to explain, by outcome as of `vit_images_total`.")
        self.explain_seconds = seconds("vit_explain_seconds", "Explaining an image.")
        self.explainer_losses = Counter(
            "vit_explainer_losses",
            "Processes that explain which were lost, or could not be started.",
            ("model",),
            registry=registry,
        )

    def remove(self, name: str) -> None:
        """Remove all series of a model."""
        for metric in vars(self).values():
            metric.remove_by_labels({"model": name})


@dataclass(slots=True)
class Statistics:
    """Sums over all images of one model since the start."""

    images: int = 0
    failed: int = 0
    batches: int = 0
    decode_s: float = 0.0
    queue_s: float = 0.0
    """Waiting for a decoding worker, and for a batch."""
    inference_s: float = 0.0
    last_ms: int = 0
    """Time of the last image, in milliseconds since 1970; 0 for none."""


class ExplainMetrics:
    """Metrics of the explanations of one model."""

    def __init__(self, metrics: _MetricsOfModels, name: str) -> None:
        self._explanations = partial(metrics.explanations.labels, name)
        _begin_at_zero(self._explanations, "ok")
        self.seconds = metrics.explain_seconds.labels(name)
        self.lost = metrics.explainer_losses.labels(name)

    @contextmanager
    def outcome(self) -> Iterator[None]:
        """Count the outcome of one image: `ok`, `cancelled`, or the error's code."""
        outcome = "internal_error"
        try:
            yield
            outcome = "ok"
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except ServiceError as error:
            outcome = error.code
            raise
        finally:
            self._explanations(outcome).inc()


class _ImageInFlight(AbstractContextManager[None]):
    """Images in flight of one model; a class, since a generator takes three times as long, and this is around every image."""

    def __init__(self, metrics: "ModelMetrics") -> None:
        self._metrics = metrics

    def __enter__(self) -> None:
        self._metrics.begin_image()

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._metrics.end_image(error)


class ModelMetrics:
    """Metrics of one model."""

    def __init__(self, metrics: _MetricsOfModels, name: str) -> None:
        self.statistics = Statistics()
        self.padded_sizes: Sequence[int] = ()
        """Sizes that batches are padded to, ascending; empty if every size runs as it is."""
        self._images = partial(metrics.images.labels, name)
        self._batches = partial(metrics.batches.labels, name)
        self._decode_wait_seconds = metrics.decode_wait_seconds.labels(name)
        self._decode_seconds = metrics.decode_seconds.labels(name)
        self._queue_seconds = metrics.queue_seconds.labels(name)
        self._inference_seconds = metrics.inference_seconds.labels(name)
        self._batch_size = metrics.batch_size.labels(name)
        self._padding = metrics.padding.labels(name)
        self._in_flight = 0
        metrics.inflight_images.labels(name).set_function(lambda: self._in_flight)
        self.queued_images = metrics.queued_images.labels(name)
        self.max_batch_size = metrics.max_batch_size.labels(name)
        self.bytes = metrics.bytes.labels(name)
        self.ready = metrics.ready.labels(name)
        self.explain = ExplainMetrics(metrics, name)
        self.loads = partial(metrics.loads.labels, name)
        self._name = name
        self._info = metrics.info
        self._described: tuple[str, ...] | None = None
        self._image = _ImageInFlight(self)
        self._images_ok = self._images("ok")
        _begin_at_zero(self._images, "cancelled", *_FAILURE_CODES, *_IMAGE_CODES)
        _begin_at_zero(self._batches, *_BATCH_OUTCOMES)
        _begin_at_zero(self.loads, *_LOAD_OUTCOMES)

    def describe(self, *, architecture: str, served_by: str, engine: str, device: str, dtype: str) -> None:
        """Show what the model is and what runs it, in place of the version before it."""
        self._forget_description()
        self._described = (self._name, architecture, served_by, engine, device, dtype)
        self._info.labels(*self._described).set(1)

    def unloaded(self) -> None:
        """Show that the model is not loaded."""
        self._forget_description()
        for gauge in (self.bytes, self.ready, self.queued_images, self.max_batch_size):
            gauge.set_function(lambda: 0)

    def _forget_description(self) -> None:
        if self._described is not None:
            self._info.remove(*self._described)
            self._described = None

    def outcome_of_image(self) -> AbstractContextManager[None]:
        """Count one image while it is in flight, and its outcome: `ok`, `cancelled`, or the error's code."""
        return self._image

    def begin_image(self) -> None:
        """Count an image as in flight."""
        self._in_flight += 1

    def end_image(self, error: BaseException | None) -> None:
        """Count the outcome of an image that was in flight."""
        self._in_flight -= 1
        if error is None:
            self._images_ok.inc()
        elif isinstance(error, asyncio.CancelledError):
            self._images("cancelled").inc()
        elif isinstance(error, Exception):
            self._images(error.code if isinstance(error, ServiceError) else "internal_error").inc()
            self.statistics.failed += 1

    @contextmanager
    def outcome_of_batch(self, size: int) -> Iterator[None]:
        """Count the outcome of one batch."""
        try:
            yield
        except asyncio.CancelledError:
            self._batches("cut_off").inc()
            raise
        except OutOfMemory:
            self._batches("out_of_memory").inc()
            raise
        except EngineDead:
            self._batches("engine_dead").inc()
            raise
        except Exception:
            self._batches("failed").inc()
            raise
        else:
            self._batches("ok").inc()
            self._batch_size.observe(size)
            self._padding.inc(next((padded - size for padded in self.padded_sizes if padded >= size), 0))
            self.statistics.batches += 1

    def observe_timings(self, decode_wait_s: float, decode_s: float, queue_s: float, inference_s: float) -> None:
        """Observe the seconds that one image spent in each step; one that arrived as pixels was not decoded, in 0 s."""
        if decode_s:
            self._decode_wait_seconds.observe(decode_wait_s)
            self._decode_seconds.observe(decode_s)
        self._queue_seconds.observe(queue_s)
        self._inference_seconds.observe(inference_s)
        sums = self.statistics
        sums.images, sums.last_ms = sums.images + 1, time.time_ns() // 1_000_000
        sums.decode_s += decode_s
        sums.queue_s += decode_wait_s + queue_s
        sums.inference_s += inference_s
