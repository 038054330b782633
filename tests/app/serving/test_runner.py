"""ModelRunner: threads, warm-up and probabilities."""

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from app.errors import OutOfMemory, StartError
from app.pixels import Logits, Pixels
from app.serving.batching import Batcher, BatchSlots
from app.serving.runner import ModelRunner, Scores
from model.head import softmax


class Echo:
    """Engine whose logits are the first three pixels. A batch waits until `gathered` batches are in flight."""

    name, device, dtype = "echo", "cpu", "float32"
    batch_sizes = ()
    independent_streams = True

    def __init__(self, *, max_concurrent_batches: int = 1, gathered: int = 1) -> None:
        self.max_batch_size, self.max_concurrent_batches = 4, max_concurrent_batches
        self.calls: list[tuple[int, bool]] = []
        self.threads: set[int] = set()
        self._gathering = threading.Barrier(gathered)

    def alone(self) -> None:
        """Have batches wait for no other from now on."""
        self._gathering = threading.Barrier(1)

    def run(self, images: Sequence[Pixels], *, use_all_cores: bool) -> Logits:
        self._gathering.wait(60)
        self.calls.append((len(images), use_all_cores))
        self.threads.add(threading.get_ident())
        return np.stack([image.ravel()[:3] for image in images]).astype(np.float32)


class Failing(Echo):
    """Engine that runs out of memory on larger batches, and returns NaN for others."""

    def run(self, images: Sequence[Pixels], *, use_all_cores: bool) -> Logits:
        if len(images) > self.max_concurrent_batches:
            raise OutOfMemory
        return np.full((len(images), 3), np.nan, np.float32)


def image(value: int) -> Pixels:
    return np.full((3, 2, 2), value, np.uint8)


async def test_each_image_gets_its_own_scores() -> None:
    runner = ModelRunner(Echo(), (3, 2, 2), 3, softmax)
    scores = await runner.run([image(1), image(7)])
    assert [row.logits.tolist() for row in scores] == [[1, 1, 1], [7, 7, 7]]
    assert scores[0].probabilities is not None
    np.testing.assert_allclose(scores[0].probabilities, [1 / 3] * 3, rtol=1e-6)


async def test_numbers_behind_the_logits_are_features() -> None:
    runner = ModelRunner(Echo(), (3, 2, 2), 2, softmax)
    (scores,) = await runner.run([image(7)])
    assert scores.probabilities is not None
    assert (scores.logits.tolist(), len(scores.probabilities), scores.features.tolist()) == ([7, 7], 2, [7])


async def test_regression_has_no_probabilities() -> None:
    runner = ModelRunner(Echo(), (3, 2, 2), 3, lambda logits: None)
    scores = await runner.run([image(1), image(7)])
    assert [(row.logits.tolist(), row.probabilities) for row in scores] == [([1, 1, 1], None), ([7, 7, 7], None)]


async def test_single_image_uses_all_cores() -> None:
    engine = Echo(max_concurrent_batches=2)
    runner = ModelRunner(engine, (3, 2, 2), 3, softmax)
    await runner.run([image(1)])
    await runner.run([image(1), image(2)])
    assert engine.calls == [(1, True), (2, False)]


async def test_concurrent_batches_share_the_cores() -> None:
    engine, slots = Echo(max_concurrent_batches=2, gathered=2), BatchSlots(2)
    runner = ModelRunner(engine, (3, 2, 2), 3, softmax, lambda: slots.in_flight)
    batcher = Batcher[Pixels, Scores](runner.run, max_batch_size=4, slots=slots, independent_streams=True)
    batcher.start()
    await asyncio.gather(batcher.submit(image(1)), batcher.submit(image(2)))
    assert engine.calls == [(1, False), (1, False)]
    assert len(engine.threads) == 2
    engine.alone()
    await batcher.submit(image(3))
    assert (engine.calls[-1], slots.in_flight) == ((1, True), 1)
    await batcher.stop()
    assert slots.in_flight == 0


async def test_sequential_batches_share_one_thread() -> None:
    engine = Echo(max_concurrent_batches=1)
    runner = ModelRunner(engine, (3, 2, 2), 3, softmax)
    await asyncio.gather(*(runner.run([image(value)]) for value in range(6)))
    assert len(engine.threads) == 1


def test_warm_up_runs_all_sizes_in_every_thread() -> None:
    engine = Echo(max_concurrent_batches=2, gathered=2)  # an unused thread would block the barrier
    ModelRunner(engine, (3, 2, 2), 3, softmax).warm_up()
    assert set(engine.calls) == {(4, False), (1, False), (1, True)}
    assert len(engine.threads) == 2


def test_oversized_batch_is_a_start_error() -> None:
    with pytest.raises(StartError, match="VIT_MAX_BATCH_SIZE: 4 images do not fit into the memory of cpu"):
        ModelRunner(Failing(), (3, 2, 2), 3, softmax).warm_up()


def test_non_finite_logits_are_a_start_error() -> None:
    with pytest.raises(StartError, match="VIT_MODEL: the model gives logits that are not finite, in float32 on cpu"):
        ModelRunner(Failing(max_concurrent_batches=4), (3, 2, 2), 3, softmax).warm_up()
