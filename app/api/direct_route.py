"""DirectRoutes: the quick way to endpoints that take images.

FastAPI spends more on the way to an endpoint, and on solving its dependencies, than the service does on the rest of a request.
A direct route calls the same endpoint with the same arguments, which it makes itself. The router of FastAPI keeps the endpoint
too, for OpenAPI and for other methods.
"""

from functools import lru_cache
from urllib.parse import parse_qsl

import structlog
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.dependencies import TIMEOUT_HEADER, accepted
from app.api.problems import internal_error, response_to
from app.api.schemas import Ranking
from app.api.state import AppState
from app.errors import ServiceError

_QUERIES = 64
"""Queries whose parameters are kept: clients send the same ones again and again."""

_log = structlog.get_logger(__name__)


class DirectRoutes:
    """ASGI middleware: answers POST at the paths of direct routes; all else is for the application inside.

    Args:
        app: the application inside.
        state: state of the application.
    """

    def __init__(self, app: ASGIApp, state: AppState) -> None:
        self._app = app
        self._state = state
        self._routes = {route.path: route for wire in state.wires.wires for route in wire.direct_routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get(scope.get("path", ""))
        if route is None or scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        scope["route"] = route  # for the log
        response: Response | None = None
        try:
            request = Request(scope, receive, send)
            await self._state.access.check(request)
            with self._state.service.accept() as reserve_bytes:
                images = accepted(request, self._state, reserve_bytes, request.headers.get(TIMEOUT_HEADER))
                version = await images.version(_parameters(scope["query_string"]).get("model"))
                with version.held() as classifier:
                    response = await route.endpoint(request, images.for_model(classifier), _ranking(scope["query_string"]))
                    await response(scope, receive, send)
        except (ServiceError, RequestValidationError) as error:
            await response_to(error, scope["path"], self._state.wires)(scope, receive, send)
        except ClientDisconnect:
            raise
        except Exception:
            _log.exception("unexpected error")
            if response is not None:  # some of it may be out; the server has to cut the connection
                raise
            await self._state.wires.render(scope["path"], internal_error(), {})(scope, receive, send)


@lru_cache(_QUERIES)
def _parameters(query: bytes) -> dict[str, str]:
    return dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))  # as starlette has them


@lru_cache(_QUERIES)
def _ranking(query: bytes) -> Ranking:
    try:
        return Ranking.model_validate(_parameters(query))
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None
