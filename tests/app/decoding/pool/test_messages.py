"""Messages of workers: valid ones are read, all others rejected."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.decoding.pool.attempt import DecodingFault
from app.decoding.pool.messages import MAX_REPLY_BYTES, Reply, read_reply, write_reply
from app.errors import ImageTooLarge, ServiceError, UndecodableImage, UnsupportedImageFormat


@pytest.mark.parametrize("kind", [ImageTooLarge, UnsupportedImageFormat, UndecodableImage])
def test_error_survives_the_wire(kind: type[ServiceError]) -> None:
    reply = read_reply(write_reply(Reply(7, kind("The image has 9 x 9 pixels."))))
    assert reply is not None
    assert reply.number == 7
    assert type(reply.error) is kind
    assert str(reply.error) == "The image has 9 x 9 pixels."


def test_success_is_a_number_alone() -> None:
    assert read_reply(write_reply(Reply(2**32 - 1, None))) == Reply(2**32 - 1, None)


def test_long_text_is_cut() -> None:
    message = write_reply(Reply(1, UndecodableImage("x" * 1000)))
    assert len(message) == MAX_REPLY_BYTES
    assert read_reply(message) is not None


def test_fault_keeps_class_and_place() -> None:
    reply = read_reply(write_reply(Reply(1, DecodingFault("KeyError at geometry.py:57"))))
    assert reply is not None
    assert isinstance(reply.error, DecodingFault)
    assert str(reply.error) == "KeyError at geometry.py:57"


@pytest.mark.parametrize("text", ["", "the image shows a cat", "KeyError at a.py:1\n", f"{'x' * 99} at a.py:1"])
def test_fault_with_free_text_is_rejected(text: str) -> None:
    assert read_reply(write_reply(Reply(1, DecodingFault(text)))) is None


@pytest.mark.parametrize("message", [b"", b"\0\0\0\0", b"\0\0\0\0\x05text", b"\0\0\0\0\x03\x1b[31m", b"\0\0\0\0\x03\xff\xfe"])
def test_invalid_reply_is_rejected(message: bytes) -> None:
    assert read_reply(message) is None


@given(st.binary(max_size=MAX_REPLY_BYTES))
def test_random_bytes_are_parsed_or_rejected(message: bytes) -> None:
    reply = read_reply(message)
    assert reply is None or reply.error is None or str(reply.error).isprintable()
