"""Eager torch on a CPU."""

from collections.abc import Sequence

import numpy as np
import torch

from app.engines.pixel_model import EngineModel, parse_dtype
from app.pixels import Logits, Pixels


class TorchCpuEngine:
    """The unconverted model: one core per batch, or all cores for a batch that is alone in flight.

    Several single-threaded batches are faster together than one multi-threaded batch, whose threads synchronize after every
    operation and stall whenever another thread of the process preempts one of them.

    Args:
        model: on the CPU, in float32.
        dtype: `float32`, `bfloat16` or `float16`.
        max_batch_size: maximum images in a batch.
        threads: number of cores.
    """

    name = "torch"
    device = "cpu"
    batch_sizes = ()
    independent_streams = True

    def __init__(self, model: EngineModel, *, dtype: str, max_batch_size: int, threads: int) -> None:
        self.dtype = dtype
        self.max_batch_size = max_batch_size
        self.max_concurrent_batches = threads
        self._model = model.to(parse_dtype(dtype))

    def run(self, images: Sequence[Pixels], *, use_all_cores: bool) -> Logits:
        torch.set_num_threads(self.max_concurrent_batches if use_all_cores else 1)  # applies to the calling thread
        with torch.inference_mode():
            logits: Logits = self._model(torch.from_numpy(np.stack(images))).numpy()
        return logits
