"""ApiKeys: who may call, from the settings and from a file that is read again while the service runs."""

import asyncio
import hmac
import math
import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog
from starlette.datastructures import Headers

from app.errors import StartError
from model.checkpoints.tensors.regular_file import FileError, read_file

MAX_KEY_BYTES = 1024
"""Of one key, in bytes; what is longer is no key, and is not even hashed."""

_MAX_KEYS = 1000
_MAX_FILE_BYTES = 1 << 20
_LOOK_EVERY_S = 1.0
"""How often the file is looked at while requests come, in seconds."""

_UNSENDABLE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
"""Bytes that no header field can carry (RFC 9110, section 5.5)."""

_log = structlog.get_logger(__name__)


def sent_key(headers: Headers) -> bytes:
    """The key in `X-API-Key` or, without that, in `Authorization: Bearer`, in the bytes that came; empty if there is none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    sent = headers.get("x-api-key") or (token.strip(" \t") if scheme.lower() == "bearer" else "")
    return sent.encode("latin-1")  # the reverse of how Starlette reads headers


class ApiKeys:
    """The keys that may call. Of each only a hash is kept here, and its secret dies with the process.

    Args:
        given: keys from the settings.
        file: a file with one key a line; lines that are blank or begin with # are none.
        clock: seconds that only grow.

    Raises:
        StartError: the file cannot be read or holds no key, or a key is too long or cannot be sent.
    """

    def __init__(self, given: Iterable[bytes], file: Path | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._secret = os.urandom(32)
        self._file = file
        self._clock = clock
        self._next_look = clock() + _LOOK_EVERY_S
        self._broken = False
        try:
            self._given = self._hashed(given)
        except _Unusable as error:
            raise StartError(f"VIT_API_KEYS: {error}") from None
        try:
            self._filed = frozenset() if file is None else self._hashed(_read(file))
        except _Unusable as error:
            raise StartError(f"VIT_API_KEYS_FILE: {file} cannot be used: {error}") from None
        self._known = tuple(self._given | self._filed)

    @property
    def required(self) -> bool:
        """Whether a caller needs a key."""
        return bool(self._known)

    async def identify(self, sent: bytes) -> str | None:
        """A name for the key, the same for as long as the process lives; None if it is no valid one."""
        await self._look()
        if len(sent) > MAX_KEY_BYTES:
            return None
        hashed = self._hash(sent)
        # every key is compared, and in constant time, so that the time tells nothing of how much was right
        matches = [hmac.compare_digest(hashed, known) for known in self._known]
        return hashed.hex() if any(matches) else None

    async def _look(self) -> None:
        """See whether the file has changed. One caller waits for that, in a thread: a disk may hang."""
        if self._file is None or self._clock() < self._next_look:
            return
        self._next_look = math.inf
        try:
            await asyncio.to_thread(self._read_again, self._file)
        finally:
            self._next_look = self._clock() + _LOOK_EVERY_S

    def _read_again(self, file: Path) -> None:
        # the whole of it: times and sizes of files can miss a change, and it is small
        try:
            filed = self._hashed(_read(file))
        except _Unusable as error:
            if not self._broken:
                _log.error("the file of API keys cannot be used; the last keys stay valid", reason=str(error))
            self._broken = True
            return
        if self._broken or filed != self._filed:
            _log.info("read API keys again", keys=len(filed))
        self._broken = False
        self._filed = filed
        self._known = tuple(self._given | filed)

    def _hashed(self, keys: Iterable[bytes]) -> frozenset[bytes]:
        hashed = set()
        for key in keys:
            if len(key) > MAX_KEY_BYTES:
                raise _Unusable(f"a key is longer than {MAX_KEY_BYTES} bytes")
            if _UNSENDABLE.search(key):
                raise _Unusable("a key has a control character, which no header can carry")
            hashed.add(self._hash(key))
        if len(hashed) > _MAX_KEYS:
            raise _Unusable(f"there are more than {_MAX_KEYS} keys")
        return frozenset(hashed)

    def _hash(self, key: bytes) -> bytes:
        return hmac.digest(self._secret, key, "sha256")


class _Unusable(Exception):
    """Keys cannot be taken; the message tells why, and nothing of them."""


def _read(file: Path) -> list[bytes]:
    try:
        content = read_file(file, _MAX_FILE_BYTES)
    except FileError as error:
        raise _Unusable(str(error)) from None
    lines = [line.strip(b" \t") for line in content.removeprefix(b"\xef\xbb\xbf").splitlines()]
    keys = [line for line in lines if line and not line.startswith(b"#")]
    if not keys:
        raise _Unusable("there is no key in it")
    return keys
