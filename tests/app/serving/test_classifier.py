"""Classifier with a decoder that can be held up; model and batcher are real."""

import asyncio
import threading
from collections.abc import AsyncIterator, Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.decoding import Decoded, OnDecoded
from app.decoding.pool.threads import ThreadDecoder
from app.errors import DeadlineExceeded, Draining, QueueFull
from app.metrics import Metrics
from app.pixels import Pixels
from app.serving.classifier import Classifier
from app.serving.loading import load_classifier
from app.serving.model_list import ModelSpec
from app.serving.runner import ModelRunner, Scores
from app.serving.shared import Shared
from app.settings import read_settings
from tests.support.models import TINY_DINOV2, png


class HeldDecode:
    """Decode function that waits for its gate, and counts."""

    def __init__(self) -> None:
        self.begun, self.gate, self.decoded = threading.Semaphore(0), threading.Event(), 0

    def __call__(self, image_bytes: bytes) -> Pixels:
        self.begun.release()
        self.gate.wait(60)
        self.decoded += 1
        return np.zeros((3, TINY_DINOV2.image_size, TINY_DINOV2.image_size), np.uint8)


class OwnDecoder(ThreadDecoder):
    """Decoder that decodes for every model with its own function."""

    async def decode(
        self, image_bytes: bytes, request: Hashable = None, preprocessor: object = None, on_decoded: OnDecoded | None = None
    ) -> Decoded:
        return await super().decode(image_bytes, request, None, on_decoded)


class Unreturned(OwnDecoder):
    """Decoder that hands an image over, though its call does not return."""

    async def decode(self, *arguments: Any, **options: Any) -> Decoded:
        await super().decode(*arguments, **options)
        await asyncio.Event().wait()
        raise AssertionError


@pytest.fixture
async def held(tiny_checkpoint: Path) -> AsyncIterator[tuple[Classifier, HeldDecode]]:
    settings = read_settings(model=str(tiny_checkpoint), max_inflight_images=3)
    decoder = HeldDecode()
    metrics = Metrics()
    shared = Shared(settings, metrics, OwnDecoder(decoder, threads=1))
    classifier = load_classifier(ModelSpec(None, settings), metrics, shared)
    classifier.start()
    yield classifier, decoder
    decoder.gate.set()
    await classifier.close()
    await shared.close()


async def begin(classifier: Classifier, decoder: HeldDecode) -> asyncio.Task[object]:
    """Start an image and wait until it holds the only decoding thread."""
    first: asyncio.Task[object] = asyncio.create_task(classifier.classify(png(0)))
    await asyncio.to_thread(decoder.begun.acquire)
    return first


async def test_late_image_is_not_decoded(held: tuple[Classifier, HeldDecode]) -> None:
    classifier, decoder = held
    first = await begin(classifier, decoder)
    with pytest.raises(DeadlineExceeded):
        await classifier.classify(png(1), asyncio.get_running_loop().time() + 0.01)
    decoder.gate.set()
    await first
    assert decoder.decoded == 1


async def test_cancelled_image_is_not_decoded(held: tuple[Classifier, HeldDecode]) -> None:
    classifier, decoder = held
    first = await begin(classifier, decoder)
    second = asyncio.create_task(classifier.classify(png(1)))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    decoder.gate.set()
    await first
    assert decoder.decoded == 1


async def test_image_is_queued_as_its_worker_replies(tiny_checkpoint: Path) -> None:
    settings, metrics, decoder = read_settings(model=str(tiny_checkpoint), engine="torch"), Metrics(), HeldDecode()
    shared = Shared(settings, metrics, Unreturned(decoder, threads=1))
    ran = asyncio.Event()

    async def run(runner: ModelRunner, images: Sequence[Pixels]) -> Sequence[Scores]:
        ran.set()
        return await runner.run(images)

    classifier = load_classifier(ModelSpec(None, settings), metrics, shared, run=run)
    classifier.start()
    image = asyncio.create_task(classifier.classify(png(0)))
    decoder.gate.set()
    await asyncio.wait_for(ran.wait(), 60)
    image.cancel()
    await asyncio.wait([image])
    assert (classifier._batcher.queued, classifier.admission.images) == (0, 0)
    await classifier.close()
    await shared.close()


async def test_cancelled_decoded_image_leaves_the_queue(held: tuple[Classifier, HeldDecode]) -> None:
    classifier, decoder = held
    classifier._batcher._slots.free = 0
    image = await begin(classifier, decoder)
    decoder.gate.set()
    while not classifier._batcher.queued:  # noqa: ASYNC110 - a hand-over sets no Event
        await asyncio.sleep(0)
    image.cancel()
    await asyncio.wait([image])
    assert (classifier._batcher.queued, classifier.admission.images) == (0, 0)


async def test_images_being_decoded_hold_slots(held: tuple[Classifier, HeldDecode]) -> None:
    classifier, decoder = held
    first = await begin(classifier, decoder)
    others = [asyncio.create_task(classifier.classify(png(seed))) for seed in (1, 2)]
    await asyncio.sleep(0)
    for refusal in (classifier.admission.check_room, lambda: classifier.classify(png(3)).send(None)):
        with pytest.raises(QueueFull):
            refusal()
    decoder.gate.set()
    await asyncio.gather(first, *others)
    classifier.admission.check_room()


async def test_close_fails_every_stage_with_draining(held: tuple[Classifier, HeldDecode]) -> None:
    classifier, decoder = held
    decoding = await begin(classifier, decoder)
    waiting = asyncio.create_task(classifier.classify(png(1)))
    await asyncio.sleep(0)
    await classifier.close()
    await classifier._decoder.close()
    decoder.gate.set()
    outcomes = await asyncio.gather(decoding, waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Draining, Draining]
    with pytest.raises(Draining):
        await classifier.classify(png(2))


async def test_classify_pixels_skips_decoding(held: tuple[Classifier, HeldDecode]) -> None:
    classifier, decoder = held
    pixels = np.zeros((3, TINY_DINOV2.image_size, TINY_DINOV2.image_size), np.uint8)
    of_pixels = await classifier.classify_pixels(pixels)
    decoder.gate.set()
    of_bytes = await classifier.classify(png(0))  # decodes to the same pixels
    np.testing.assert_allclose(of_pixels.logits, of_bytes.logits, rtol=0, atol=1e-5)
    assert (decoder.decoded, of_pixels.timings.decode_s) == (1, 0.0)


async def test_second_load_shares_the_metrics(tiny_checkpoint: Path) -> None:
    settings, metrics = read_settings(model=str(tiny_checkpoint)), Metrics()
    shared = Shared(settings, metrics, ThreadDecoder(HeldDecode(), threads=1))
    for _ in range(2):
        classifier = load_classifier(ModelSpec(None, settings), metrics, shared)
        classifier.start()
        await classifier.classify(png(0))
        await classifier.close()
    await shared.close()
    assert f'vit_images_total{{model="{classifier.model.name}",outcome="ok"}} 2.0' in metrics.text().decode()
