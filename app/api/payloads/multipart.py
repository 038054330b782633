"""Read the image parts of multipart/form-data (RFC 7578) while it arrives, without writing to disk."""

import io
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header

from app.api.payloads.body import Body, Image, image_too_large
from app.errors import MalformedRequest, ServiceError
from app.http.time_slices import Steps

_OTHER_PARTS = 8
"""Maximum number of parts that are not images; they are ignored."""

_BOUNDARY_BYTES = 70
"""Maximum length of a boundary (RFC 2046, section 5.1.1)."""

_PART_HEADER_FIELDS = 8
"""Maximum number of header fields of a part; RFC 7578 has three."""

_PART_HEADER_BYTES = 4096
"""Maximum size of a part's header field, which may contain a file name."""

_DISPOSITION_PARAMETERS = 64
"""Maximum number of semicolons in a Content-Disposition; each costs a microsecond."""

_STEP_BYTES = 8 * 1024
"""Bytes parsed in one step, which takes 2 ms at the parser's slowest."""

_PADDING_BYTES = 1024
"""Maximum number of blanks after a boundary. RFC 2046 allows them, no client sends any."""


@dataclass(slots=True)
class _ImageParts:
    """Collects the image parts of a multipart body while it is parsed."""

    names: frozenset[bytes]
    max_images: int
    max_image_bytes: int
    too_many: ServiceError
    images: list[io.BytesIO] = field(default_factory=list)
    ended: bool = False
    _header: bytearray = field(default_factory=bytearray)
    _value: bytearray = field(default_factory=bytearray)
    _name: bytes | None = None
    _has_disposition: bool = False
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
        self._name, self._has_disposition = None, False

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            if self._has_disposition:
                raise MalformedRequest("A part of the multipart body has more than one Content-Disposition.")
            if self._value.count(b";") > _DISPOSITION_PARAMETERS:
                raise MalformedRequest(f"A part's Content-Disposition has more than {_DISPOSITION_PARAMETERS} parameters.")
            self._has_disposition = True
            self._name = parse_options_header(bytes(self._value))[1].get(b"name")
        self._header.clear()
        self._value.clear()

    def _end_headers(self) -> None:
        if self._name is None:
            raise MalformedRequest("A part of the multipart body has no name.")
        self._is_image = self._name in self.names
        if self._is_image:
            if len(self.images) == self.max_images:
                raise self.too_many
            self.images.append(io.BytesIO())
        else:
            self._others += 1
            if self._others > _OTHER_PARTS:
                raise MalformedRequest(f"The multipart body has more than {_OTHER_PARTS} parts that are not images.")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._is_image and self.images[-1].tell() <= self.max_image_bytes:  # one byte more refuses it
            self.images[-1].write(memoryview(data)[start:end])

    def _end(self) -> None:
        self.ended = True

    def results(self) -> list[Image]:
        sizes = [image.tell() for image in self.images]
        return [
            image_too_large(self.max_image_bytes) if size > self.max_image_bytes else image.getvalue()
            for size, image in zip(sizes, self.images, strict=True)
        ]


class _Parser:
    """python-multipart's parser, with limits for the two inputs on which it is a hundred times slower than on any other.

    Both are legal, and neither occurs in practice: data lines that begin like the boundary, and blanks after a boundary.
    """

    def __init__(self, boundary: bytes, parts: _ImageParts) -> None:
        self._parts = parts
        self._parser = MultipartParser(
            boundary, parts.callbacks(), max_header_count=_PART_HEADER_FIELDS, max_header_size=_PART_HEADER_BYTES
        )
        self._delimiter = b"\r\n--" + boundary
        self._delimiters_left = parts.max_images + 2 * _OTHER_PARTS
        self._padding = 0

    def write(self, chunk: bytes) -> Steps[None]:
        for start in range(0, len(chunk), _STEP_BYTES):
            if self._parts.ended:
                return  # the epilogue is ignored
            self._step(chunk[start : start + _STEP_BYTES])
            yield

    def _step(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise MalformedRequest("The multipart body is broken.") from error
        if self._parts.ended:
            return
        self._delimiters_left -= data.count(self._delimiter)
        if self._delimiters_left < 0:
            raise MalformedRequest("The multipart body has lines that begin like its boundary.")
        if self._parser.state == MultipartState.BOUNDARY_PADDING:
            blanks = len(data) - len(data.rstrip(b" \t"))
            self._padding = blanks + (self._padding if blanks == len(data) else 0)
            if self._padding > _PADDING_BYTES:
                raise MalformedRequest(f"The multipart body has more than {_PADDING_BYTES} blanks behind a boundary.")


async def read_multipart(
    body: Body, names: frozenset[bytes], max_bytes: int, max_images: int, max_image_bytes: int, too_many: ServiceError
) -> list[Image]:
    """Read the image parts of a multipart body, in order, and ignore other parts.

    Args:
        body: the body.
        names: names of the parts that are images.
        max_bytes: maximum size of the body.
        max_images: maximum number of images.
        max_image_bytes: maximum size of an image; a larger one gives its error instead.
        too_many: raised at the first image above the maximum.

    Raises:
        MalformedRequest: broken, truncated, nameless parts, or many that are not images; the rest of the body is not read.
        ImageTooLarge, UnsupportedImageFormat, QueueFull: as `Body.chunks`.
    """
    boundary = body.parameters.get(b"boundary")
    if not boundary:
        raise MalformedRequest("The Content-Type of the multipart body has no boundary.")
    if len(boundary) > _BOUNDARY_BYTES:
        raise MalformedRequest(f"The boundary of the multipart body is longer than {_BOUNDARY_BYTES} bytes.")
    parts = _ImageParts(names, max_images, max_image_bytes, too_many)
    parser = _Parser(boundary, parts)
    async for chunk in body.chunks(max_bytes):
        await body.slices.work(parser.write(chunk))
    if not parts.ended:
        raise MalformedRequest("The multipart body ends before its closing boundary.")
    return parts.results()
