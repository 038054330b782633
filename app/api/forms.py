"""A request's body -> the encoded images in it, in any of the forms that are taken; every size is bounded while reading."""

import asyncio
import binascii
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.errors import ImageTooLarge, InvalidParameter, MalformedRequest, UnsupportedImageFormat

_SINGLE_NAMES = frozenset({b"image", b"file", b"data"})
_BATCH_NAMES = frozenset({b"images", *_SINGLE_NAMES})

_FRAMING_BYTES = 64 * 1024
"""What part headers, JSON punctuation and other fields may take beside the image."""

_OTHER_VALUES = 64
"""Values in a JSON body that are no images and are passed over."""

_OTHER_PARTS = 8
"""Parts that are no images and are passed over."""


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """What a body may hold."""

    max_image_bytes: int
    max_request_bytes: int
    """Of a request with several images."""
    max_images: int
    """In a request with several images."""


async def read_image(request: Request, limits: BodyLimits) -> bytes:
    """The one image of `POST /predict`: multipart, raw, or base64 in JSON.

    Raises:
        MalformedRequest: a broken body, or not exactly one image in it.
        ImageTooLarge: more bytes than allowed; the rest of the body is not read.
        UnsupportedImageFormat: the body is compressed.
    """
    match _media_type(request):
        case b"multipart/form-data":
            # a second image is enough to see that there are too many
            bound = limits.max_image_bytes + _FRAMING_BYTES
            images = await _read_multipart(request, _SINGLE_NAMES, bound, limits.max_image_bytes, max_images=2)
        case b"application/json":
            content = await _read_json(request, _base64_length(limits.max_image_bytes) + _FRAMING_BYTES, max_images=1)
            images = await asyncio.to_thread(_from_base64, [content["image"]]) if "image" in content else []
        case _:
            body = b"".join([chunk async for chunk in _chunks(request, limits.max_image_bytes)])
            images = [body] if body else []
    if not images:
        raise MalformedRequest("There is no image: send it as multipart part `image`, as the raw body, or as base64 in JSON.")
    if len(images) > 1:
        raise MalformedRequest("There is more than one image; send several to /predict/batch.")
    return _not_empty(images)[0]


async def read_images(request: Request, limits: BodyLimits) -> list[bytes]:
    """The images of `POST /predict/batch`, in the order sent: multipart parts `images`, or base64 in JSON.

    Raises:
        MalformedRequest: a broken body, or no image in it.
        ImageTooLarge: more bytes than allowed in all; the rest of the body is not read.
        InvalidParameter: more images than allowed.
        UnsupportedImageFormat: the body is compressed.
    """
    match _media_type(request):
        case b"multipart/form-data":
            images = await _read_multipart(request, _BATCH_NAMES, limits.max_request_bytes, None, limits.max_images + 1)
        case b"application/json":
            encoded = (await _read_json(request, limits.max_request_bytes, limits.max_images)).get("images", [])
            if not isinstance(encoded, list):
                raise MalformedRequest("`images` must be a list of base64 strings.")
            images = await asyncio.to_thread(_from_base64, encoded[: limits.max_images + 1])
        case _:
            raise MalformedRequest("Send the images as multipart parts `images`, or as JSON with a list `images`.")
    if not images:
        raise MalformedRequest("There are no images: send them as multipart parts `images`, or as base64 in JSON.")
    if len(images) > limits.max_images:
        raise InvalidParameter(f"There are more than {limits.max_images} images in one request; send fewer at once.")
    return images


@dataclass(slots=True)
class _Parts:
    """Collects the image parts of a multipart body while it is parsed, and nothing else."""

    names: frozenset[bytes]
    max_images: int
    max_image_bytes: int | None
    images: list[bytearray] = field(default_factory=list)
    ended: bool = False
    _header: bytearray = field(default_factory=bytearray)
    _value: bytearray = field(default_factory=bytearray)
    _name: bytes | None = None
    _is_image: bool = False
    _others: int = 0

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._data,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._name = None

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._name = parse_options_header(bytes(self._value))[1].get(b"name")
        self._header.clear()
        self._value.clear()

    def _end_headers(self) -> None:
        if self._name is None:
            raise MalformedRequest("A part of the multipart body has no name.")
        self._is_image = self._name in self.names
        if self._is_image and len(self.images) < self.max_images:
            self.images.append(bytearray())
        elif not self._is_image:
            self._others += 1
            if self._others > _OTHER_PARTS:
                raise MalformedRequest(f"The multipart body has more than {_OTHER_PARTS} parts that are no images.")
        else:
            self._is_image = False  # one too many already: enough to refuse, no need to keep it

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._is_image:
            self.images[-1] += memoryview(data)[start:end]
            if self.max_image_bytes is not None and len(self.images[-1]) > self.max_image_bytes:
                raise _too_large(self.max_image_bytes)

    def _end(self) -> None:
        self.ended = True


async def _read_multipart(
    request: Request, names: frozenset[bytes], max_bytes: int, max_image_bytes: int | None, max_images: int
) -> list[bytes]:
    boundary = parse_options_header(request.headers["content-type"])[1].get(b"boundary")
    if not boundary:
        raise MalformedRequest("The Content-Type of the multipart body has no boundary.")
    parts = _Parts(names, max_images, max_image_bytes)
    try:
        parser = MultipartParser(boundary, parts.callbacks())
        async for chunk in _chunks(request, max_bytes):
            parser.write(chunk)
    except FormParserError as error:
        raise MalformedRequest("The multipart body is broken.") from error
    if not parts.ended:
        raise MalformedRequest("The multipart body ends before its closing boundary.")
    return [bytes(image) for image in parts.images]


async def _read_json(request: Request, max_bytes: int, max_images: int) -> dict[str, Any]:
    body = b"".join([chunk async for chunk in _chunks(request, max_bytes)])
    # millions of tiny values would stop the event loop for seconds; base64 has none of these characters
    if sum(body.count(character) for character in (b"[", b"{", b",")) > _OTHER_VALUES + 8 * max_images:
        raise MalformedRequest("The JSON body holds far more than images.")
    try:
        content = await asyncio.to_thread(json.loads, body)
    except (ValueError, RecursionError) as error:
        raise MalformedRequest("The body is not valid JSON.") from error
    if not isinstance(content, dict):
        raise MalformedRequest("The JSON body must be an object.")
    return content


async def _chunks(request: Request, max_bytes: int) -> AsyncIterator[bytes]:
    """The body piece by piece; stops at the first piece that is too much, or before the first if the header says so."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedImageFormat("Compressed request bodies are not taken; send it without Content-Encoding.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_bytes:
            raise _too_large(max_bytes)
        yield chunk


def _media_type(request: Request) -> bytes:
    media_type: bytes = parse_options_header(request.headers.get("content-type", ""))[0]
    return media_type.lower()


def _from_base64(texts: list[Any]) -> list[bytes]:
    return [_one_from_base64(text) for text in texts]


def _one_from_base64(text: Any) -> bytes:
    if not isinstance(text, str):
        raise MalformedRequest("An image in JSON must be a base64 string.")
    if text.startswith(("http://", "https://")):
        raise MalformedRequest("A URL is never fetched; send the image itself, in base64.")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return binascii.a2b_base64(text.encode("ascii").translate(None, delete=b" \t\r\n"), strict_mode=True)
    except ValueError as error:  # binascii.Error is one, and so is text that is not ASCII
        raise MalformedRequest("An image in JSON is not valid base64.") from error


def _not_empty(images: list[bytes]) -> list[bytes]:
    if not all(images):
        raise MalformedRequest("The image is empty.")
    return images


def _base64_length(size: int) -> int:
    """Of an encoded image, with room for line breaks and escaped slashes."""
    return (size + 2) // 3 * 4 * 17 // 16


def _too_large(max_bytes: int) -> ImageTooLarge:
    return ImageTooLarge(f"The body is larger than the {max_bytes} bytes that are allowed.")
