"""Job: the work of the worker processes and its limits; made by the service, read by the zygote and its workers."""

import mmap
from dataclasses import dataclass

import numpy as np

from app.decoding import Decode
from app.pixels import Pixels

MAX_JOB_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Preprocessor:
    """Decoding for one model."""

    decode: Decode
    shape: tuple[int, int, int]
    """(C, H, W) of the pixels."""

    def run(self, image_bytes: bytes) -> Pixels:
        """Decode one image, and check the shape of its pixels."""
        pixels = self.decode(image_bytes)
        if pixels.shape != self.shape:
            raise ValueError("the pixels do not have the shape of the model's input")
        return pixels


@dataclass(frozen=True, slots=True)
class Job:
    """The work of worker processes, and its limits."""

    preprocessors: tuple[Preprocessor, ...]
    """One for each model that shares the pool; a request names one by its index."""
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
        return self._pixels_at + max(int(np.prod(preprocessor.shape)) for preprocessor in self.preprocessors)

    def pixels_in(self, memory: mmap.mmap, preprocessing: int) -> Pixels:
        """Return the pixels in the shared memory, as a view."""
        shape = self.preprocessors[preprocessing].shape
        return np.frombuffer(memory, np.uint8, int(np.prod(shape)), self._pixels_at).reshape(shape)

    @property
    def _pixels_at(self) -> int:
        return -(-self.max_image_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
