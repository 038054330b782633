"""Access: whether a caller may send a request, by its address and its key; asked before a byte of the body is read."""

import os

from starlette.requests import Request

from app.auth.api_keys import ApiKeys, sent_key
from app.auth.client_address import caller_of
from app.auth.rate_limits import RateLimit
from app.errors import RateLimited, StartError, Unauthorized
from app.metrics import Metrics
from app.settings import Settings


class Access:
    """Keys and limits of one service.

    Raises:
        StartError: the keys cannot be used, or a limit counts by keys and there are none.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        given = (os.fsencode(key.get_secret_value()) for key in settings.api_keys)
        self._keys = ApiKeys(given, settings.api_keys_file)
        per_address, per_key = settings.rate_limit_per_address, settings.rate_limit_per_key
        if per_key is not None and not self._keys.required:
            raise StartError("VIT_RATE_LIMIT_PER_KEY: there are no keys to count by")
        self._per_address = None if per_address is None else RateLimit(per_address)
        self._per_key = None if per_key is None else RateLimit(per_key)
        self._metrics = metrics

    async def check(self, request: Request) -> None:
        """Let a request in, and count it.

        The limit of the address comes first, so that nobody can go on trying keys. A request with a wrong key counts for it.

        Raises:
            RateLimited: there were too many requests from this address or with this key.
            Unauthorized: no key, or none that is known.
        """
        if self._per_address is not None:
            self._take(self._per_address, caller_of(request), "address")
        if not self._keys.required:
            return
        key = await self._keys.identify(sent_key(request.headers))
        if key is None:
            raise Unauthorized("Send a valid API key as `Authorization: Bearer <key>` or `X-API-Key: <key>`.")
        if self._per_key is not None:
            self._take(self._per_key, key, "key")

    def _take(self, limit: RateLimit, caller: str, counts: str) -> None:
        try:
            limit.take(caller)
        except RateLimited:
            self._metrics.rate_limited.labels(counts).inc()
            raise
