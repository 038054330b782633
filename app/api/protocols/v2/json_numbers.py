"""Read JSON with arrays of many numbers, which are parsed while the body arrives and never become objects of Python."""

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.api.payloads.json_object import JsonReader, invalid
from app.errors import MalformedRequest

_ARRAY = re.compile(rb"\[[ \t\r\n]*(?=[-0-9])")
_MAY_BEGIN_ARRAY = re.compile(rb"\[[ \t\r\n]*$")
_NUMBER = rb"[ \t\r\n]*+-?+(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?[0-9]++)?+[ \t\r\n]*+"
_NUMBERS = re.compile(rb"%b(?:,%b)*+" % (_NUMBER, _NUMBER))

_LONGEST_NUMBER = 128
"""Maximum length of a number with the blanks around it."""


class NumberReader(JsonReader):
    """A `JsonReader` to which each array of numbers becomes an array of numpy, (n,) float32.

    An array that begins with a number must hold nothing else.

    Args:
        max_values: maximum number of values, where an array of numbers is one.
        max_numbers: maximum count of numbers in such arrays.
    """

    def __init__(self, max_values: int, max_numbers: int) -> None:
        super().__init__(max_values, numbers=True)
        self._numbers_left = max_numbers
        self._arrays: list[list[NDArray[np.float32]]] = []
        self._in_array = False
        self._rest = b""  # an incomplete number, or a bracket that may begin an array

    def finish(self) -> Any:
        if self._in_array:
            raise invalid()
        if self._rest:
            rest, self._rest = self._rest, b""
            super()._read_skeleton(rest, 0)
        return super().finish()

    def _read_skeleton(self, text: bytes, position: int) -> int:
        if self._rest and not self._in_array:  # parse the bracket again, with what follows it
            text, self._rest, end = self._rest + text[position:], b"", len(text)
            return end - (len(text) - self._read_skeleton(text, 0))
        if self._in_array:
            return self._read_array(text, position)
        quote = text.find(b'"', position)
        end = len(text) if quote < 0 else quote
        if begins := _ARRAY.search(text, position, min(end + 1, len(text))):
            self._add_skeleton(text[position : begins.start()] + b'"n%d"' % len(self._arrays))
            self._arrays.append([])
            self._in_array = True
            return begins.end()
        if quote < 0 and (partial := _MAY_BEGIN_ARRAY.search(text, position)):
            self._add_skeleton(text[position : partial.start()])
            self._rest = text[partial.start() :]
            if len(self._rest) > _LONGEST_NUMBER:
                raise invalid()
            return end
        return super()._read_skeleton(text, position)

    def _read_array(self, text: bytes, position: int) -> int:
        bracket = text.find(b"]", position)
        end = len(text) if bracket < 0 else bracket
        numbers = self._rest + text[position:end]
        complete = len(numbers) if bracket >= 0 else numbers.rfind(b",") + 1
        self._rest = numbers[complete:]
        if len(self._rest) > _LONGEST_NUMBER:
            raise invalid()
        if complete:
            self._parse(numbers[:complete] if bracket >= 0 else numbers[: complete - 1])
        elif bracket >= 0:
            raise invalid()
        if bracket < 0:
            return end
        self._in_array, self._rest = False, b""
        return end + 1

    def _parse(self, text: bytes) -> None:
        self._numbers_left -= text.count(b",") + 1
        if self._numbers_left < 0:
            raise MalformedRequest("The JSON body holds more numbers than the images of one request have.")
        if not _NUMBERS.fullmatch(text):
            raise invalid()
        with np.errstate(over="ignore"):
            self._arrays[-1].append(np.fromstring(text.decode(), sep=",").astype(np.float32))

    def _value(self, value: Any) -> Any:
        if isinstance(value, str) and value.startswith("n"):
            return np.concatenate(self._arrays[int(value[1:])])
        return super()._value(value)
