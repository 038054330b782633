"""Job: the work of the worker processes and its limits; made by the service, read by the zygote and its workers."""

import mmap
from dataclasses import dataclass

import numpy as np

from app.decoding import Decode

MAX_JOB_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Job:
    """The work of worker processes, and its limits."""

    decode: Decode
    shape: tuple[int, int, int]
    """(C, H, W) of the pixels."""
    max_image_bytes: int
    memory_bytes: int
    timeout_s: float
    probe: bytes
    """An encoded image that every new worker decodes before a client's."""
    threads: bool = False
    """Permission to start threads and, since the kernel counts them together, processes."""

    @property
    def pixels_at(self) -> int:
        """Offset of the pixels in the shared memory, behind the encoded image."""
        return -(-self.max_image_bytes // mmap.PAGESIZE) * mmap.PAGESIZE

    @property
    def shared_bytes(self) -> int:
        """Size of the shared memory."""
        return self.pixels_at + int(np.prod(self.shape))
