"""Dependencies of routes: a checked client, an admitted request with its deadline, and cancellation when the client leaves.

All are `async`, though few of them wait: FastAPI runs a plain function in a thread, which costs more than the function itself.
They are few and large because FastAPI spends more on each dependency than the dependency does.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Depends, Header, Request
from starlette.requests import ClientDisconnect

from app.api.payloads.body import Body
from app.api.state import AppState, state_of
from app.errors import InvalidParameter
from app.http.numbers import whole_number
from app.metrics import Metrics
from app.serving.admission import ReserveBytes
from app.serving.classifier import Classifier
from app.serving.served_model import Version
from app.serving.service import Service

TIMEOUT_HEADER = "x-request-timeout-ms"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request with images, accepted before its body is read."""

    state: AppState
    body: Body
    deadline: float
    """Time of the event loop's clock after which the answer is of no use."""

    async def version(self, name: str | None) -> Version:
        """Return the version of a model that answers now; hold it while it is needed.

        Args:
            name: name of the model; None for the default.

        Raises:
            ModelNotFound: there is no such model.
            NotReady: it is not loaded.
        """
        models = self.state.service.models
        model = models.find(name)
        await models.load_for_request(model, self.deadline)
        return model.ready_version()

    def for_model(self, classifier: Classifier) -> "Admitted":
        """Return the request, admitted to a model."""
        return Admitted(self.state, self.body, self.deadline, classifier)

    @asynccontextmanager
    async def to_model(self, name: str | None) -> AsyncIterator["Admitted"]:
        """Hold the version of a model that answers now, until the context ends; as `version`."""
        with (await self.version(name)).held() as classifier:
            yield self.for_model(classifier)


@dataclass(frozen=True, slots=True)
class Admitted:
    """An accepted request, and the model that answers it."""

    state: AppState
    body: Body
    deadline: float
    """Time of the event loop's clock after which the answer is of no use."""
    classifier: Classifier


async def get_service(request: Request) -> Service:
    """Return the service."""
    return state_of(request.app).service


async def get_metrics(request: Request) -> Metrics:
    """Return the metrics."""
    return state_of(request.app).metrics


async def check_client(request: Request) -> None:
    """Raise if the client may not send this request. Without keys and limits every client may.

    Raises:
        Unauthorized: the request has no valid key.
        RateLimited: too many requests came from this address or with this key.
    """
    await state_of(request.app).access.check(request)


async def check_admin(request: Request) -> None:
    """Raise if the client may not load and unload models.

    Raises:
        Unauthorized, NotSupported, RateLimited: see `Access.check_admin`.
    """
    await state_of(request.app).access.check_admin(request)


async def accept(
    request: Request,
    timeout_ms: Annotated[
        str | None,
        Header(
            alias=TIMEOUT_HEADER,
            description="Deadline of this request in milliseconds from its arrival; can only shorten the server's.",
        ),
    ] = None,
) -> AsyncIterator[Accepted]:
    """Accept a request with images until it is answered: the client may send it, the service is ready, a slot is free.

    Raises:
        Unauthorized, RateLimited: see `check_client`.
        NotReady, Draining, QueueFull: see `Service.accept`.
        InvalidParameter: the deadline is not a positive whole number.
    """
    await check_client(request)
    state = state_of(request.app)
    with state.service.accept() as reserve_bytes:
        yield accepted(request, state, reserve_bytes, timeout_ms)


def accepted(request: Request, state: AppState, reserve_bytes: ReserveBytes, timeout_ms: str | None) -> Accepted:
    """Return a request that was accepted.

    Args:
        request: the request; its client was checked.
        state: state of the application.
        reserve_bytes: what `Service.accept` yielded.
        timeout_ms: deadline that the client asks for.

    Raises:
        InvalidParameter: that is not a positive whole number.
        MalformedRequest: see `Body`.
    """
    deadline = request.scope["state"]["arrival"] + _timeout(timeout_ms, state.settings.request_timeout_s)
    return Accepted(state, Body(request, reserve_bytes, state.slices), deadline)


async def admit(request: Request, images: Annotated[Accepted, Depends(accept)]) -> AsyncIterator[Admitted]:
    """Admit an accepted request to the model that its path names as `name`, or its query as `model`; else to the default.

    Raises:
        ModelNotFound: there is no such model.
        NotReady: it is not loaded.
    """
    async with images.to_model(model_of(request)) as admitted:
        yield admitted


def model_of(request: Request) -> str | None:
    """Return the name of the model that a request is for, as its path or query has it; None for the default."""
    name: str | None = request.path_params.get("name")
    return name if name is not None else request.query_params.get("model")


def _timeout(asked_ms: str | None, longest_s: float) -> float:
    if asked_ms is None:
        return longest_s
    asked = whole_number(asked_ms)
    if not asked:
        raise InvalidParameter("X-Request-Timeout-Ms must be a positive whole number of milliseconds.")
    return min(longest_s, asked / 1000)


ServiceDep = Annotated[Service, Depends(get_service)]
MetricsDep = Annotated[Metrics, Depends(get_metrics)]
CHECKED = [Depends(check_client)]
"""Dependencies of a route that needs a key and takes no images."""

AcceptedDep = Annotated[Accepted, Depends(accept)]
AdmittedDep = Annotated[Admitted, Depends(admit)]


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """Await the work, and cancel it if the client disconnects. The request's body must have been read.

    Raises:
        ClientDisconnect: the client has gone.
    """
    waiting, gone, done = asyncio.current_task(), False, False
    assert waiting is not None

    def leave(_: asyncio.Task[None]) -> None:
        nonlocal gone
        if not done:  # else this call was on its way before the callback was removed
            gone = True
            waiting.cancel()

    watch = asyncio.create_task(_disconnected(request))
    watch.add_done_callback(leave)
    try:
        return await work
    except BaseException as error:
        if gone and waiting.uncancel() == 0 and isinstance(error, asyncio.CancelledError):
            raise ClientDisconnect from None
        raise
    finally:
        done = True
        watch.remove_done_callback(leave)
        watch.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
