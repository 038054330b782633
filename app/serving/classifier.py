"""Classifier: the heart that joins the rooms. Encoded bytes in, ranked classes out; every wire protocol calls only this."""

import asyncio
import math
import time
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
import structlog
from numpy.typing import NDArray

from app.decoding import Decoder
from app.errors import DeadlineExceeded, InferenceFailed
from app.metrics import Metrics
from app.pixels import Pixels
from app.serving.batching import Batcher, Served
from app.serving.runner import ModelRunner, Scores
from model.head import HeadActivation

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Timings:
    """Time that one image took in each step, in seconds."""

    decode_s: float
    """Waiting for a decoder, and decoding."""
    queue_s: float
    inference_s: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class, with what the model says of it."""

    label: str
    class_index: int
    probability: float | None
    """None where outputs are no classes."""
    logit: float


@dataclass(frozen=True, slots=True)
class Classification:
    """The answer for one image."""

    labels: tuple[str, ...]
    logits: NDArray[np.float32]
    """(K,) in class order."""
    probabilities: NDArray[np.float32] | None
    """(K,) by the model's activation; None where outputs are no classes."""
    timings: Timings

    def top(self, k: int) -> list[Prediction]:
        """The `k` classes with the largest logits, best first; of equals the lower class index first."""
        return self.predictions(self.ranked(k))

    def ranked(self, k: int) -> NDArray[np.intp]:
        """The indices of these classes, in the same order."""
        return np.argsort(-self.logits, kind="stable")[:k]

    def predictions(self, classes: NDArray[np.intp]) -> list[Prediction]:
        """Return these classes, each with its label, probability and logit."""
        shares = [None] * len(classes) if self.probabilities is None else self.probabilities[classes].tolist()
        numbers = zip(classes.tolist(), shares, self.logits[classes].tolist(), strict=True)
        return [Prediction(self.labels[index], index, probability, logit) for index, probability, logit in numbers]


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """Facts on the model that is served, for people and clients."""

    name: str
    architecture: str
    labels: tuple[str, ...]
    labels_source: str
    activation: HeadActivation
    image_size: int
    patch_size: int
    parameters: int
    engine: str
    device: str
    dtype: str
    preprocessing: str
    max_batch_size: int
    compiled_batch_sizes: tuple[int, ...]


class Classifier:
    """Decodes, gathers batches, and ranks what the model says.

    Args:
        model: what is served.
        decoder: bytes -> pixels, several at once.
        runner: the device, warmed up.
        batcher: the queue in front of it.
        metrics: where outcomes and timings are counted.
    """

    def __init__(
        self,
        model: ModelDescription,
        decoder: Decoder,
        runner: ModelRunner,
        batcher: Batcher[Pixels, Scores],
        *,
        metrics: Metrics,
    ) -> None:
        self._model = model
        self._decoder = decoder
        self._runner = runner
        self._batcher = batcher
        self._metrics = metrics

    def start(self, on_death: Callable[[], None] = lambda: None) -> None:
        """Start the decoder and the worker; to be called in the event loop that will classify.

        Args:
            on_death: called if the worker dies, when everything that waited has been told.
        """
        self._decoder.start()
        self._batcher.start(on_death)

    def check_room(self) -> None:
        """Tell whether an image would be taken now, before its bytes have come.

        Raises:
            QueueFull, NotReady, Draining: it would be refused.
        """
        self._batcher.check_room()

    def bytes_held(self) -> AbstractContextManager[Callable[[int], None]]:
        """Account for the bytes that one request holds; see `Batcher.bytes_held`."""
        return self._batcher.bytes_held()

    async def classify(self, image_bytes: bytes, deadline: float = math.inf, request: Hashable = None) -> Classification:
        """Classify one encoded image. Cancelling this call drops the work wherever it waits.

        Args:
            image_bytes: JPEG, PNG, WebP, GIF or BMP.
            deadline: time of the event loop's clock after which the answer is of no use.
            request: identity of the request that brought several images: requests take turns in the decoder.

        Raises:
            ServiceError: one of its kinds; see `app/errors.py`.
        """
        with self._metrics.outcome_of_image(), self._batcher.place():
            started = time.perf_counter()
            pixels = await self._decode(image_bytes, deadline, request)
            decode_s = time.perf_counter() - started
            served = await self._batcher.submit(pixels, deadline)
            return self._classification(served, decode_s)

    async def _decode(self, image_bytes: bytes, deadline: float, request: Hashable) -> Pixels:
        """Decode; an image whose caller has gone or whose deadline has passed is never begun."""
        try:
            async with asyncio.timeout_at(None if deadline == math.inf else deadline):
                return await self._decoder.decode(image_bytes, request)
        except TimeoutError:
            raise DeadlineExceeded("The deadline passed before the image was decoded.") from None

    def _classification(self, served: Served[Scores], decode_s: float) -> Classification:
        scores = served.result
        if not np.isfinite(scores.logits).all():
            _log.error("the model gave logits that are not finite")
            raise InferenceFailed("The model gave numbers that are not finite for this image.")
        timings = Timings(decode_s, served.queue_s, served.run_s)
        self._metrics.observe_timings(decode_s, served.queue_s, served.run_s)
        return Classification(self._model.labels, scores.logits, scores.probabilities, timings)

    @property
    def name(self) -> str:
        """The model's name."""
        return self._model.name

    @property
    def activation(self) -> HeadActivation:
        """The function that makes probabilities of the model's logits."""
        return self._model.activation

    @property
    def labels(self) -> tuple[str, ...]:
        """The model's labels, in class order."""
        return self._model.labels

    @property
    def why_not_ready(self) -> str | None:
        """Reason why no image can be classified now, in one sentence; None if one can."""
        return self._decoder.why_not_ready if self._batcher.alive else "The inference worker has died."

    def describe(self) -> ModelDescription:
        """The model, with the batch size of now."""
        return replace(self._model, max_batch_size=self._batcher.max_batch_size)

    async def close(self) -> None:
        """Stop the worker and the decoder; whatever still waits fails with `Draining`."""
        await self._batcher.stop()
        self._runner.close()
        await self._decoder.close()
