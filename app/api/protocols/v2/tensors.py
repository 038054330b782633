"""Tensors of the protocol as images: BYTES are encoded images, UINT8 and FP32 the pixels of the model's input."""

import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import InvalidParameter, MalformedRequest
from app.http.time_slices import Steps
from app.pixels import Pixels

_DTYPES: dict[str, np.dtype[Any]] = {"UINT8": np.dtype(np.uint8), "FP32": np.dtype("<f4")}
PIXEL_TYPES = tuple(_DTYPES)

_LENGTH = struct.Struct("<I")


def read_elements(data: memoryview, count: int) -> Steps[list[bytes]]:
    """Read the elements of a binary BYTES tensor: each has its length in front, as a little-endian uint32.

    Raises:
        MalformedRequest: there are fewer or more, or one is longer than the data.
    """
    elements, position = [], 0
    for _ in range(count):
        if position + _LENGTH.size > len(data):
            raise MalformedRequest(f"The tensor has fewer elements than the {count} of its shape.")
        (length,) = _LENGTH.unpack_from(data, position)
        position += _LENGTH.size
        if position + length > len(data):
            raise MalformedRequest("An element of the tensor is longer than the data.")
        elements.append(bytes(data[position : position + length]))
        position += length
        yield
    if position != len(data):
        raise MalformedRequest(f"The tensor has more data than the {count} elements of its shape.")
    return elements


def write_elements(elements: Iterable[bytes]) -> bytes:
    """Write the elements of a binary BYTES tensor."""
    return b"".join(part for element in elements for part in (_LENGTH.pack(len(element)), element))


def read_pixels(data: memoryview, datatype: str, shape: Sequence[int]) -> NDArray[Any]:
    """Return a binary tensor of pixels, (N, C, H, W), without copying it.

    Raises:
        MalformedRequest: its size is not that of its shape.
    """
    dtype = _DTYPES[datatype]
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise MalformedRequest(f"The tensor has {len(data)} bytes, and a shape for {math.prod(shape) * dtype.itemsize}.")
    tensor: NDArray[Any] = np.frombuffer(data, dtype).reshape(shape)
    return tensor


def whole_pixels(tensor: NDArray[Any]) -> Steps[list[Pixels]]:
    """Return the images of a tensor (N, C, H, W), each (C, H, W) uint8. Numbers must be whole, from 0 to 255.

    Raises:
        InvalidParameter: there is another number, as in a tensor that is normalised already.
    """
    if tensor.dtype == np.uint8:
        return [np.ascontiguousarray(image) for image in tensor]
    images = []
    for image in tensor:
        planes = []
        for plane in image:
            with np.errstate(invalid="ignore"):
                whole = plane.astype(np.uint8)
                equal = bool((whole == plane).all())
            if not equal:
                raise InvalidParameter(
                    "Pixels must be whole numbers from 0 to 255, as they come out of a decoder; the service normalises them."
                )
            planes.append(whole)
            yield
        images.append(np.stack(planes))
    return images
