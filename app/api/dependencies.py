"""What routes are given: the service, a checked caller, a classifier, a deadline; and how a vanished caller ends the work.

All of it is `async`, though little of it waits: FastAPI calls a plain function in a thread, and each change of thread costs a
busy machine more than the function.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request
from starlette.requests import ClientDisconnect

from app.api.access import Access
from app.api.body import Hold
from app.classifier import Classifier
from app.errors import InvalidParameter
from app.lifecycle import Service
from app.metrics import Metrics
from app.settings import Settings

T = TypeVar("T")


async def get_settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


async def get_service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def get_metrics(request: Request) -> Metrics:
    metrics: Metrics = request.app.state.metrics
    return metrics


SettingsDep = Annotated[Settings, Depends(get_settings)]
ServiceDep = Annotated[Service, Depends(get_service)]
MetricsDep = Annotated[Metrics, Depends(get_metrics)]


async def check_caller(request: Request) -> None:
    """Let a caller in who may call; everybody, if there are no keys and no limits.

    Raises:
        Unauthorized: no key, or none that is known.
        RateLimited: there were too many requests from this address or with this key.
    """
    access: Access = request.app.state.access
    await access.check(request)


async def accept(service: ServiceDep, _: Annotated[None, Depends(check_caller)]) -> AsyncIterator[Classifier]:
    """A classifier for this request, if the caller may and the service can; before a byte of the body is read."""
    with service.accept() as classifier:
        yield classifier


async def with_room(classifier: Annotated[Classifier, Depends(accept)]) -> Classifier:
    """The same for a request that brings images: a full queue refuses it before they have come."""
    classifier.check_room()
    return classifier


async def hold_bytes(classifier: Annotated[Classifier, Depends(with_room)]) -> AsyncIterator[Hold]:
    """What the request's body is accounted by, until it is answered."""
    with classifier.bytes_held() as hold:
        yield hold


async def get_deadline(
    request: Request,
    settings: SettingsDep,
    x_request_timeout_ms: Annotated[
        str | None,
        Header(description="Deadline of this request in milliseconds from its arrival; can only shorten the server's."),
    ] = None,
) -> float:
    """When the answer loses its use, as a time of the event loop's clock.

    Raises:
        InvalidParameter: the header is not a positive number.
    """
    timeout_s = settings.request_timeout_s
    if x_request_timeout_ms is not None:
        try:
            asked_s = float(x_request_timeout_ms) / 1000
        except ValueError:
            asked_s = 0.0
        if not asked_s > 0:  # also true of NaN
            raise InvalidParameter("X-Request-Timeout-Ms must be a positive number of milliseconds.")
        timeout_s = min(timeout_s, asked_s)
    arrival: float = request.state.arrival
    return arrival + timeout_s


ClassifierDep = Annotated[Classifier, Depends(accept)]
RoomyClassifierDep = Annotated[Classifier, Depends(with_room)]
HoldDep = Annotated[Hold, Depends(hold_bytes)]
DeadlineDep = Annotated[float, Depends(get_deadline)]


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
