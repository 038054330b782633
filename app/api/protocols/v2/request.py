"""Read a request of the protocol: its JSON, binary tensors behind that, or one input raw."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.api.dependencies import Admitted
from app.api.payloads.base64_image import decode_images
from app.api.payloads.body import Body, Image, empty_image, image_too_large
from app.api.payloads.images import max_values
from app.api.payloads.json_object import not_an_object
from app.api.protocols import json_fields as fields
from app.api.protocols.v2.json_numbers import NumberReader
from app.api.protocols.v2.tensors import PIXEL_TYPES, read_elements, read_pixels, whole_pixels
from app.errors import InvalidParameter, MalformedRequest
from app.http.numbers import whole_number
from app.pixels import Pixels

_INPUTS = ("image", "pixels")
_MAX_OUTPUTS = 8
_MAX_DIMENSIONS = 4
_MAX_SIZE = 2**31

_OTHER_NUMBERS = 100
"""Maximum count of numbers, and of arrays of them, beside a tensor's: shapes and parameters."""

_CHUNK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Output:
    """An output that the client asks for."""

    name: str
    binary: bool
    classes: int = 0
    """Number of best classes to give instead of the tensor (the classification extension); 0 for the tensor."""


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request of the protocol; it has either images or pixels."""

    id: str
    images: list[Image]
    pixels: list[Pixels]
    outputs: tuple[Output, ...]
    """Those asked for; empty for all."""
    binary_output: bool
    """True if outputs that are not named are binary."""
    timeout_us: int
    """Microseconds that the request may wait; 0 for as long as the service allows."""


async def read_request(admitted: Admitted, json_bytes: int | None, *, raw_pixels: bool) -> InferRequest:
    """Read a request while it arrives.

    Args:
        admitted: the request.
        json_bytes: length of the JSON in front of binary tensors; 0 if the body is the one input, None if all is JSON.
        raw_pixels: True if a raw body is pixels, not an encoded image.

    Raises:
        MalformedRequest, InvalidParameter: it contradicts itself or the protocol, or asks for what is not offered.
        ImageTooLarge, QueueFull: see `Body.chunks`.
        DeadlineExceeded, Draining: see `Service.uploading`.
    """
    limits, size = admitted.state.body_limits, admitted.classifier.model.image_size
    rows = 3 * size * limits.max_images  # of nested tensors, each an array
    reader = NumberReader(max_values(limits.max_images), rows * size + _OTHER_NUMBERS, rows + _OTHER_NUMBERS)
    async with admitted.state.service.uploading(admitted.deadline):
        if json_bytes is None:
            async for chunk in admitted.body.chunks(limits.max_request_bytes):
                await admitted.body.slices.work(reader.feed(chunk))
            data = b""
        else:
            data = await admitted.body.read(limits.max_request_bytes)
    if json_bytes == 0:
        return await _raw(admitted, data, raw_pixels)
    if json_bytes is not None:
        if json_bytes > len(data):
            raise MalformedRequest("Inference-Header-Content-Length is more than the body has.")
        for start in range(0, json_bytes, _CHUNK_BYTES):
            await admitted.body.slices.work(reader.feed(data[start : min(start + _CHUNK_BYTES, json_bytes)]))
    content = reader.finish()
    if not isinstance(content, dict):
        raise not_an_object()
    return await _Reader(admitted, memoryview(data)[json_bytes or 0 :]).read(content)


async def _raw(admitted: Admitted, data: bytes, raw_pixels: bool) -> InferRequest:
    if not data:
        raise MalformedRequest("The body is empty.")
    if not raw_pixels:
        images: list[Image] = [*_bounded([data], admitted)]
        return InferRequest("", images, [], (), binary_output=True, timeout_us=0)
    shape = (1, *_input_shape(admitted))
    pixels = await admitted.body.slices.work(whole_pixels(read_pixels(memoryview(data), "UINT8", shape)))
    return InferRequest("", [], pixels, (), binary_output=True, timeout_us=0)


class _Reader:
    """Reads the one input of a request, and what is asked for."""

    def __init__(self, admitted: Admitted, binary: memoryview) -> None:
        self._admitted = admitted
        self._body: Body = admitted.body
        self._binary = binary

    async def read(self, content: dict[str, Any]) -> InferRequest:
        parameters = fields.as_object(content.get("parameters"), "parameters")
        _check_parameters(parameters)
        binary_output = _flag(parameters, "binary_data_output")
        inputs = fields.as_list(content.get("inputs"), "inputs")
        if len(inputs) != 1:
            raise InvalidParameter(f"There must be one input, {' or '.join(_INPUTS)}, and there are {len(inputs)}.")
        tensor = fields.as_object(inputs[0], "inputs")
        name = fields.as_text(tensor.get("name"), "name")
        if name not in _INPUTS:
            raise InvalidParameter(f"There is no input {name!r}; inputs are {', '.join(_INPUTS)}.")
        images, pixels = await self._tensor(name, tensor)
        return InferRequest(
            "" if content.get("id") is None else fields.as_text(content["id"], "id"),
            images,
            pixels,
            _outputs(content.get("outputs"), binary_output),
            binary_output=binary_output,
            timeout_us=fields.as_count(parameters.get("timeout", 0), "timeout", least=0),
        )

    async def _tensor(self, name: str, tensor: dict[str, Any]) -> tuple[list[Image], list[Pixels]]:
        parameters = fields.as_object(tensor.get("parameters"), "parameters")
        _check_shared_memory(parameters)
        datatype, shape = fields.as_text(tensor.get("datatype"), "datatype"), _shape(tensor.get("shape"))
        binary = self._binary_data(name, datatype, parameters)
        if (binary is None) == ("data" not in tensor):
            raise MalformedRequest(f"Input {name!r} must have `data` or binary data, and not both.")
        if datatype == "BYTES":
            return await self._images(shape, tensor.get("data"), binary, "binary_data_size" in parameters), []
        if datatype not in PIXEL_TYPES:
            known = ", ".join(("BYTES", *PIXEL_TYPES))
            raise InvalidParameter(f"Input {name!r} has the datatype {datatype!r}; it may be {known}.")
        expected = _input_shape(self._admitted)
        if len(shape) != _MAX_DIMENSIONS or tuple(shape[1:]) != expected:
            raise InvalidParameter(f"Pixels must have the shape {[-1, *expected]}, not {list(shape)}.")
        _check_count(self._admitted, shape[0])
        numbers = _stacked(tensor["data"], shape) if binary is None else read_pixels(binary, datatype, shape)
        return [], await self._body.slices.work(whole_pixels(numbers))

    def _binary_data(self, name: str, datatype: str, parameters: dict[str, Any]) -> memoryview | None:
        """Return the input's binary data; without a size an encoded image may be all of it. None if its data is in the JSON."""
        if "binary_data_size" in parameters:
            size = fields.as_count(parameters["binary_data_size"], "binary_data_size", least=0)
            if size != len(self._binary):
                raise MalformedRequest(f"Input {name!r} has {size} binary bytes, and {len(self._binary)} follow the JSON.")
            return self._binary
        if not self._binary:
            return None
        if datatype != "BYTES":
            raise MalformedRequest(f"Input {name!r} has no binary_data_size, and binary data follow the JSON.")
        return self._binary

    async def _images(self, shape: Sequence[int], data: Any, binary: memoryview | None, sized: bool) -> list[Image]:
        count = math.prod(shape)
        if len(shape) > 2 or (len(shape) == 2 and shape[1] != 1):
            raise InvalidParameter(f"Encoded images must have the shape [N] or [N, 1], not {list(shape)}.")
        _check_count(self._admitted, count)
        if binary is None:
            encoded = _flat(data)
            if len(encoded) != count:
                raise MalformedRequest(f"The tensor has {len(encoded)} elements, and a shape for {count}.")
            limit = self._admitted.state.body_limits.max_image_bytes
            images = await self._body.slices.work(decode_images(encoded, limit))
        elif sized or count != 1:
            images = [*await self._body.slices.work(read_elements(binary, count))]
        else:
            images = [bytes(binary)]
        return _bounded(images, self._admitted)


def _outputs(content: Any, binary_output: bool) -> tuple[Output, ...]:
    """Return the outputs asked for, each at most once."""
    listed = [] if content is None else fields.as_list(content, "outputs")
    if len(listed) > _MAX_OUTPUTS:
        raise InvalidParameter("There are more outputs asked for than the model has.")
    outputs = tuple(_output(fields.as_object(output, "outputs"), binary_output) for output in listed)
    if len({output.name for output in outputs}) < len(outputs):
        raise InvalidParameter("An output is asked for twice.")
    return outputs


def _output(output: dict[str, Any], binary_output: bool) -> Output:
    """Return an output that is asked for; `binary_output` is what it is if it does not say."""
    parameters = fields.as_object(output.get("parameters"), "parameters")
    _check_shared_memory(parameters)
    binary = _flag(parameters, "binary_data", binary_output)
    classes = parameters.get("classification")
    count = 0 if classes is None else fields.as_count(classes, "classification")
    return Output(fields.as_text(output.get("name"), "name"), binary, count)


def _check_parameters(parameters: dict[str, Any]) -> None:
    fields.as_count(parameters.get("priority", 0), "priority", least=0)  # of one level, as the model's configuration says
    sequence = parameters.get("sequence_id", 0)
    if not (isinstance(sequence, int) and sequence == 0):
        raise InvalidParameter("Sequences are not supported: every request is answered by itself.")
    for key in parameters:
        if key.startswith("triton_"):
            raise InvalidParameter(f"Parameters that begin with triton_, such as {key!r}, are reserved.")


def _check_shared_memory(parameters: dict[str, Any]) -> None:
    if any(key.startswith("shared_memory_") for key in parameters):
        raise InvalidParameter("Shared memory is not supported: send tensors in the body.")


def _flag(parameters: dict[str, Any], name: str, default: bool = False) -> bool:
    """Return a parameter that must be true or false."""
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidParameter(f"`{name}` must be true or false.")
    return value


def _shape(sizes: Any) -> tuple[int, ...]:
    """Return the sizes of a tensor, which must be whole and not negative."""
    if not isinstance(sizes, np.ndarray) or len(sizes) > _MAX_DIMENSIONS:
        raise MalformedRequest(f"`shape` must be a list of 1 to {_MAX_DIMENSIONS} whole numbers.")
    if not all(size.is_integer() and 0 <= size < _MAX_SIZE for size in sizes.tolist()):
        raise MalformedRequest("`shape` must be a list of whole numbers that are not negative.")
    return tuple(map(int, sizes.tolist()))


def _check_count(admitted: Admitted, count: int) -> None:
    most = admitted.state.body_limits.max_images
    if not 1 <= count <= most:
        raise InvalidParameter(f"There must be 1 to {most} images in one request, and there are {count}.")


def _bounded(images: Sequence[Image], admitted: Admitted) -> list[Image]:
    """Replace images that are empty or too large by their errors."""
    limit = admitted.state.body_limits.max_image_bytes

    def bounded(image: Image) -> Image:
        if isinstance(image, bytes) and not image:
            return empty_image()
        return image_too_large(limit) if isinstance(image, bytes) and len(image) > limit else image

    return [bounded(image) for image in images]


def _flat(data: Any) -> list[Any]:
    """Return the elements of a list that may be nested, such as `[["..."], ["..."]]`."""
    elements = []
    for element in fields.as_list(data, "data"):
        elements += element if isinstance(element, list) else [element]
    return elements


def _stacked(data: Any, shape: Sequence[int]) -> NDArray[Any]:
    """Return numbers in JSON, flat or nested as the shape is, in that shape."""
    rows = [data]
    for size in shape[:-1]:
        if all(isinstance(row, np.ndarray) for row in rows):
            break
        if not all(isinstance(row, list) and len(row) == size for row in rows):
            raise _not_of_shape(shape)
        rows = [inner for row in rows for inner in row]
    if not all(isinstance(row, np.ndarray) for row in rows) or (len(rows) > 1 and any(len(row) != shape[-1] for row in rows)):
        raise _not_of_shape(shape)
    numbers = np.concatenate(rows)
    if numbers.size != math.prod(shape):
        raise _not_of_shape(shape)
    return numbers.reshape(shape)


def _not_of_shape(shape: Sequence[int]) -> MalformedRequest:
    return MalformedRequest(f"`data` must be the numbers of a tensor of the shape {list(shape)}, flat or nested.")


def _input_shape(admitted: Admitted) -> tuple[int, int, int]:
    size = admitted.classifier.model.image_size
    return 3, size, size


def header_length(sent: list[str]) -> int | None:
    """Return the number in `Inference-Header-Content-Length`, or None if there is no such header.

    Raises:
        MalformedRequest: it is not a whole number, or there are two.
    """
    if not sent:
        return None
    length = whole_number(sent[0])
    if length is None or len(sent) > 1:
        raise MalformedRequest("Inference-Header-Content-Length must be one whole number.")
    return length
