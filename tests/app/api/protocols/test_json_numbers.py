"""NumberReader against `json.loads`, with bodies that are cut anywhere."""

import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.api.protocols.v2.json_numbers import NumberReader
from app.errors import MalformedRequest

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


@given(content=VALUES.map(lambda value: {"a": value, "numbers": [[1, 2.5, -3e2], [], [0]]}), cuts=st.lists(st.integers(0, 400)))
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
def test_number_reader_reads_json_cut_anywhere(content: Any, cuts: list[int]) -> None:
    encoded = json.dumps(content, indent=1).encode()
    reader = NumberReader(10_000, 10_000, 10_000)
    bounds = sorted({0, len(encoded), *(min(cut, len(encoded)) for cut in cuts)})
    try:
        for start, end in itertools.pairwise(bounds):
            for _ in reader.feed(encoded[start:end]):
                pass
        found = plain(reader.finish())
    except MalformedRequest:
        assert holds_mixed_numbers(content) or has_long_number(content)
        return
    assert_same(found, content)


def plain(value: Any) -> Any:
    """Replace our strings and arrays by Python's."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    return b"".join(value.take_blocks()).decode("utf-8", "surrogatepass") if hasattr(value, "take_blocks") else value


def assert_same(found: Any, content: Any) -> None:
    if isinstance(content, dict):
        assert found.keys() == content.keys()
        for key in content:
            assert_same(found[key], content[key])
    elif isinstance(content, list):
        assert len(found) == len(content)
        for ours, theirs in zip(found, content, strict=True):
            assert_same(ours, theirs)
    elif isinstance(content, int | float) and not isinstance(content, bool):
        with np.errstate(over="ignore"):
            assert found == content or found == float(np.float32(content))
    else:
        assert found == content


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def holds_mixed_numbers(value: Any) -> bool:
    """Return True if a list begins with a number and has something else."""
    if isinstance(value, dict):
        return any(map(holds_mixed_numbers, value.values()))
    if not isinstance(value, list):
        return False
    mixed = bool(value) and is_number(value[0]) and not all(map(is_number, value))
    return mixed or any(map(holds_mixed_numbers, value))


def has_long_number(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(has_long_number, value.values()))
    if isinstance(value, list):
        return any(map(has_long_number, value))
    return is_number(value) and len(repr(value)) > 40


@pytest.mark.parametrize(
    "text", ["[1,]", "[,1]", "[1 2]", "[1", "[01]", "[1.]", "[.5]", "[+1]", "[1,,2]", "[--1]", "[1e]", "[NaN]", "[0x1]", "[1]]"]
)
def test_invalid_numbers_are_refused(text: str) -> None:
    for cut in range(len(text) + 1):
        encoded = f'{{"a": {text}}}'.encode()
        reader = NumberReader(100, 100, 100)
        with pytest.raises(MalformedRequest):
            for part in (encoded[: cut + 6], encoded[cut + 6 :]):
                for _ in reader.feed(part):
                    pass
            reader.finish()


def test_numbers_are_counted() -> None:
    reader = NumberReader(100, 10, 10)
    with pytest.raises(MalformedRequest, match="more numbers"):
        for _ in reader.feed(b'{"a": [' + b"1," * 10 + b"1]}"):
            pass


def test_arrays_are_counted() -> None:
    reader = NumberReader(100, 100, 10)
    with pytest.raises(MalformedRequest, match="far more"):
        for _ in reader.feed(b'{"a": [' + b"[1]," * 10 + b"[1]]}"):
            pass


@pytest.mark.parametrize("text", [b"[1", b"[12", b"[-", b"[1,", b"{[1]:2}", b'{"a":{[1]:2}}', b"[", b"[ "])
def test_short_texts_that_end_early_are_refused(text: bytes) -> None:
    for cut in range(len(text) + 1):
        reader = NumberReader(100, 100, 100)
        with pytest.raises(MalformedRequest):
            for part in (text[:cut], text[cut:]):
                for _ in reader.feed(part):
                    pass
            reader.finish()


@pytest.mark.parametrize(
    "array",
    ["1," + "1" * 200 + ",1", " " * 200 + "1", "1," + " " * 60 + "2", "1" + " " * 70, "0." + "1" * 45, "1e99999", "-0.5e-3"],
)
def test_cuts_do_not_decide(array: str) -> None:
    encoded = f'{{"a": [{array}]}}'.encode()

    def read(*parts: bytes) -> Any:
        reader = NumberReader(100, 100, 100)
        try:
            for part in parts:
                for _ in reader.feed(part):
                    pass
            return plain(reader.finish())
        except MalformedRequest as error:
            return str(error)

    whole = read(encoded)
    assert {str(read(encoded[:cut], encoded[cut:])) for cut in range(len(encoded))} == {str(whole)}
    assert str(read(*(bytes([byte]) for byte in encoded))) == str(whole)
