"""A decoder that does what its picture says: what decoding processes run in tests."""

import inspect
import os
import signal
import socket
import sys
import time
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from app.decoding.pool.messages import Reply, write_reply
from app.errors import UndecodableImage

Pixels = NDArray[np.uint8]
"""As in `app/decoding/image.py`, whose imports take a second."""

SHAPE = (3, 2, 2)

_poisoned = False


def decode(picture: bytes) -> Pixels:
    """`good N` gives N in every pixel; `is it so?` gives 1 or 0; the rest goes wrong."""
    if _poisoned:
        os.kill(os.getpid(), signal.SIGSEGV)
    what, _, argument = picture.partition(b" ")
    match what:
        case b"good":
            return np.full(SHAPE, int(argument), np.uint8)
        case b"wait":
            time.sleep(float(argument))
            return np.zeros(SHAPE, np.uint8)
        case b"spin":
            while True:
                pass
        case b"signal":
            os.kill(os.getpid(), int(argument))
        case b"reply-and":  # reply, and end by this signal
            _say(write_reply(Reply(_number(), None)))
            os.kill(os.getpid(), int(argument))
        case b"exit":
            os._exit(0)
        case b"eat":
            blocks = []
            while True:
                blocks.append(bytearray(16 << 20))
        case b"raise":
            raise RuntimeError(argument)
        case b"poison":
            return _poison()
        case b"say":
            _say(argument)
            return np.zeros(SHAPE, np.uint8)
        case b"say-next":
            _say(write_reply(Reply(int(argument), None)))
            return np.zeros(SHAPE, np.uint8)
        case b"break":  # the code around the decoder, which then fails by itself
            sys.modules["__main__"].write_reply = None  # type: ignore[attr-defined]
            return np.zeros(SHAPE, np.uint8)
        case b"shape":
            return np.zeros((3, 9, 9), np.uint8)
        case b"is":
            return np.full(SHAPE, _is(argument.decode()), np.uint8)
    raise UndecodableImage("This is no picture.")


def _poison() -> Pixels:
    global _poisoned
    _poisoned = True
    return np.full(SHAPE, 7, np.uint8)


def _number() -> int:
    """The number of this image, from where the worker keeps it."""
    frame = inspect.currentframe()
    while frame is not None and "number" not in frame.f_locals:
        frame = frame.f_back
    assert frame is not None
    return int(frame.f_locals["number"])


def _say(message: bytes) -> None:
    """Write to every socket that is open: one of them is the service's."""
    for fd in range(3, 64):
        with suppress(OSError):
            os.write(fd, message)


def _is(what: str) -> bool:
    """Whether this process has, or can do, what it should not."""
    if what == "key":
        return any(name.startswith("VIT_") for name in os.environ)
    try:
        match what:
            case "file":
                os.close(os.open("/etc/hostname", os.O_RDONLY))
            case "socket":
                socket.socket().close()
            case "ignoring":
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGINT)
    except OSError:
        return False
    return True


def decode_to(shape: tuple[int, int, int], picture: bytes) -> Pixels:
    """Decode, to pixels of another shape."""
    return np.full(shape, decode(picture).flat[0], np.uint8)


def decode_unless(file: str, picture: bytes) -> Pixels:
    """Decode, or end the process as long as a file exists."""
    if os.path.exists(file):
        os._exit(3)
    return decode(picture)


def abort(picture: bytes) -> Pixels:
    """Not even warming up succeeds."""
    os.abort()
