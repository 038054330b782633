import asyncio
import threading
from typing import Any

import numpy as np
import pytest
import torch

from app.errors import StartError
from app.images import Pixels
from app.runner import ModelRunner, pad_batch, padded_sizes
from model.checkpoint import Checkpoint
from tests.support import TINY_LABELS, TINY_PREPROCESSING, tiny_model


def runner_of(**options: Any) -> ModelRunner:
    checkpoint = Checkpoint("tiny", "Dinov2ForImageClassification", tiny_model(), TINY_PREPROCESSING, TINY_LABELS)
    defaults = {"device": "cpu", "dtype": "float32", "compile_model": False, "max_batch_size": 8, "threads": 1}
    return ModelRunner(checkpoint, **{**defaults, **options})


def model_of(runner: ModelRunner) -> torch.nn.Module:
    model: Any = runner._model
    assert isinstance(model, torch.nn.Module)
    return model


def random_pixels(count: int) -> list[Pixels]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 3, 28, 28), dtype=np.uint8))


def expected_logits(images: list[Pixels]) -> torch.Tensor:
    """What the model gives for images that were normalised the plain way."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (TINY_PREPROCESSING.mean, TINY_PREPROCESSING.std))
    with torch.no_grad():
        return tiny_model()((torch.from_numpy(np.stack(images)) / 255 - mean) / std)


async def test_raw_pixels_give_the_logits_of_normalised_images() -> None:
    images = random_pixels(5)
    scores = await runner_of().run(images)
    logits = np.stack([row.logits for row in scores])
    np.testing.assert_allclose(logits, expected_logits(images).numpy(), rtol=0, atol=1e-4)
    for row in scores:
        assert row.logits.dtype == row.probabilities.dtype == np.float32
        assert row.probabilities.sum() == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(row.probabilities, torch.softmax(torch.from_numpy(row.logits), 0), atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
async def test_half_precision_stays_close(dtype: str) -> None:
    images = random_pixels(3)
    scores = await runner_of(dtype=dtype).run(images)
    reference = expected_logits(images).numpy()
    np.testing.assert_allclose(np.stack([row.logits for row in scores]), reference, rtol=0, atol=0.05 * np.abs(reference).max())


def test_batches_are_padded_to_the_next_size_with_black() -> None:
    assert padded_sizes(1) == (1,)
    assert padded_sizes(8) == (1, 2, 4, 8)
    assert padded_sizes(12) == (1, 2, 4, 8, 12)
    pixels = torch.ones(3, 3, 2, 2, dtype=torch.uint8)
    padded = pad_batch(pixels, (1, 2, 4, 8))
    assert padded.shape == (4, 3, 2, 2)
    assert torch.equal(padded[:3], pixels)
    assert not padded[3].any()
    assert pad_batch(pixels, ()) is pixels
    assert pad_batch(pixels, (1, 3)) is pixels


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own, at import
async def test_a_compiled_model_pads_and_gives_the_same_logits() -> None:
    runner = runner_of(compile_model=True, max_batch_size=2)
    assert runner.batch_sizes == (1, 2)
    await asyncio.to_thread(runner.warm_up)
    for count in (1, 2):
        images = random_pixels(count)
        logits = np.stack([row.logits for row in await runner.run(images)])
        np.testing.assert_allclose(logits, expected_logits(images).numpy(), rtol=0, atol=1e-4)


async def test_runs_of_many_callers_take_turns_in_one_thread() -> None:
    runner, threads = runner_of(), set()
    model_of(runner).register_forward_hook(lambda *_: threads.add(threading.get_ident()))
    images = random_pixels(6)
    scores = await asyncio.gather(*(runner.run([image]) for image in images))
    assert len(threads) == 1
    logits = np.stack([rows[0].logits for rows in scores])
    np.testing.assert_allclose(logits, expected_logits(images).numpy(), rtol=0, atol=1e-4)


def test_auto_takes_what_is_there() -> None:
    runner = runner_of(device="auto", dtype="auto")
    cuda = torch.cuda.is_available()
    assert runner.device.type == ("cuda" if cuda else "cpu")
    assert runner.dtype == (torch.bfloat16 if cuda else torch.float32)


def test_a_device_that_is_not_there_stops_the_start() -> None:
    with pytest.raises(StartError, match=r"VIT_DEVICE: cuda:63 is not there; CUDA devices found: \d+"):
        runner_of(device="cuda:63")


def test_a_model_that_only_gives_nan_stops_the_start() -> None:
    runner = runner_of()
    with torch.no_grad():
        model_of(runner).get_parameter("head.bias").fill_(torch.nan)
    with pytest.raises(StartError, match="logits that are not finite"):
        runner.warm_up()
