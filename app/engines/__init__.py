"""Engines: ways to compute logits from pixels; all are the same small interface to the runner.

`choice.py` takes one by the settings:

    openvino.py       OpenVINO on a CPU: what a CPU gets by default, because it is the fastest there
    int8.py           the same with whole numbers in its products of matrices: faster still, and less exact
    torch_cpu.py      eager torch on a CPU: can do all that the model can
    torch_staged.py   torch on a GPU: compiled, captured as CUDA graphs, fed from pinned memory

`pixel_model.py` is what all of them start from, and `kept.py` keeps on disk what was converted.
"""

from collections.abc import Sequence
from typing import Protocol

from app.pixels import Logits, Pixels


class Engine(Protocol):
    """What the runner asks of an engine, which is ready to run once it is made."""

    @property
    def name(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def max_batch_size(self) -> int:
        """Images in one run; more would be no faster, or not fit."""
        ...

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Sizes that batches are padded to; empty where every size runs as it is."""
        ...

    @property
    def max_concurrent_batches(self) -> int:
        """Runs worth having under way at once."""
        ...

    @property
    def independent_streams(self) -> bool:
        """Whether runs that are under way at once have a core each; on a GPU they only overlap copies."""
        ...

    def run(self, images: Sequence[Pixels], *, use_all_cores: bool) -> Logits:
        """Compute logits, in the calling thread; called by up to `max_concurrent_batches` threads at once. Blocks.

        Args:
            images: at least one, at most `max_batch_size`.
            use_all_cores: nothing else is under way, so that this run may have all cores.

        Raises:
            OutOfMemory: the batch does not fit on the device.
            EngineDead: the device cannot be used any more.
        """
        ...
