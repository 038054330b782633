"""ModelRunner: the threads that an engine runs in, and what becomes of its logits."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.engines import Engine
from app.errors import OutOfMemory, StartError
from app.pixels import Logits, Pixels
from app.process.cpu import give_way


@dataclass(frozen=True, slots=True)
class Scores:
    """Logits of one image and its probabilities, each (K,) float32, in class order."""

    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32] | None
    """None where outputs are no classes."""


class ModelRunner:
    """Runs batches in as many threads as the engine has runs under way at once.

    Args:
        engine: computes logits.
        image_shape: (C, H, W) of the pixels that it takes.
        probabilities: makes them of logits; gives None where outputs are no classes.
    """

    def __init__(
        self, engine: Engine, image_shape: tuple[int, int, int], probabilities: Callable[[Logits], Logits | None]
    ) -> None:
        self.engine = engine
        self._probabilities = probabilities
        self._image_shape = image_shape
        self._threads = ThreadPoolExecutor(engine.max_concurrent_batches, thread_name_prefix="run", initializer=give_way)
        self._under_way = 0

    def warm_up(self) -> None:
        """Run the largest batch and a single image in every thread, so that the first caller waits for nothing. Blocks.

        Raises:
            StartError: the largest batch does not fit, or what comes out is not finite.
        """
        blank = np.zeros(self._image_shape, np.uint8)
        size = self.engine.max_batch_size
        for batch, alone in (([blank] * size, False), ([blank], False), ([blank], True)):
            runs = [
                self._threads.submit(self.engine.run, batch, use_all_cores=alone)
                for _ in range(self.engine.max_concurrent_batches)
            ]
            try:
                logits = np.concatenate([run.result() for run in runs])
            except OutOfMemory as error:
                reason = f"{size} images do not fit into the memory of {self.engine.device}"
                raise StartError(f"VIT_MAX_BATCH_SIZE: {reason}") from error
            if not np.isfinite(logits).all():
                where = f"in {self.engine.dtype} on {self.engine.device}"
                raise StartError(f"VIT_MODEL: the model gives logits that are not finite, {where}")

    async def run(self, images: Sequence[Pixels]) -> Sequence[Scores]:
        """Classify a batch: pixels (3, H, W) uint8 each -> scores in the same order.

        Raises:
            OutOfMemory: the batch does not fit on the device.
            EngineDead: the device cannot be used any more.
        """
        self._under_way += 1
        try:
            await asyncio.sleep(0)  # so that runs which begin at the same moment know of each other
            alone = len(images) == 1 and self._under_way == 1
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, images, alone)
        finally:
            self._under_way -= 1

    def close(self) -> None:
        """Let the threads end after what they are running."""
        self._threads.shutdown(wait=False)

    def _run(self, images: Sequence[Pixels], alone: bool) -> list[Scores]:
        logits = self.engine.run(images, use_all_cores=alone)
        shares = self._probabilities(logits)
        return [Scores(*row) for row in zip(logits, [None] * len(logits) if shares is None else shares, strict=True)]
