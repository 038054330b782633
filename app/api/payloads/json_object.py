"""A JSON object (RFC 8259) whose strings may be large: they are taken out while the body arrives.

`json.loads` holds the interpreter for as long as it takes. So it is given only what is left of the body, with a number in the
place of each string: `{"image": "/9j/4AAQ..."}` is read as `{"0": "1"}`. A string's escapes are undone when it is wanted.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from app.api.payloads.body import Body
from app.errors import MalformedRequest
from app.http.turns import Steps

_STEP_BYTES = 32 * 1024
"""Read at once; takes a millisecond if it is full of escapes."""

_BYTES_PER_VALUE = 1024
"""That a value may take beside its strings: for brackets, digits, and blanks."""

_MAX_KEY_BYTES = 1024

_LONGEST_ESCAPE = len(rb"\u0041")

_CHARACTERS = re.compile(rb'[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+')
"""As much of a string as is valid (RFC 8259, 7), in UTF-8 that was checked before. No escape is cut."""

_QUOTE, _BACKSLASH = b'"\\'


class JsonString:
    """A valid string, as it was written, with its escapes; in blocks, so that no step is about all of it."""

    def __init__(self) -> None:
        self._blocks = [bytearray()]

    def append(self, written: bytes) -> None:
        if len(self._blocks[-1]) >= _STEP_BYTES:
            self._blocks.append(bytearray())
        self._blocks[-1] += written

    def blocks(self) -> Iterator[bytes]:
        """Give the string in UTF-8, without its escapes; all blocks but the last were 32 KB or more with them."""
        for block in self._blocks:
            yield _said(block).encode("utf-8", "surrogatepass") if b"\\" in block else bytes(block)

    def key(self) -> str:
        """The whole string, which has to be short.

        Raises:
            MalformedRequest: it is not.
        """
        if len(self._blocks[0]) > _MAX_KEY_BYTES:
            raise MalformedRequest(f"A key in the JSON body is longer than {_MAX_KEY_BYTES} bytes.")
        return _said(self._blocks[0])


def _said(written: bytearray) -> str:
    said: str = json.loads(f'"{written.decode()}"')
    return said


async def read_json(body: Body, max_bytes: int, max_values: int) -> dict[str, Any]:
    """The object that a body is. In it and in lists in it, strings are `JsonString`, and numbers None: nobody wants them.

    Args:
        body: is read, as far as it is allowed.
        max_bytes: of the whole body.
        max_values: in the object, at any depth.

    Raises:
        MalformedRequest: no valid JSON, no object, a key twice in one object, or far more values than images.
        ImageTooLarge, UnsupportedImageFormat, QueueFull: as `Body.chunks`.
    """
    reader = _Reader(max_values)
    async for chunk in body.chunks(max_bytes):
        await body.turns.work(reader.feed(chunk))
    return reader.finish()


class _Reader:
    """Takes the strings out of JSON while it arrives."""

    def __init__(self, max_values: int) -> None:
        self._max_values = max_values
        self._decoder: codecs.IncrementalDecoder | None = None
        self._unread = b""  # the first bytes, which tell the encoding, or an escape whose end has not come
        self._skeleton = bytearray()
        self._strings: list[JsonString] = []
        self._in_string = False

    def feed(self, chunk: bytes) -> Steps[None]:
        for start in range(0, len(chunk), _STEP_BYTES):
            self._read(chunk[start : start + _STEP_BYTES], is_last=False)
            yield

    def finish(self) -> dict[str, Any]:
        self._read(b"", is_last=True)
        if sum(self._skeleton.count(character) for character in (b"[", b"{", b",")) > self._max_values:
            raise _far_too_much()
        if self._in_string or not self._skeleton.isascii():
            raise _invalid()
        try:
            content = json.loads(
                self._skeleton.decode(),
                object_pairs_hook=self._object,
                parse_int=_number,
                parse_float=_number,
                parse_constant=_no_number,
            )
        except (json.JSONDecodeError, RecursionError) as error:
            raise _invalid() from error
        if not isinstance(content, dict):
            raise MalformedRequest("The JSON body must be an object.")
        return content

    def _read(self, data: bytes, *, is_last: bool) -> None:
        if self._decoder is None:
            data, self._unread = self._unread + data, b""
            if len(data) < 4 and not is_last:
                self._unread = data
                return
            self._decoder = codecs.getincrementaldecoder(json.detect_encoding(data))()
        try:
            text = self._unread + self._decoder.decode(data, is_last).encode()
        except UnicodeDecodeError as error:
            raise _invalid() from error
        self._unread, position = b"", 0
        while position < len(text):
            position = self._read_string(text, position) if self._in_string else self._read_between(text, position)

    def _read_between(self, text: bytes, position: int) -> int:
        quote = text.find(b'"', position)
        end = len(text) if quote < 0 else quote
        self._skeleton += text[position:end]
        if len(self._skeleton) > _BYTES_PER_VALUE * self._max_values or len(self._strings) > 2 * self._max_values:
            raise _far_too_much()
        if quote < 0:
            return end
        self._skeleton += b'"%d"' % len(self._strings)
        self._strings.append(JsonString())
        self._in_string = True
        return quote + 1

    def _read_string(self, text: bytes, position: int) -> int:
        end = _CHARACTERS.match(text, position).end()  # type: ignore[union-attr] # it matches nothing, too
        self._strings[-1].append(text[position:end])
        if end == len(text):
            return end
        if text[end] == _QUOTE:
            self._in_string = False
            return end + 1
        if text[end] == _BACKSLASH and len(text) - end < _LONGEST_ESCAPE:
            self._unread = text[end:]
            return len(text)
        raise _invalid()

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = {self._strings[int(key)].key(): self._value(value) for key, value in pairs}
        if len(content) < len(pairs):
            raise MalformedRequest("The JSON body has a key twice in one object.")
        return content

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._strings[int(value)]
        return [self._value(each) for each in value] if isinstance(value, list) else value


def _number(_: str) -> None:
    """Leave it as it is: int() refuses long ones, and takes its time."""


def _no_number(_: str) -> None:
    raise _invalid()  # NaN and Infinity are Python's


def _invalid() -> MalformedRequest:
    return MalformedRequest("The body is not valid JSON.")


def _far_too_much() -> MalformedRequest:
    return MalformedRequest("The JSON body holds far more than images.")
