"""Classifier: decode, batch, infer, rank. The only entry point for wire protocols."""

import asyncio
import math
from collections.abc import Callable, Hashable
from dataclasses import replace

import structlog

from app.decoding import Decoded, Decoder, OnDecoded, Preprocessor
from app.errors import DeadlineExceeded, InferenceFailed, InvalidParameter, NoClasses, NoExplanation, NoFeatures
from app.explaining.explainer import Explainer
from app.metrics import ModelMetrics, Statistics
from app.pixels import Pixels
from app.serving.admission import Admission
from app.serving.batch import Job
from app.serving.batching import Batcher
from app.serving.results import Classification, Embedding, ModelDescription, Timings
from app.serving.runner import ModelRunner, Scores
from app.tracing.images import ImageTrace, image_trace

_log = structlog.get_logger(__name__)


class Classifier:
    """Decodes images, batches them and returns their scores.

    Args:
        model: description of the model, as it was loaded.
        decoder: turns bytes into pixels.
        preprocessor: what the decoder decodes to: the model's input.
        runner: the engine's threads, warmed up.
        admission: bounds on images and bytes in flight.
        batcher: the queue in front of the runner.
        metrics: outcomes and timings of this model.
        why_no_features: reason, if the model's description has no features.
        explainer: explains the model; None if it is not explained.
    """

    def __init__(
        self,
        model: ModelDescription,
        decoder: Decoder,
        preprocessor: Preprocessor,
        runner: ModelRunner,
        *,
        admission: Admission,
        batcher: Batcher[Pixels, Scores],
        metrics: ModelMetrics,
        why_no_features: str = "",
        explainer: Explainer | None = None,
    ) -> None:
        self.admission = admission
        self.model = model
        self._decoder = decoder
        self._preprocessor = preprocessor
        self._runner = runner
        self._batcher = batcher
        self._metrics = metrics
        self._why_no_features = why_no_features
        self._explainer = explainer

    def start(self, on_death: Callable[[], None] = lambda: None) -> None:
        """Start the batcher. Call it in the event loop that will classify, where the decoder is started too.

        Args:
            on_death: called if the worker dies, after everything queued has failed.
        """
        self._show()
        self._batcher.start(on_death)

    def _show(self) -> None:
        """Have the metrics of the model's name show this version of it."""
        self._metrics.queued_images.set_function(lambda: self._batcher.queued)
        self._metrics.max_batch_size.set_function(lambda: self._batcher.max_batch_size)
        self._metrics.padded_sizes = self.model.compiled_batch_sizes
        self._metrics.describe(
            architecture=self.model.architecture,
            served_by=self.model.served_by,
            engine=self.model.engine,
            device=self.model.device,
            dtype=self.model.dtype,
        )

    def check_classes(self) -> None:
        """Raise if the model has no classes. Routes ask before they read a body.

        Raises:
            NoClasses: it is an encoder without a classifier.
        """
        if not self.model.labels:
            raise NoClasses(
                f"{self.model.name} is an encoder without a classifier; serve a model that was fine-tuned on classes."
            )

    async def classify(self, image_bytes: bytes, deadline: float = math.inf, request: Hashable = None) -> Classification:
        """Decode and classify one encoded image. Cancelling this call drops the work wherever it is.

        Args:
            image_bytes: the image in one of the enabled formats.
            deadline: time of the event loop's clock after which the answer is of no use.
            request: identity of the request that sent the image, if it sent several: requests take turns in the decoder.

        Raises:
            ServiceError: one of its kinds; see `app/errors.py`.
        """
        self.check_classes()
        return self._classification(*await self._run(image_bytes, deadline, request))

    async def embed(self, image_bytes: bytes, features: str, deadline: float = math.inf, request: Hashable = None) -> Embedding:
        """Decode one encoded image and return its features; as `classify`.

        Args:
            image_bytes: as of `classify`.
            features: name of the features, as `check_features` returns it.
            deadline: as of `classify`.
            request: likewise.
        """
        scores, timings = await self._run(image_bytes, deadline, request)
        start = 0
        for each in self.model.features:
            if each.name == features:
                return Embedding(scores.features[start : start + each.size], timings)
            start += each.size
        raise AssertionError(f"the model has no features {features!r}")

    def check_features(self, asked: str | None) -> str:
        """Return the name of the features asked for, or of the usual ones. Routes ask before they read a body.

        Raises:
            NoFeatures: the model gives none.
            InvalidParameter: it gives others.
        """
        names = [each.name for each in self.model.features]
        if not names:
            raise NoFeatures(f"{self.model.name} gives no features: {self._why_no_features}.")
        if asked is not None and asked not in names:
            raise InvalidParameter(f"There is no pooling {asked[:64]!r}; this model has {', '.join(names)}.")
        return asked or names[0]

    def check_explainer(self) -> Explainer:
        """Return what explains the model. Routes ask before they read a body.

        Raises:
            NoExplanation: nothing does.
        """
        if self._explainer is None:
            own = self.model.served_by == "vit-serve"
            why = "VIT_EXPLAIN is false" if own else f"{self.model.served_by} runs it, and its attention is not known"
            raise NoExplanation(f"{self.model.name} is not explained: {why}.")
        return self._explainer

    async def classify_pixels(self, pixels: Pixels, deadline: float = math.inf) -> Classification:
        """Classify an image that its client has decoded and resized.

        Args:
            pixels: (C, H, W) uint8 of the model's input shape.
            deadline: time of the event loop's clock after which the answer is of no use.

        Raises:
            ServiceError: one of its kinds; see `app/errors.py`.
        """
        self.check_classes()
        with self._metrics.outcome_of_image(), self.admission.slot():
            trace = image_trace()
            job = self._batcher.put(pixels, deadline, trace)
            return self._classification(*await self._result(job, Decoded(pixels, 0.0, 0.0), trace))

    async def _run(self, image_bytes: bytes, deadline: float, request: Hashable) -> tuple[Scores, Timings]:
        with self._metrics.outcome_of_image(), self.admission.slot():
            trace = image_trace()
            job: Job[Pixels, Scores] | None = None

            def put(decoded: Decoded) -> None:
                nonlocal job
                job = self._batcher.put(decoded.pixels, deadline, trace)

            try:
                with trace.decoding() as record:
                    decoded = await self._decode(image_bytes, deadline, request, put)
                    record(decoded.wait_s, decoded.decode_s)
                assert job is not None
                return await self._result(job, decoded, trace)
            finally:
                if job is not None:  # put, though this call was cancelled before it saw that
                    self._batcher.drop(job)

    async def _decode(self, image_bytes: bytes, deadline: float, request: Hashable, on_decoded: OnDecoded) -> Decoded:
        try:
            async with asyncio.timeout_at(None if deadline == math.inf else deadline):
                return await self._decoder.decode(image_bytes, request, self._preprocessor, on_decoded)
        except TimeoutError:
            raise DeadlineExceeded("The deadline passed before the image was decoded.") from None

    async def _result(self, job: Job[Pixels, Scores], decoded: Decoded, trace: ImageTrace) -> tuple[Scores, Timings]:
        with trace.queued():
            batched = await self._batcher.result(job)
        scores = batched.result
        if not scores.finite:
            _log.error("the model gave numbers that are not finite")
            raise InferenceFailed("The model gave numbers that are not finite for this image.")
        timings = Timings(decoded.wait_s, decoded.decode_s, batched.queue_s, batched.inference_s)
        self._metrics.observe_timings(decoded.wait_s, decoded.decode_s, batched.queue_s, batched.inference_s)
        return scores, timings

    def _classification(self, scores: Scores, timings: Timings) -> Classification:
        return Classification(self.model.labels, scores.logits, scores.probabilities, timings)

    @property
    def why_not_ready(self) -> str | None:
        """Reason why no image can be classified now, in one sentence; None if one can."""
        return self._decoder.why_not_ready if self._batcher.alive else "The inference worker has died."

    @property
    def statistics(self) -> Statistics:
        """Sums over all images since the start."""
        return self._metrics.statistics

    def describe(self) -> ModelDescription:
        """Return the description of the model with its current batch size."""
        return replace(self.model, max_batch_size=self._batcher.max_batch_size)

    async def close(self) -> None:
        """Stop the batcher; everything queued or in flight fails with `Draining`."""
        if self._explainer is not None:
            self._explainer.close()
        await self._batcher.stop()
        self._runner.close()
