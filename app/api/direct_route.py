"""DirectRoutes: the quick way to endpoints that take images.

FastAPI spends more on the way to an endpoint, and on solving its dependencies, than the service does on the rest of a request.
A direct route calls the same endpoint with the same arguments, which it makes itself. The router of FastAPI keeps the endpoint
too, for OpenAPI and for other methods.
"""

from contextlib import asynccontextmanager

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.dependencies import TIMEOUT_HEADER, accept, model_of
from app.api.problems import response_to
from app.api.schemas import Ranking
from app.api.wire import DirectRoute, Wires
from app.errors import ServiceError

_accept = asynccontextmanager(accept)


class DirectRoutes:
    """ASGI middleware: answers POST at the paths of direct routes; all else is for the application inside."""

    def __init__(self, app: ASGIApp, wires: Wires) -> None:
        self._app = app
        self._wires = wires
        self._routes = {route.path: route for wire in wires.wires for route in wire.direct_routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get(scope.get("path", ""))
        if route is None or scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        scope["route"] = route  # for the log
        request = Request(scope, receive, send)
        try:
            await _answer(route, request, scope, receive, send)
        except (ServiceError, RequestValidationError) as error:
            await response_to(error, scope["path"], self._wires)(scope, receive, send)


async def _answer(route: DirectRoute, request: Request, scope: Scope, receive: Receive, send: Send) -> None:
    async with (
        _accept(request, request.headers.get(TIMEOUT_HEADER)) as accepted,
        accepted.to_model(model_of(request)) as admitted,
    ):
        response = await route.endpoint(request, admitted, _ranking(request))
        await response(scope, receive, send)


def _ranking(request: Request) -> Ranking:
    try:
        return Ranking.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None
