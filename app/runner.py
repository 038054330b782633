"""ModelRunner: the threads that an engine runs in, and what becomes of its logits."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.cpus import give_way
from app.engines import Engine
from app.errors import OutOfMemory, StartError
from app.images import Pixels


@dataclass(frozen=True, slots=True)
class Scores:
    """What the model says of one image: logits and their softmax, each (K,) float32, in class order."""

    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32]


class ModelRunner:
    """Runs batches in as many threads as the engine has runs under way at once.

    Args:
        engine: computes logits.
        image_shape: (C, H, W) of the pixels that it takes.
    """

    def __init__(self, engine: Engine, image_shape: tuple[int, int, int]) -> None:
        self.engine = engine
        self._image_shape = image_shape
        self._threads = ThreadPoolExecutor(engine.max_runs, thread_name_prefix="run", initializer=give_way)
        self._under_way = 0

    def warm_up(self) -> None:
        """Run the largest batch and a single image in every thread, so that the first caller waits for nothing. Blocks.

        Raises:
            StartError: the largest batch does not fit, or what comes out is not finite.
        """
        blank = np.zeros(self._image_shape, np.uint8)
        size = self.engine.max_batch_size
        for batch, alone in (([blank] * size, False), ([blank], False), ([blank], True)):
            runs = [self._threads.submit(self.engine.run, batch, alone=alone) for _ in range(self.engine.max_runs)]
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
        logits = self.engine.run(images, alone=alone)
        return [Scores(*row) for row in zip(logits, softmax(logits), strict=True)]


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Over the classes, in float32: (B, K) -> (B, K), each row's sum 1."""
    with np.errstate(invalid="ignore"):  # logits that are not finite: whoever reads them looks for that
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        probabilities: NDArray[np.float32] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return probabilities
