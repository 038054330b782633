"""RequestLog: one line in the log for each request; for refused requests, one a second for each reason."""

import asyncio
from collections.abc import Mapping
from contextvars import Context

import structlog

_SECOND = 1.0

_NOT_REFUSED = frozenset({500, 504})
"""Failures of accepted requests: the service bounds their number, and an operator looks for each by its id."""

_FOR_DEBUGGING = ("/health", "/metrics")
"""Routes that are polled; their lines have the level debug, and are never sampled."""

_log = structlog.get_logger("request")


class RequestLog:
    """The lines of one service's requests.

    Requests that are refused (4xx, among them 499 for callers that left, and 503) can be sent by anybody, as many as the
    network carries, and most come when the service has no time for them. Of those with the same status and code, the first in
    a second is written, and at the second's end one line with the number of the others.
    """

    def __init__(self) -> None:
        self._others: dict[tuple[int, str | None], int] = {}
        self._closed = False

    def write(self, method: str, route: str, status: int, code: str | None, timings_ms: Mapping[str, float]) -> None:
        """Log a request and its answer; `code` is that of the problem that it was answered with, if it was."""
        quiet = route.startswith(_FOR_DEBUGGING)
        if status >= 400 and status not in _NOT_REFUSED and not (quiet or self._closed or self._first(status, code)):
            return
        problem = {} if code is None else {"code": code}
        log = _log.debug if quiet else _log.info
        log("request", method=method, route=route, status=status, **problem, **timings_ms)

    def close(self) -> None:
        """Write the counts of seconds that have not ended; from now on every request has its line."""
        self._closed = True
        for status, code in list(self._others):
            self._end_second(status, code)

    def _first(self, status: int, code: str | None) -> bool:
        """Count a refusal; tells whether it is the first of its second."""
        if (status, code) in self._others:
            self._others[status, code] += 1
            return False
        self._others[status, code] = 0
        # in an empty context: the line at the second's end must not have this request's id
        asyncio.get_running_loop().call_later(_SECOND, self._end_second, status, code, context=Context())
        return True

    def _end_second(self, status: int, code: str | None) -> None:
        others = self._others.pop((status, code), 0)
        if others:
            problem = {} if code is None else {"code": code}
            _log.info("more requests refused", status=status, **problem, requests=others)
