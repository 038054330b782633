"""Read JSON with arrays of many numbers, which are parsed while the body arrives and never become objects of Python."""

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.api.payloads.json_object import JsonReader, far_too_much, invalid
from app.errors import MalformedRequest

# blanks and digits are bounded, so that the longest number is one, however the body is cut
_BLANKS = rb"[ \t\r\n]{0,64}+"
_NUMBER = rb"%b-?+(?:0|[1-9][0-9]{0,39}+)(?:\.[0-9]{1,40}+)?+(?:[eE][+-]?+[0-9]{1,4}+)?+%b" % (_BLANKS, _BLANKS)
_NUMBERS = re.compile(rb"%b(?:,%b)*+" % (_NUMBER, _NUMBER))
_ARRAY = re.compile(rb"\[%b(?=[-0-9])" % _BLANKS)
_MAY_BEGIN_ARRAY = re.compile(rb"\[%b$" % _BLANKS)

_LONGEST_NUMBER = 256
"""More than the length of any number with its blanks."""

_FEW = 16
"""Arrays up to this size keep their numbers in float64, such as the sizes of a shape."""


class NumberReader(JsonReader):
    """A `JsonReader` to which each array of numbers becomes an array of numpy, (n,) float32, or float64 if it is short.

    An array that begins with a number must hold nothing else.

    Args:
        max_values: maximum number of values, without arrays of numbers.
        max_numbers: maximum count of numbers in such arrays.
        max_arrays: maximum count of such arrays.
    """

    step_bytes = 4 * 1024  # full of arrays of one number these take 6 ms

    def __init__(self, max_values: int, max_numbers: int, max_arrays: int) -> None:
        super().__init__(max_values, numbers=True)
        self._numbers_left = max_numbers
        self._max_arrays = max_arrays
        self._arrays: list[NDArray[Any]] = []
        self._parts: list[NDArray[np.float64]] | None = None  # of the array that is being read
        self._rest = b""  # an incomplete number, or a bracket that may begin an array

    @property
    def _max_skeleton_values(self) -> int:
        return self._max_values + 2 * len(self._arrays)  # each array may be the one value of a list around it

    def _check_end(self) -> None:
        if self._parts is not None:
            raise invalid()
        if self._rest:
            rest, self._rest = self._rest, b""
            self._add_skeleton(rest)
        super()._check_end()

    def _read_skeleton(self, text: bytes, position: int) -> int:
        if self._parts is not None:
            return self._read_array(self._parts, text, position)
        if self._rest:  # parse the bracket again, with what follows it
            again, self._rest = self._rest + text[position:], b""
            return len(text) - (len(again) - self._read_skeleton(again, 0))
        quote = text.find(b'"', position)
        end = len(text) if quote < 0 else quote
        if begins := _ARRAY.search(text, position, min(end + 1, len(text))):
            if len(self._arrays) == self._max_arrays:
                raise far_too_much()
            self._add_skeleton(text[position : begins.start()] + b'"n%d"' % len(self._arrays))
            self._parts = []
            return begins.end()
        if quote < 0 and (partial := _MAY_BEGIN_ARRAY.search(text, position)):
            self._add_skeleton(text[position : partial.start()])
            self._rest = text[partial.start() :]
            return end
        return super()._read_skeleton(text, position)

    def _read_array(self, parts: list[NDArray[np.float64]], text: bytes, position: int) -> int:
        bracket = text.find(b"]", position)
        end = len(text) if bracket < 0 else bracket
        numbers = self._rest + text[position:end]
        if bracket < 0:
            complete = numbers.rfind(b",")
            self._rest = numbers[complete + 1 :]
            if len(self._rest) > _LONGEST_NUMBER:
                raise invalid()
            if complete >= 0:
                parts.append(self._parsed(numbers[:complete]))
            return end
        parts.append(self._parsed(numbers))
        array = np.concatenate(parts)
        with np.errstate(over="ignore"):
            self._arrays.append(array if len(array) <= _FEW else array.astype(np.float32))
        self._parts, self._rest = None, b""
        return end + 1

    def _parsed(self, text: bytes) -> NDArray[np.float64]:
        self._numbers_left -= text.count(b",") + 1
        if self._numbers_left < 0:
            raise MalformedRequest("The JSON body holds more numbers than the images of one request have.")
        if not _NUMBERS.fullmatch(text):
            raise invalid()
        return np.fromstring(text.decode(), sep=",")

    def _value(self, value: Any) -> Any:
        if isinstance(value, str) and value.startswith("n"):
            return self._arrays[int(value[1:])]
        return super()._value(value)
