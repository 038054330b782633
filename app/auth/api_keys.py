"""ApiKeys: the valid API keys, from the settings and from a file that is reloaded while the service runs."""

import asyncio
import base64
import hmac
import os
import re
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import structlog
from starlette.datastructures import Headers

from app.errors import StartError
from model.checkpoints.tensors.regular_file import FileError, read_file

MAX_KEY_BYTES = 1024
"""Maximum length of a key, in bytes; anything longer is refused without hashing it."""

_MAX_KEYS = 1000
_MAX_FILE_BYTES = 1 << 20
_RELOAD_INTERVAL_S = 1.0
"""Seconds between two reloads of the file while requests come."""

_RELOAD_TIMEOUT_S = 1.0
"""Seconds that a request may wait for a reload before it goes on with the last keys: a network mount may hang."""

_UNSENDABLE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
"""Bytes that no header field can carry (RFC 9110, section 5.5)."""

_log = structlog.get_logger(__name__)


def sent_key(headers: Headers) -> bytes:
    """Return the key of a request as it was sent: `X-API-Key`, else `Authorization: Bearer`, else the password of `Basic`.

    Empty if there is none.
    """
    if key := headers.get("x-api-key"):
        return key.encode("latin-1")  # the reverse of how Starlette decodes headers
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    match scheme.lower():
        case "bearer":
            return credentials.strip(" \t").encode("latin-1")
        case "basic" if len(credentials) <= 4 * MAX_KEY_BYTES:
            return _password(credentials.strip(" \t"))
    return b""


def _password(credentials: str) -> bytes:
    """Return the password of RFC 7617's credentials, or nothing if they are broken."""
    try:
        return base64.b64decode(credentials.encode("latin-1"), validate=True).partition(b":")[2]
    except ValueError:
        return b""


class ApiKeys:
    """The valid keys. Only HMACs of them are kept, and the secret of these dies with the process.

    Args:
        given: keys from the settings.
        file: a file with one key a line; blank lines and lines that begin with # are skipped.
        clock: seconds that only grow.

    Raises:
        StartError: the file cannot be read or holds no key, or a key is too long or cannot be sent.
    """

    def __init__(self, given: Iterable[bytes], file: Path | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._secret = os.urandom(32)
        self._file = file
        self._clock = clock
        self._next_reload = clock() + _RELOAD_INTERVAL_S
        self._reloaded = asyncio.Event()
        self._reloaded.set()
        self._broken = False
        try:
            self._from_settings = self._hash_all(given)
        except _Unusable as error:
            raise StartError(f"VIT_API_KEYS: {error}") from None
        try:
            self._from_file = frozenset() if file is None else self._hash_all(_read(file))
        except _Unusable as error:
            raise StartError(f"VIT_API_KEYS_FILE: {file} cannot be used: {error}") from None

    @property
    def required(self) -> bool:
        """True if there are keys, so that clients need one."""
        return bool(self._from_settings or self._from_file)

    async def identify(self, sent: bytes) -> str | None:
        """Return a name for a valid key, the same for as long as the process lives; None if the key is not valid."""
        if self._file is not None:
            await self._reload_if_due(self._file)
        if len(sent) > MAX_KEY_BYTES:
            return None
        # a timing attack on this lookup would need to know HMACs, and so the secret
        hashed = self._hash(sent)
        return hashed.hex() if hashed in self._from_settings or hashed in self._from_file else None

    async def _reload_if_due(self, file: Path) -> None:
        """Reload the file in a thread once a second. Only the request that starts a reload waits for it, and not for long."""
        now = self._clock()
        if now < self._next_reload or not self._reloaded.is_set():
            return
        self._next_reload = now + _RELOAD_INTERVAL_S
        loop, reloaded = asyncio.get_running_loop(), asyncio.Event()

        def reload() -> None:
            try:
                self._read_again(file)
            finally:
                with suppress(RuntimeError):  # the loop has been closed meanwhile
                    loop.call_soon_threadsafe(reloaded.set)

        # not in asyncio's executor, whose threads must end before the process can
        threading.Thread(target=reload, name="reload API keys", daemon=True).start()
        self._reloaded = reloaded
        try:
            async with asyncio.timeout(_RELOAD_TIMEOUT_S):
                await reloaded.wait()
        except TimeoutError:
            _log.error("the file of API keys cannot be read, its disk does not answer; the last keys stay valid")

    def _read_again(self, file: Path) -> None:
        # always the whole file: times and sizes can miss a change, and it is small
        try:
            from_file = self._hash_all(_read(file))
        except _Unusable as error:
            if not self._broken:
                _log.error("the file of API keys cannot be used; the last keys stay valid", reason=str(error))
            self._broken = True
            return
        if self._broken or from_file != self._from_file:
            _log.info("read API keys again", keys=len(from_file))
        self._broken = False
        self._from_file = from_file

    def _hash_all(self, keys: Iterable[bytes]) -> frozenset[bytes]:
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
    """Keys that cannot be used. The message gives the reason, and no part of a key."""


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
