"""DirectRoute: the quick way to an endpoint that takes images.

FastAPI spends more on solving an endpoint's dependencies than the service does on the rest of a request. A direct route calls
the same endpoint with the same arguments, which it makes itself. The router of FastAPI keeps the endpoint too, for OpenAPI.
"""

from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from app.api.dependencies import TIMEOUT_HEADER, Admitted, accept, model_of
from app.api.schemas import Ranking

Endpoint = Callable[[Request, Admitted, Ranking], Awaitable[Response]]

_accept = asynccontextmanager(accept)


class DirectRoute(Route):
    """POST route to an endpoint; put it before the routers. Errors are raised as FastAPI raises them."""

    def __init__(self, path: str, endpoint: Endpoint) -> None:
        super().__init__(path, self._call, methods=["POST"])
        self.app = self._call
        self._endpoint = endpoint

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = self
        request = Request(scope, receive, send)
        async with (
            _accept(request, request.headers.get(TIMEOUT_HEADER)) as accepted,
            accepted.to_model(model_of(request)) as admitted,
        ):
            response = await self._endpoint(request, admitted, _ranking(request))
            await response(scope, receive, send)


def _ranking(request: Request) -> Ranking:
    try:
        return Ranking.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None
