"""Inference engines: uint8 pixels to logits and features, all behind one small interface.

`select.py` picks one by the settings:

    openvino.py         OpenVINO on a CPU, the default there because it is the fastest; float32 or bfloat16; needs no torch
    conversion.py       torch model -> OpenVINO, with what torch computes for two images
    int8.py             dynamic int8 quantization for OpenVINO: faster still, less exact
    torch_cpu.py        eager torch on a CPU, for everything the model supports
    torch_cuda.py       torch on a GPU: compiled, captured as CUDA graphs, fed from pinned memory
    cuda_modules.py     modules that are faster there than those of the model

`pixel_model.py` is the module that all of them run; `kept_model.py` and `artifact_cache.py` keep converted models on disk;
`hardware.py` tells what there is to compute with.
"""

import sys
from collections.abc import Sequence
from typing import Protocol

from app.pixels import Logits, Pixels

# openvino's packages report usage statistics; with this module blocked, they skip it
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # makes the import fail


class Engine(Protocol):
    """An inference engine, ready for its first batch once constructed."""

    @property
    def name(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def max_batch_size(self) -> int:
        """Maximum images in a batch; more would be no faster, or not fit into memory."""
        ...

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Sizes that batches are padded to; empty if every size runs unpadded."""
        ...

    @property
    def max_concurrent_batches(self) -> int:
        """Batches worth having in flight at once."""
        ...

    @property
    def independent_streams(self) -> bool:
        """True if each batch in flight has its own core; on a GPU, concurrent batches only overlap copies."""
        ...

    def run(self, images: Sequence[Pixels], *, use_all_cores: bool) -> Logits:
        """Compute logits, and features behind them, in the calling thread. Blocks.

        Up to `max_concurrent_batches` threads may call it at once.

        Args:
            images: 1 to `max_batch_size` images.
            use_all_cores: no other batch is in flight, so this one may take every core.

        Raises:
            OutOfMemory: the batch does not fit on the device.
            EngineDead: this process can no longer use the device.
        """
        ...
