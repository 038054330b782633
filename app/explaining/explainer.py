"""Explainer: encoded image to explanation: decode, wait in a bounded queue, ask the process that explains."""

import asyncio
import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from app.decoding import Decoder
from app.decoding.geometry import Geometry
from app.decoding.photograph import Photograph, read_photograph, read_size
from app.decoding.preprocessor import Preprocessors
from app.decoding.size import Size
from app.errors import DeadlineExceeded, InvalidParameter, NoClasses
from app.explaining.keeper import ProcessKeeper
from app.explaining.question import METHODS, Box, Method, Overlay, Question
from app.metrics import ExplainMetrics
from app.serving.admission import Admission
from app.serving.results import Timings
from model.preprocessing import Preprocessing

_NAMED_CLASSES = 8
"""Classes of the same label that a refusal names."""


@dataclass(frozen=True, slots=True)
class ExplainedModel:
    """The model to explain, and its view of an image."""

    name: str
    labels: tuple[str, ...]
    grid_size: int
    """Patches along one side of the input."""
    patch_size: int
    """Pixels along one side of a patch."""
    preprocessing: Preprocessing

    @property
    def methods(self) -> tuple[Method, ...]:
        """Methods, the usual one first; without classes nothing is relevant for one."""
        return METHODS if self.labels else ("rollout",)

    def box(self, size: Size) -> Box:
        """Return the part of an image of this (width, height) that its patches cover, in its pixels."""
        return Geometry.of(size, self.preprocessing).source_box(size, self.grid_size * self.patch_size)

    def find_class(self, named: str | None, index: int | None) -> int | None:
        """Return the index of a class, given its label, its index in digits where no label is the same, or its index.

        Raises:
            NoClasses: the model is an encoder.
            InvalidParameter: there is no such class, or several have this label.
        """
        if named is None and index is None:
            return None
        if not self.labels:
            raise NoClasses(f"{self.name} is an encoder without a classifier: there is no class to explain.")
        if index is None:
            return self._named(str(named))
        if named is not None:
            raise InvalidParameter("Send `class` or `class_index`, not both.")
        if index >= len(self.labels):
            raise InvalidParameter(f"There is no class {index}; this model has {len(self.labels)}, and the first is 0.")
        return index

    def _named(self, named: str) -> int:
        found = [index for index, label in enumerate(self.labels) if label == named]
        if len(found) == 1:
            return found[0]
        if found:
            some = ", ".join(map(str, found[:_NAMED_CLASSES]))
            raise InvalidParameter(f"{len(found)} classes have this label; send `class_index`, such as {some}.")
        if named.isascii() and named.isdigit() and len(named) < 8 and int(named) < len(self.labels):
            return int(named)
        raise InvalidParameter(f"There is no class {named[:64]!r}; send a label as in `GET /model`, or its index.")


@dataclass(frozen=True, slots=True)
class Asked:
    """A client's question, checked."""

    method: Method
    class_index: int | None
    """Class to explain; None for the one with the largest logit, and for encoders."""
    opacity: float | None = None
    """Opacity of an overlay to draw; None for none."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Relevance of each patch of an image."""

    class_index: int | None
    """Class that is explained; None for an encoder."""
    probability: float | None
    """Its probability; None where the model's outputs are none."""
    grid: NDArray[np.float32]
    """(rows, columns), not negative; the largest is 1, unless all are 0."""
    size: Size
    """(width, height) of the uploaded image, upright."""
    box: Box
    """Part of that image which the patches cover, in its pixels; beyond its edges where the model's input has a border."""
    timings: Timings
    overlay: bytes = field(default=b"", repr=False)
    """PNG, if one was asked for."""


class Explainer:
    """Explains images, a few at a time.

    Args:
        model: what is explained.
        decoder: turns bytes into pixels and photographs.
        preprocessors: what the decoder decodes to.
        keeper: asks the process that explains.
        admission: bound on images that wait or are explained.
        metrics: outcomes and seconds.
    """

    def __init__(
        self,
        model: ExplainedModel,
        decoder: Decoder,
        preprocessors: Preprocessors,
        keeper: ProcessKeeper,
        *,
        admission: Admission,
        metrics: ExplainMetrics,
    ) -> None:
        self.model = model
        self._decoder = decoder
        self._to = preprocessors
        self._keeper = keeper
        self._admission = admission
        self._metrics = metrics

    def check(self, method: str | None, named: str | None, class_index: int | None, opacity: float | None) -> Asked:
        """Check a question before its image is read.

        Args:
            method: name of a method; None for the usual one.
            named: label or index of a class; None for the one with the largest logit.
            class_index: index of a class, instead of its name.
            opacity: of an overlay to draw; None for none.

        Raises:
            QueueFull: too many images wait.
            InvalidParameter, NoClasses: there is no such method, or no such class.
        """
        self._admission.check_room()
        chosen = next((each for each in self.model.methods if method in (each, None)), None)
        if chosen is None and method == "relevance":
            raise NoClasses(f"{self.model.name} is an encoder without a classifier: nothing is relevant for a class.")
        if chosen is None:
            raise InvalidParameter(f"There is no method {str(method)[:64]!r}; this model has {', '.join(self.model.methods)}.")
        return Asked(chosen, self.model.find_class(named, class_index), opacity)

    async def explain(self, image_bytes: bytes, asked: Asked, deadline: float) -> Explanation:
        """Explain one encoded image. Cancelling this call drops what has not begun.

        Args:
            image_bytes: the image in one of the enabled formats.
            asked: the question.
            deadline: time of the event loop's clock after which the answer is of no use.

        Raises:
            ServiceError: one of its kinds; see `app/errors.py`.
        """
        with self._metrics.outcome(), self._admission.slot():
            try:
                async with asyncio.timeout_at(deadline):
                    return await self._explain(image_bytes, asked)
            except TimeoutError:
                raise DeadlineExceeded("The deadline passed before the image was explained.") from None

    def close(self) -> None:
        """End the process; everything in the queue fails with `Draining`."""
        self._keeper.close()

    async def _explain(self, image_bytes: bytes, asked: Asked) -> Explanation:
        request = object()
        decoded = await self._decoder.decode(image_bytes, request, self._to.input)
        if asked.opacity is None:
            whole = await self._decoder.decode(image_bytes, request, self._to.size)
            size, shown, drawn = read_size(whole.pixels), b"", None
        else:
            whole = await self._decoder.decode(image_bytes, request, self._to.photograph)
            photograph = read_photograph(whole.pixels)
            size, shown = photograph.size, photograph.pixels.tobytes()
            drawn = _overlay(photograph, self.model.box(size), asked.opacity)
        began = time.perf_counter()
        question = Question(asked.method, asked.class_index, drawn)
        fields, grid, overlay = await self._keeper.ask(question, decoded.pixels.tobytes(), shown)
        run_s = float(fields["seconds"])
        self._metrics.seconds.observe(run_s)
        return Explanation(
            fields["class_index"],
            fields["probability"],
            np.frombuffer(grid, np.float32).reshape(self.model.grid_size, -1),
            size,
            self.model.box(size),
            Timings(
                decode_wait_s=decoded.wait_s + whole.wait_s,
                decode_s=decoded.decode_s + whole.decode_s,
                queue_s=time.perf_counter() - began - run_s,
                inference_s=run_s,
            ),
            overlay,
        )


def _overlay(photograph: Photograph, box: Box, opacity: float) -> Overlay:
    """Return the overlay with its box in pixels of the photograph that is shown."""
    _, height, width = photograph.pixels.shape
    x_scale, y_scale = width / photograph.size[0], height / photograph.size[1]
    left, top, right, bottom = box
    return Overlay((width, height), (left * x_scale, top * y_scale, right * x_scale, bottom * y_scale), opacity)
