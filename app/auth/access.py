"""Access: authenticate and rate-limit a request by its headers and address, before its body is read."""

import hmac
import os

from starlette.requests import Request

from app.auth.api_keys import ApiKeys, sent_key
from app.auth.client_address import client_of
from app.auth.rate_limits import RateLimit
from app.errors import NotSupported, RateLimited, StartError, Unauthorized
from app.metrics import Metrics
from app.settings import Settings


class Access:
    """The keys and rate limits of one service.

    Raises:
        StartError: the keys cannot be used, that of the admin is a client's, or a limit counts by key and there are no keys.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        given = (os.fsencode(key.get_secret_value()) for key in settings.api_keys)
        self._keys = ApiKeys(given, settings.api_keys_file)
        per_address, per_key = settings.rate_limit_per_address, settings.rate_limit_per_key
        if per_key is not None and not self._keys.required:
            raise StartError("VIT_RATE_LIMIT_PER_KEY: there are no keys to count by")
        self._per_address = None if per_address is None else RateLimit(per_address)
        self._per_key = None if per_key is None else RateLimit(per_key)
        self._admin = None if settings.admin_key is None else os.fsencode(settings.admin_key.get_secret_value())
        if self._admin is not None and self._admin in (os.fsencode(key.get_secret_value()) for key in settings.api_keys):
            raise StartError("VIT_ADMIN_KEY: it is one of VIT_API_KEYS, whose holders may not load models; choose another")
        self._metrics = metrics

    async def check(self, request: Request) -> None:
        """Count a request, and raise if it may not be served.

        The limit per address comes first and counts wrong keys too, so that it also limits guessing.

        Raises:
            RateLimited: too many requests from this address or with this key.
            Unauthorized: no key, or an unknown one.
        """
        if self._per_address is not None:
            self._take(self._per_address, client_of(request), "address")
        if not self._keys.required:
            return
        key = await self._keys.identify(sent_key(request.headers))
        if key is None and self._is_admin(request):
            return
        if key is None:
            raise Unauthorized(
                "Send a valid API key as `Authorization: Bearer <key>`, as `X-API-Key: <key>`, or as the password of `Basic`."
            )
        if self._per_key is not None:
            self._take(self._per_key, key, "key")

    async def check_admin(self, request: Request) -> None:
        """Count a request, and raise if it may not change which models are loaded.

        Raises:
            RateLimited: too many requests from this address.
            NotSupported: there is no admin key, so nobody may.
            Unauthorized: the request does not have it.
        """
        if self._per_address is not None:
            self._take(self._per_address, client_of(request), "address")
        if self._admin is None:
            raise NotSupported("Models can be loaded and unloaded with an admin key alone: set VIT_ADMIN_KEY.")
        if not self._is_admin(request):
            raise Unauthorized("Send the admin key as `Authorization: Bearer <key>`, or as `X-API-Key: <key>`.")

    def _is_admin(self, request: Request) -> bool:
        return self._admin is not None and hmac.compare_digest(sent_key(request.headers), self._admin)

    def _take(self, limit: RateLimit, client: str, counted_by: str) -> None:
        try:
            limit.take(client)
        except RateLimited:
            self._metrics.rate_limited.labels(counted_by).inc()
            raise
