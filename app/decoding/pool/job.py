"""Job: the work of the worker processes and its limits; made by the service, read by the zygote and its workers."""

import mmap
from dataclasses import dataclass

import numpy as np

from app.decoding import Preprocessor
from app.pixels import Pixels

MAX_JOB_BYTES = 65_536

MAX_OUTPUT_BYTES = 3 * 4096 * 4096
"""Largest output of a preprocessor, as `VIT_IMAGE_SIZE` has it; memory that no image needs is never touched."""


@dataclass(frozen=True, slots=True)
class Job:
    """The work of worker processes, and its limits."""

    preprocessor: Preprocessor
    """The pool's own, for the probe and for images that come without one."""
    max_image_bytes: int
    memory_bytes: int
    timeout_s: float
    probe: bytes
    """An encoded image that every new worker decodes before a client's."""
    threads: bool = False
    """Permission to start threads and, since the kernel counts them together, processes."""

    @property
    def shared_bytes(self) -> int:
        """Size of the shared memory: the largest image and, behind it, the largest output."""
        return self._pixels_at + MAX_OUTPUT_BYTES

    def pixels_in(self, memory: mmap.mmap, preprocessor: Preprocessor) -> Pixels:
        """Return the pixels in the shared memory, as a view."""
        return np.frombuffer(memory, np.uint8, preprocessor.output_bytes, self._pixels_at).reshape(preprocessor.shape)

    @property
    def _pixels_at(self) -> int:
        return -(-self.max_image_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
