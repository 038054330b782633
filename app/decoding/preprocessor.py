"""Preprocessor: decoding for one purpose, as data that is sent to worker processes with each image."""

import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from app.pixels import Pixels

Decode = Callable[[bytes], Pixels]
"""Function that decodes one image. Blocks; raises a `ServiceError` for an image that it refuses."""


@dataclass(frozen=True)
class Preprocessor:
    """Decoding for one purpose: to the input of a model, to a photograph to show, or to a size alone."""

    decode: Decode
    """Can be pickled, if workers are processes: it is sent to them."""
    shape: tuple[int, int, int]
    """(C, H, W) of the pixels."""

    def run(self, image_bytes: bytes) -> Pixels:
        """Decode one image, and check the shape of its pixels."""
        pixels = self.decode(image_bytes)
        if pixels.shape != self.shape:
            raise ValueError("the pixels do not have the shape of the model's input")
        return pixels

    @property
    def output_bytes(self) -> int:
        """Size of the pixels."""
        return math.prod(self.shape)

    @cached_property
    def pickled(self) -> bytes:
        """Description for a worker process, which unpickles what the service sends; never the other way round."""
        return pickle.dumps(Preprocessor(self.decode, self.shape))


@dataclass(frozen=True, slots=True)
class Preprocessors:
    """Preprocessors of one model."""

    input: Preprocessor
    """The model's input."""
    photograph: Preprocessor
    """A photograph to show; see `photograph.py`."""
    size: Preprocessor
    """The size of an image alone."""
