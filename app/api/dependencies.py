"""What routes are given: a checked caller, an admission with a deadline; and how a vanished caller ends the work.

All of it is `async`, though little of it waits: FastAPI calls a plain function in a thread, and each change of thread costs a
busy machine more than the function. It is few and large for the same reason: FastAPI spends more on each than it does.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request
from starlette.requests import ClientDisconnect

from app.api.payloads.body import Hold
from app.auth.access import Access
from app.errors import InvalidParameter
from app.http.numbers import whole_number
from app.http.turns import Turns
from app.metrics import Metrics
from app.serving.classifier import Classifier
from app.serving.service import Service
from app.settings import Settings

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Admission:
    """A request with images that was let in before a byte of its body was read."""

    settings: Settings
    classifier: Classifier
    hold: Hold
    """What the body is accounted by, until the request is answered."""
    deadline: float
    """When the answer loses its use, as a time of the event loop's clock."""
    service: Service
    turns: Turns

    async def upload(self, reading: Awaitable[T]) -> T:
        """Await the body; see `Service.upload`."""
        return await self.service.upload(self.deadline, reading)


async def get_service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def get_metrics(request: Request) -> Metrics:
    metrics: Metrics = request.app.state.metrics
    return metrics


async def check_caller(request: Request) -> None:
    """Let a caller in who may call; everybody, if there are no keys and no limits.

    Raises:
        Unauthorized: no key, or none that is known.
        RateLimited: there were too many requests from this address or with this key.
    """
    access: Access = request.app.state.access
    await access.check(request)


async def admit(
    request: Request,
    x_request_timeout_ms: Annotated[
        str | None,
        Header(description="Deadline of this request in milliseconds from its arrival; can only shorten the server's."),
    ] = None,
) -> AsyncIterator[Admission]:
    """Let a request in that brings images, if its caller may, the service can, and the queue has room; until it is answered.

    Raises:
        Unauthorized, RateLimited: see `check_caller`.
        NotReady, Draining: see `Service.accept`.
        QueueFull: as many images wait as may.
        InvalidParameter: the deadline is not a positive whole number.
    """
    await check_caller(request)
    settings: Settings = request.app.state.settings
    service: Service = request.app.state.service
    with service.accept() as classifier:
        classifier.check_room()
        timeout_s = _timeout(x_request_timeout_ms, settings.request_timeout_s)
        arrival: float = request.state.arrival
        with classifier.bytes_held() as hold:
            yield Admission(settings, classifier, hold, arrival + timeout_s, service, request.app.state.turns)


def _timeout(asked_ms: str | None, longest_s: float) -> float:
    if asked_ms is None:
        return longest_s
    asked = whole_number(asked_ms)
    if not asked:
        raise InvalidParameter("X-Request-Timeout-Ms must be a positive whole number of milliseconds.")
    return min(longest_s, asked / 1000)


ServiceDep = Annotated[Service, Depends(get_service)]
MetricsDep = Annotated[Metrics, Depends(get_metrics)]
AdmissionDep = Annotated[Admission, Depends(admit)]


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await the work, and cancel it when the caller goes away. The request's body must have been read.

    Raises:
        ClientDisconnect: the caller has gone.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.wait((task, gone))


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
