"""Service: loading -> ready -> draining -> closed. Decides whether a request may enter, and knows when the last has left."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar

import structlog

from app.decoding.pool.select import StartingDecoder, begin_decoding
from app.engines import Engine
from app.engines.select import EngineOptions, choose_engine
from app.errors import DeadlineExceeded, Draining, NotReady, StartError
from app.metrics import Metrics
from app.pixels import Pixels
from app.process.cpu import give_way
from app.process.startup import OnStep, watched_start
from app.serving.batching import Batcher
from app.serving.classifier import Classifier, ModelDescription
from app.serving.runner import ModelRunner, Scores
from app.settings import Settings
from model.checkpoints.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from model.config import ViTConfig
from model.head import probabilities

Run = Callable[[ModelRunner, Sequence[Pixels]], Awaitable[Sequence[Scores]]]

Body = TypeVar("Body")

_RETRY_AFTER_S = 2.0

_log = structlog.get_logger(__name__)


def load(settings: Settings, on_step: OnStep) -> Checkpoint:
    """Load the checkpoint that the settings name.

    Raises:
        StartError: it cannot be served.
    """
    try:
        return load_checkpoint(settings.model, settings.architecture, settings.image_size, on_step, settings.activation)
    except CheckpointError as error:
        raise StartError(f"VIT_MODEL: {error}") from error


def load_classifier(settings: Settings, metrics: Metrics, run: Run = ModelRunner.run) -> Classifier:
    """Load the checkpoint onto the device and warm it up. Blocks, for seconds to minutes.

    Args:
        settings: what to load.
        metrics: where the classifier counts.
        run: how the runner runs a batch.

    Raises:
        StartError: the checkpoint cannot be served, or the device is not there.
    """
    with watched_start() as on_step:
        on_step("starting the decoders")
        with begin_decoding(settings, metrics) as decoding:
            return _load_classifier(settings, metrics, run, decoding, on_step)


def _load_classifier(settings: Settings, metrics: Metrics, run: Run, decoding: StartingDecoder, on_step: OnStep) -> Classifier:
    checkpoint = load(settings, on_step)
    config, parameters = checkpoint.model.config, checkpoint.parameters  # of the checkpoint as it was published
    image_shape = (config.num_channels, config.image_size, config.image_size)
    engine = choose_engine(checkpoint, _engine_options(settings), on_step)
    runner = ModelRunner(engine, image_shape, partial(probabilities, activation=checkpoint.activation))
    on_step("warming up")
    runner.warm_up()
    on_step("starting the decoders")
    decoder = decoding.finish(checkpoint.preprocessing, image_shape)

    async def counted_run(images: Sequence[Pixels]) -> Sequence[Scores]:
        with metrics.outcome_of_run(len(images)):
            return await run(runner, images)

    batcher = Batcher(
        counted_run,
        max_batch_size=engine.max_batch_size,
        max_inflight_images=settings.max_inflight_images,
        max_inflight_bytes=settings.max_inflight_bytes,
        max_queue_delay_s=settings.max_queue_delay_ms / 1000,
        max_runs=engine.max_concurrent_batches,
        side_by_side=engine.independent_streams,
        max_run_s=settings.inference_timeout_s,
    )
    metrics.gauge("vit_inflight_images", "Images accepted and not yet answered.", lambda: batcher.accepted)
    metrics.gauge("vit_queued_images", "Images that wait for a run.", lambda: batcher.waiting)
    metrics.gauge("vit_inflight_bytes", "Bytes of requests that arrive or wait for their answer.", lambda: batcher.held_bytes)
    return Classifier(_describe(checkpoint, config, parameters, engine), decoder, runner, batcher, metrics=metrics)


def _engine_options(settings: Settings) -> EngineOptions:
    return EngineOptions(
        engine=settings.engine,
        device=settings.device,
        dtype=settings.dtype,
        compile=settings.compile,
        max_batch_size=settings.max_batch_size,
        threads=settings.inference_threads,
        cache=settings.cache_dir,
    )


def _describe(checkpoint: Checkpoint, config: ViTConfig, parameters: int, engine: Engine) -> ModelDescription:
    """The model as it was published, and what runs it."""
    return ModelDescription(
        name=checkpoint.name,
        architecture=checkpoint.architecture,
        labels=checkpoint.labels,
        labels_source=checkpoint.labels_source,
        activation=checkpoint.activation,
        image_size=config.image_size,
        patch_size=config.patch_size,
        parameters=parameters,
        engine=engine.name,
        device=engine.device,
        dtype=engine.dtype,
        preprocessing=checkpoint.preprocessing.describe(),
        max_batch_size=engine.max_batch_size,
        compiled_batch_sizes=engine.batch_sizes,
    )


async def _in_daemon_thread(work: Callable[[], Classifier]) -> Classifier:
    """Await work that nobody can interrupt, in a thread that does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Classifier] = loop.create_future()

    def finish(deliver: Callable[[], None]) -> None:
        if not outcome.done():
            deliver()

    def run() -> None:
        give_way()
        try:
            result = work()
        except BaseException as error:
            deliver = partial(outcome.set_exception, error)
        else:
            deliver = partial(outcome.set_result, result)
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(finish, deliver)

    threading.Thread(target=run, name="load", daemon=True).start()
    return await outcome


class Service:
    """One classifier and the state of its process.

    Args:
        settings: what to load.
        load: makes the classifier; called in a thread.
    """

    def __init__(
        self, settings: Settings, metrics: Metrics, load: Callable[[Settings, Metrics], Classifier] = load_classifier
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._load = load
        self._classifier: Classifier | None = None
        self._requests = 0
        self._uploads: set[asyncio.Timeout] = set()
        self._draining = asyncio.Event()
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        metrics.gauge("vit_ready", "1 while the service takes requests.", lambda: self.why_not_ready is None)
        metrics.gauge("vit_inflight_requests", "Requests accepted and not yet answered.", lambda: self._requests)

    async def start(self, on_death: Callable[[], None] = lambda: None) -> None:
        """Load, warm up, and be ready.

        Args:
            on_death: called if the engine dies later on, when everything that waited has been told.

        Raises:
            StartError: in one sentence, why that is not possible.
        """
        _log.info("loading", model=self._settings.model)
        classifier = await _in_daemon_thread(partial(self._load, self._settings, self._metrics))
        classifier.start(on_death)
        self._classifier = classifier
        model = classifier.describe()
        _log.info(
            "ready",
            model=model.name,
            engine=model.engine,
            device=model.device,
            dtype=model.dtype,
            classes=len(model.labels),
            labels=model.labels_source,
            activation=model.activation,
        )

    @property
    def why_not_ready(self) -> str | None:
        """Why no request may enter now, for people; None if one may."""
        if self._draining.is_set():
            return "The service is shutting down."
        if self._classifier is None:
            return "The model is still loading."
        return self._classifier.why_not_ready

    @property
    def draining(self) -> bool:
        return self._draining.is_set()

    def check(self) -> Classifier:
        """The classifier, if a request may enter now.

        Raises:
            NotReady: the model is loading, or its worker has died.
            Draining: the service is shutting down.
        """
        reason = self.why_not_ready
        if self.draining:
            raise Draining(str(reason), _RETRY_AFTER_S)
        if self._classifier is None or reason is not None:
            raise NotReady(str(reason), _RETRY_AFTER_S)
        return self._classifier

    @contextmanager
    def accept(self) -> Iterator[Classifier]:
        """Let one request in; a drain waits until it has left.

        Raises:
            NotReady: the model is loading, or its worker has died.
            Draining: the service is shutting down.
        """
        classifier = self.check()
        self._requests += 1
        self._idle.clear()
        try:
            yield classifier
        finally:
            self._requests -= 1
            if self._requests == 0:
                self._idle.set()

    async def upload(self, deadline: float, reading: Awaitable[Body]) -> Body:
        """Await a request's body, which comes as slowly as its caller likes.

        Raises:
            DeadlineExceeded: it did not come in time.
            Draining: the service was closed meanwhile.
        """
        try:
            async with asyncio.timeout_at(deadline) as limit:
                self._uploads.add(limit)
                try:
                    return await reading
                finally:
                    self._uploads.remove(limit)
        except TimeoutError:
            if self._closed:
                raise Draining("The service is shutting down.", _RETRY_AFTER_S) from None
            raise DeadlineExceeded("The deadline passed before the whole request had arrived.") from None

    async def drain(self, timeout_s: float) -> bool:
        """Let nobody in any more and wait for those inside; tells whether all of them left in time."""
        self._draining.set()
        _log.info("draining", requests=self._requests)
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            _log.warning("drain timed out", requests=self._requests)
            return False
        return True

    async def close(self) -> None:
        """Stop the classifier; what still waits or arrives fails with `Draining`."""
        self._draining.set()
        self._closed = True
        for limit in self._uploads:
            if not limit.expired():
                limit.reschedule(asyncio.get_running_loop().time())
        if self._classifier is not None:
            await self._classifier.close()
