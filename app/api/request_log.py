"""RequestLog: a line for each request; for refused requests a line a second for each reason."""

import asyncio
from collections.abc import Mapping, Set
from contextvars import Context

import structlog

from app.process.logs import QuickLogger

_SECOND = 1.0

_NOT_REFUSED = frozenset({500, 504})
"""Failures of accepted requests: bounded in number, and an operator looks for each by its id."""

_log = structlog.get_logger("request")
_lines = QuickLogger("request")


class RequestLog:
    """Log of a service's requests.

    Anybody can send requests that are refused (4xx, with 499 for clients that left, and 503), as many as the network carries.
    Of those with the same status and code the first in a second is logged, and at its end one line counts the others.

    Args:
        polled: routes that are polled, such as health probes; their level is debug, and they are never sampled.
    """

    def __init__(self, polled: Set[str]) -> None:
        self._polled = polled
        self._others: dict[tuple[int, str | None], int] = {}
        self._closed = False

    def write(self, method: str, route: str, status: int, code: str | None, timings_ms: Mapping[str, float]) -> None:
        """Log a request and its response; `code` is that of its problem, if it has one."""
        quiet = route in self._polled
        if status >= 400 and status not in _NOT_REFUSED and not (quiet or self._closed or self._first(status, code)):
            return
        problem = {} if code is None else {"code": code}
        log = _log.debug if quiet else _lines.info
        log("request", method=method, route=route, status=status, **problem, **timings_ms)

    def close(self) -> None:
        """Log the counts of seconds that have not ended; from now on every request is logged."""
        self._closed = True
        for status, code in list(self._others):
            self._end_second(status, code)

    def _first(self, status: int, code: str | None) -> bool:
        """Count a refusal. Returns True for the first of its second."""
        if (status, code) in self._others:
            self._others[status, code] += 1
            return False
        self._others[status, code] = 0
        # in an empty context, without this request's id
        asyncio.get_running_loop().call_later(_SECOND, self._end_second, status, code, context=Context())
        return True

    def _end_second(self, status: int, code: str | None) -> None:
        others = self._others.pop((status, code), 0)
        if others:
            problem = {} if code is None else {"code": code}
            _log.info("more requests refused", status=status, **problem, requests=others)
