"""ModelRunner: runs an engine in threads, and turns its output into logits, probabilities and features."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from app.engines import Engine
from app.errors import OutOfMemory, StartError
from app.pixels import Logits, Pixels
from app.process.cpu import lower_priority


@dataclass(frozen=True, slots=True)
class Scores:
    """Logits of one image and its probabilities, each (K,) float32 in class order, and its features."""

    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32] | None
    """None if the outputs are not classes."""
    features: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    """(F,) all features of the model, one behind the other."""
    finite: bool = True
    """False if a logit or a feature is not a number, or infinite."""


class ModelRunner:
    """Runs batches in threads, one for each that the engine computes concurrently.

    Args:
        engine: computes logits.
        image_shape: (C, H, W) of its input.
        num_classes: K; numbers behind the logits are features.
        probabilities: turns logits into probabilities; returns None if the outputs are not classes.
        in_flight: returns the number of batches on the device, with those of other models and the one that asks.
    """

    def __init__(
        self,
        engine: Engine,
        image_shape: tuple[int, int, int],
        num_classes: int,
        probabilities: Callable[[Logits], Logits | None],
        in_flight: Callable[[], int] = lambda: 1,
    ) -> None:
        self.engine = engine
        self._num_classes = num_classes
        self._probabilities = probabilities
        self._image_shape = image_shape
        self._threads = ThreadPoolExecutor(
            engine.max_concurrent_batches, thread_name_prefix="batch", initializer=lower_priority
        )
        self._in_flight = in_flight

    def warm_up(self) -> None:
        """Run the largest batch and a single image in every thread, so that no request pays for the first run. Blocks.

        Raises:
            StartError: the largest batch does not fit into memory, or logits are not finite.
        """
        blank = np.zeros(self._image_shape, np.uint8)
        size = self.engine.max_batch_size
        for batch, use_all_cores in (([blank] * size, False), ([blank], False), ([blank], True)):
            batches = [
                self._threads.submit(self.engine.run, batch, use_all_cores=use_all_cores)
                for _ in range(self.engine.max_concurrent_batches)
            ]
            try:
                logits = np.concatenate([batch.result() for batch in batches])
            except OutOfMemory as error:
                reason = f"{size} images do not fit into the memory of {self.engine.device}"
                raise StartError(f"VIT_MAX_BATCH_SIZE: {reason}") from error
            if not np.isfinite(logits).all():
                where = f"in {self.engine.dtype} on {self.engine.device}"
                raise StartError(f"VIT_MODEL: the model gives logits that are not finite, {where}")

    async def run(self, images: Sequence[Pixels]) -> Sequence[Scores]:
        """Classify a batch: pixels (C, H, W) uint8 each -> scores in the same order.

        Raises:
            OutOfMemory: the batch does not fit on the device.
            EngineDead: the device cannot be used any more.
        """
        use_all_cores = len(images) == 1 and self._in_flight() == 1
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, images, use_all_cores)

    def close(self) -> None:
        """Stop the threads after their current batch, and free the engine."""
        self._threads.shutdown(wait=False)
        with suppress(AttributeError):  # closed before
            del self.engine  # tasks and their exceptions may hold this object until the next garbage collection

    def _run(self, images: Sequence[Pixels], use_all_cores: bool) -> list[Scores]:
        output = self.engine.run(images, use_all_cores=use_all_cores)
        logits, features = output[:, : self._num_classes], output[:, self._num_classes :]
        probabilities = self._probabilities(logits)
        finite = [bool(np.isfinite(row).all()) for row in output]
        rows = zip(logits, [None] * len(logits) if probabilities is None else probabilities, features, finite, strict=True)
        return [Scores(*row) for row in rows]
