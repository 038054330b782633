"""ModelRunner: the device and its one thread. The only file of the service that runs the model."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.errors import EngineDead, OutOfMemory, StartError
from app.images import Pixels
from model.checkpoint import Checkpoint

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Scores:
    """What the model says of one image: logits and their softmax, each (K,) float32, in class order."""

    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32]


class ModelRunner:
    """Runs batches of uint8 pixels, one after another, in a thread of its own.

    Takes the checkpoint's model over: normalisation is absorbed into its patch embedding.

    Args:
        checkpoint: the model, on the CPU in float32.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        compile_model: compile each batch size in `warm_up`; batches are then padded to these sizes.
        max_batch_size: images in the largest batch.
        threads: of one run on a CPU.

    Raises:
        StartError: the device is not there.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, device: str, dtype: str, compile_model: bool, max_batch_size: int, threads: int
    ) -> None:
        self.device = _device(device)
        self.dtype = _dtype(dtype, self.device)
        self.batch_sizes = padded_sizes(max_batch_size) if compile_model else ()
        """Sizes that batches are padded to; empty where every size runs as it is."""
        self._max_batch_size = max_batch_size
        self._threads = threads
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="device")
        preprocessing = checkpoint.preprocessing
        self._image_shape = (3, checkpoint.model.config.image_size, checkpoint.model.config.image_size)
        model = checkpoint.model
        model.patch_embed.absorb_normalisation(preprocessing.scale, preprocessing.mean, preprocessing.std)
        model = model.to(self.device, self.dtype)
        self._model = torch.compile(model, dynamic=False) if compile_model else model

    def warm_up(self) -> None:
        """Run every batch size once, the largest first, so that the first caller waits for nothing. Blocks.

        Raises:
            StartError: the model cannot be compiled here, the largest batch does not fit, or what comes out is not finite.
        """
        for size in sorted({1, self._max_batch_size, *self.batch_sizes}, reverse=True):
            blank = np.zeros(self._image_shape, np.uint8)
            try:
                scores = self._thread.submit(self._run, [blank] * size).result()
            except OutOfMemory as error:
                raise StartError(f"VIT_MAX_BATCH_SIZE: {size} images do not fit into the memory of {self.device}") from error
            except RuntimeError as error:
                if not self.batch_sizes:
                    raise
                reason = str(error).partition("\n")[0]
                raise StartError(f"VIT_COMPILE: the model cannot be compiled here, start without it: {reason}") from error
            if not np.isfinite(scores[0].logits).all():
                raise StartError(f"VIT_MODEL: the model gives logits that are not finite, in {self.dtype} on {self.device}")

    async def run(self, images: Sequence[Pixels]) -> Sequence[Scores]:
        """Classify a batch: pixels (3, H, W) uint8 each -> scores in the same order.

        Raises:
            OutOfMemory: the batch does not fit on the device.
            EngineDead: the device cannot be used any more.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, images)

    def close(self) -> None:
        """Let the thread end after what it is running."""
        self._thread.shutdown(wait=False)

    def _run(self, images: Sequence[Pixels]) -> list[Scores]:
        torch.set_num_threads(self._threads)  # a setting of the calling thread
        try:
            with torch.inference_mode():
                logits = self._forward(torch.from_numpy(np.stack(images)))
                probabilities = torch.softmax(logits, dim=-1)
                logits, probabilities = logits.cpu(), probabilities.cpu()
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise OutOfMemory(str(error)) from error
        except torch.AcceleratorError as error:  # sticky: every later call on this context fails too
            raise EngineDead(str(error)) from error
        return [Scores(*row) for row in zip(logits.numpy(), probabilities.numpy(), strict=True)]

    def _forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 on the CPU -> logits (B, K) float32 on the device."""
        batch = pixels.shape[0]
        pixels = pad_batch(pixels, self.batch_sizes).to(self.device)
        logits: Tensor = self._model(pixels.to(self.dtype))
        return logits[:batch].float()


def padded_sizes(max_batch_size: int) -> tuple[int, ...]:
    """The short list of batch sizes that are compiled: 1, 2, 4, 8, ... and the largest."""
    powers = [1 << exponent for exponent in range(max_batch_size.bit_length())]
    return tuple(sorted({*powers, max_batch_size}))


def pad_batch(pixels: Tensor, sizes: Sequence[int]) -> Tensor:
    """Fill the batch up with black images to the next of `sizes`: (B, C, H, W) -> (S, C, H, W), S >= B."""
    batch = pixels.shape[0]
    size = next((size for size in sizes if size >= batch), batch)
    return pixels if size == batch else torch.cat((pixels, pixels.new_zeros(size - batch, *pixels.shape[1:])))


def _device(name: str) -> torch.device:
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise StartError(f"VIT_DEVICE: {name} is not there; CUDA devices found: {torch.cuda.device_count()}")
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return _DTYPES[name]
