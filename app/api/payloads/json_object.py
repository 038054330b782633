"""Read a JSON object (RFC 8259) with large strings, which are extracted while the body arrives.

`json.loads` holds the GIL until it is done, so it only parses the skeleton of the body, with a number in place of each
string: `{"image": "/9j/4AAQ..."}` is parsed as `{"0": "1"}`. A string is unescaped when it is used.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from app.api.payloads.body import Body
from app.errors import MalformedRequest
from app.http.time_slices import Steps

_STEP_BYTES = 32 * 1024
"""Bytes read in one step, which takes a millisecond if they are full of escapes."""

_BYTES_PER_VALUE = 1024
"""Maximum bytes of skeleton for each value: brackets, digits, and blanks."""

_MAX_TEXT_BYTES = 1024

_MAX_DIGITS = 40

_LONGEST_ESCAPE = len(rb"\u0041")

_CHARACTERS = re.compile(rb'[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+')
"""The longest valid part of a string (RFC 8259, section 7) that cuts no escape. The text is valid UTF-8 already."""

_QUOTE, _BACKSLASH = b'"\\'

Number = TypeVar("Number", int, float)


class JsonString:
    """A valid string with its escapes, in blocks, so that one step never covers all of it."""

    def __init__(self) -> None:
        self._blocks = [bytearray()]

    def append(self, escaped: bytes) -> None:
        if len(self._blocks[-1]) >= _STEP_BYTES:
            self._blocks.append(bytearray())
        self._blocks[-1] += escaped

    def take_blocks(self) -> Iterator[bytes]:
        """Yield the string in UTF-8, unescaped, and free each block. All but the last had 32 KB or more of escaped text."""
        self._blocks.reverse()
        while self._blocks:
            block = self._blocks.pop()
            yield _unescaped(block).encode("utf-8", "surrogatepass") if b"\\" in block else bytes(block)

    def text(self, what: str) -> str:
        """Return a short string.

        Raises:
            MalformedRequest: it is too long to be a `what`.
        """
        if len(self._blocks[0]) > _MAX_TEXT_BYTES:
            raise MalformedRequest(f"{what} in the JSON body is longer than {_MAX_TEXT_BYTES} bytes.")
        return _unescaped(self._blocks[0])


def _unescaped(escaped: bytearray) -> str:
    text: str = json.loads(f'"{escaped.decode()}"')
    return text


async def read_json(body: Body, max_bytes: int, max_values: int, *, numbers: bool = False) -> dict[str, Any]:
    """Read a body that is a JSON object. Its strings become `JsonString`, also in lists.

    Args:
        body: the body.
        max_bytes: maximum size of the body.
        max_values: maximum number of values, at any depth.
        numbers: read numbers too; else they become None.

    Raises:
        MalformedRequest: not valid JSON, not an object, a key twice in one object, too many values, or a very long number.
        ImageTooLarge, UnsupportedImageFormat, QueueFull: as `Body.chunks`.
    """
    content = await read_json_value(body, max_bytes, max_values, numbers=numbers)
    if not isinstance(content, dict):
        raise not_an_object()
    return content


async def read_json_value(body: Body, max_bytes: int, max_values: int, *, numbers: bool = False) -> Any:
    """Read a body that is any JSON value; as `read_json`."""
    reader = JsonReader(max_values, numbers=numbers)
    async for chunk in body.chunks(max_bytes):
        await body.slices.work(reader.feed(chunk))
    return reader.finish()


class JsonReader:
    """Splits JSON into a skeleton and its strings, while it arrives.

    Args:
        max_values: maximum number of values, at any depth.
        numbers: read numbers too; else they become None.
    """

    step_bytes = _STEP_BYTES

    def __init__(self, max_values: int, *, numbers: bool = False) -> None:
        self._max_values = max_values
        self._parse_int: Callable[[str], int | None] = _short(int) if numbers else _skip
        self._parse_float: Callable[[str], float | None] = _short(float) if numbers else _skip
        self._decoder: codecs.IncrementalDecoder | None = None
        self._unread = b""  # the first bytes, which tell the encoding, or a partial escape
        self._skeleton = bytearray()
        self._strings: list[JsonString] = []
        self._in_string = False

    def feed(self, chunk: bytes) -> Steps[None]:
        for start in range(0, len(chunk), self.step_bytes):
            self._read(chunk[start : start + self.step_bytes], is_last=False)
            yield

    def finish(self) -> Any:
        """Return the body, which has ended.

        Raises:
            MalformedRequest: see `read_json`.
        """
        self._read(b"", is_last=True)
        self._check_end()
        # each value but the first follows one of these, so this bounds what json.loads builds
        if sum(self._skeleton.count(character) for character in (b"[", b"{", b",")) > self._max_skeleton_values:
            raise far_too_much()
        try:
            return self._value(
                json.loads(
                    self._skeleton.decode(),
                    object_pairs_hook=self._object,
                    parse_int=self._parse_int,
                    parse_float=self._parse_float,
                    parse_constant=_no_number,
                )
            )
        except (ValueError, RecursionError) as error:  # also a key that is no string
            raise invalid() from error

    def _check_end(self) -> None:
        """Raise if the text ends too early."""
        if self._in_string or not self._skeleton.isascii():
            raise invalid()

    @property
    def _max_skeleton_values(self) -> int:
        return self._max_values

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
            raise invalid() from error
        self._unread, position = b"", 0
        while position < len(text):
            position = self._read_string(text, position) if self._in_string else self._read_skeleton(text, position)

    def _read_skeleton(self, text: bytes, position: int) -> int:
        quote = text.find(b'"', position)
        end = len(text) if quote < 0 else quote
        self._add_skeleton(text[position:end])
        if quote < 0:
            return end
        self._skeleton += b'"%d"' % len(self._strings)
        self._strings.append(JsonString())
        self._in_string = True
        return quote + 1

    def _add_skeleton(self, part: bytes) -> None:
        self._skeleton += part
        if len(self._skeleton) > _BYTES_PER_VALUE * self._max_values or len(self._strings) > 2 * self._max_values:
            raise far_too_much()

    def _read_string(self, text: bytes, position: int) -> int:
        end = _CHARACTERS.match(text, position).end()  # type: ignore[union-attr] # it also matches nothing
        self._strings[-1].append(text[position:end])
        if end == len(text):
            return end
        if text[end] == _QUOTE:
            self._in_string = False
            return end + 1
        if text[end] == _BACKSLASH and len(text) - end < _LONGEST_ESCAPE:
            self._unread = text[end:]
            return len(text)
        raise invalid()

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = {self._strings[int(key)].text("A key"): self._value(value) for key, value in pairs}
        if len(content) < len(pairs):
            raise MalformedRequest("The JSON body has a key twice in one object.")
        return content

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._strings[int(value)]
        return [self._value(each) for each in value] if isinstance(value, list) else value


def _skip(_: str) -> None:
    """Skip a number: int() refuses long ones, and is slow."""


def _short(parse: Callable[[str], Number]) -> Callable[[str], Number]:
    def parse_short(text: str) -> Number:
        if len(text) > _MAX_DIGITS:
            raise MalformedRequest(f"A number in the JSON body has more than {_MAX_DIGITS} digits.")
        return parse(text)

    return parse_short


def _no_number(_: str) -> None:
    raise invalid()  # NaN and Infinity are valid in Python alone


def invalid() -> MalformedRequest:
    return MalformedRequest("The body is not valid JSON.")


def not_an_object() -> MalformedRequest:
    return MalformedRequest("The JSON body must be an object.")


def far_too_much() -> MalformedRequest:
    return MalformedRequest("The JSON body holds far more than images.")
