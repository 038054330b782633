"""Promises of every route: keys, limits, deadlines, cancellation, drain, ids and metrics, in each protocol's own form.

A new route fails `test_every_route_is_known` until it stands in one of the tables.
"""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import Route

from app.api import docs, metrics, page
from app.pixels import Pixels
from app.serving.runner import ModelRunner
from app.serving.service import Service
from app.settings import PROTOCOLS
from benchmarks.watch import metrics_of
from tests.app.api.protocols.conftest import CAT, OpenService, state_behind, stub_run
from tests.support.predict import base64_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

CAT64 = base64_of(CAT)
VERTEX = {"vertex_predict_route": "/vertex:predict", "vertex_health_route": "/vertex/health"}
V2: dict[str, Any] = {"json": {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [CAT64]}]}}
V1: dict[str, Any] = {"json": {"instances": [{"b64": CAT64}]}}
RAW: dict[str, Any] = {"content": CAT}

IMAGE_ROUTES: dict[tuple[str, str], tuple[str, str, dict[str, Any]]] = {
    ("POST", "/predict"): ("predict", "/predict", RAW),
    ("POST", "/predict/batch"): ("predict", "/predict/batch", {"json": {"images": [CAT64]}}),
    ("POST", "/embed"): ("predict", "/embed", RAW),
    ("POST", "/embed/batch"): ("predict", "/embed/batch", {"json": {"images": [CAT64]}}),
    ("POST", "/explain"): ("predict", "/explain", RAW),
    ("POST", "/v1/embeddings"): ("openai", "/v1/embeddings", {"json": {"model": "vit", "input": CAT64}}),
    ("POST", "/"): ("huggingface", "/", RAW),
    ("POST", "/invocations"): ("sagemaker", "/invocations", RAW),
    ("POST", "/models/{name}"): ("huggingface", "/models/vit", RAW),
    ("POST", "/endpoints/{endpoint}/invocations"): ("sagemaker", "/endpoints/e/invocations", RAW),
    ("POST", "/predictions/{name}"): ("torchserve", "/predictions/vit", RAW),
    ("PUT", "/predictions/{name}"): ("torchserve", "/predictions/vit", RAW),
    ("POST", "/predictions/{name}/{version}"): ("torchserve", "/predictions/vit/1", RAW),
    ("PUT", "/predictions/{name}/{version}"): ("torchserve", "/predictions/vit/1", RAW),
    ("POST", "/v1/models/{name}:predict"): ("v1", "/v1/models/vit:predict", V1),
    ("POST", "/v1/models/{name}/versions/{version}:predict"): ("v1", "/v1/models/vit/versions/0:predict", V1),
    ("POST", "/v2/models/{name}/infer"): ("v2", "/v2/models/vit/infer", V2),
    ("POST", "/v2/models/{name}/versions/{version}/infer"): ("v2", "/v2/models/vit/versions/1/infer", V2),
    ("POST", "/vertex:predict"): ("vertex", "/vertex:predict", V1),
}
"""Routes that take images: their protocol, a path, and a request that they answer."""

_MODEL, _VERSION = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
OTHER_ROUTES = {
    ("GET", "/model"): "predict",
    ("GET", "/models"): "predict",
    ("GET", "/info"): "huggingface",
    **dict.fromkeys(
        [
            ("GET", "/v1/models"),
            ("GET", "/v1/models/{name}"),
            ("GET", "/v1/models/{name}/versions/{version}"),
            ("GET", "/v1/models/{name}/metadata"),
            ("GET", "/v1/models/{name}/versions/{version}/metadata"),
        ],
        "v1",
    ),
    **dict.fromkeys(
        [("GET", path) for path in ("/v2", "/v2/", "/v2/models", "/v2/models/stats", _MODEL, _VERSION)]
        + [("GET", f"{model}/{leaf}") for model in (_MODEL, _VERSION) for leaf in ("ready", "config", "stats")]
        + [("POST", "/v2/repository/index")]
        + [(method, path) for method in ("GET", "POST") for path in ("/v2/logging", "/v2/trace/setting")]
        + [(method, f"{_MODEL}/trace/setting") for method in ("GET", "POST")]
        + [("GET", f"/v2/{{kind}}sharedmemory/{rest}") for rest in ("status", "region/{region}/status")]
        + [("POST", "/v2/{kind}sharedmemory/unregister")]
        + [("POST", f"/v2/{{kind}}sharedmemory/region/{{region}}/{call}") for call in ("unregister", "register")],
        "v2",
    ),
}
"""Routes that need a key and take no images, with their protocol."""

ADMIN = {("POST", f"/v2/repository/models/{{name}}/{call}") for call in ("load", "unload")}
"""Routes that need the admin key."""

PUBLIC = {
    ("GET", path)
    for path in (
        *("/", "/health", "/ping", "/version", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"),
        *("/vertex/health", "/docs", "/openapi.json", "/metrics"),
    )
}
"""Routes that need no key."""

FORMS = {
    "predict": {"type", "title", "status", "detail", "code"},
    "torchserve": {"code", "type", "message"},
    "sagemaker": {"error", "error_code", "message"},
}
"""Members of an error of each protocol; `error` alone in the others."""

BATCHES = {("POST", "/predict/batch"), ("POST", "/embed/batch")}
"""Routes on which each image has an outcome of its own."""

APART = {("POST", "/explain")}
"""Routes whose images are not in the batches of the others."""

every_image_route = pytest.mark.parametrize("route", IMAGE_ROUTES, ids=" ".join)


def assert_form(response: httpx.Response, protocol: str, status: int) -> None:
    assert response.status_code == status, response.text
    problem = "application/problem+json" if protocol == "predict" else "application/json"
    assert response.headers["content-type"] == problem
    assert set(response.json()) == FORMS.get(protocol, {"error"})
    assert response.headers["x-request-id"]
    assert response.headers["cache-control"] == "no-store"


def filled(path: str) -> str:
    return path.format(name="vit", version="1", kind="system", region="r")


async def ask(client: httpx.AsyncClient, route: tuple[str, str], **headers: str) -> httpx.Response:
    _, path, request = IMAGE_ROUTES[route]
    return await client.request(route[0], path, headers=headers, **request)


def routes_of(app: FastAPI) -> set[tuple[str, str]]:
    """Return method and path of all routes, also of those in routers."""
    routers = [router for wire in app.state.vit_serve.wires.wires for router in wire.routers]
    routers += [docs.router, metrics.router, page.router]
    routes = [*app.routes, *(route for router in routers for route in router.routes)]
    with_path = [route for route in routes if isinstance(route, Route | APIRoute)]
    assert {type(route).__name__ for route in routes} <= {"Route", "DirectRoute", "PageRoute", "APIRoute", "_IncludedRouter"}
    return {(method, route.path) for route in with_path for method in (route.methods or set()) - {"HEAD"}}


async def test_every_route_is_known(open_service: OpenService) -> None:
    async with open_service(**VERTEX) as client:
        known = IMAGE_ROUTES.keys() | OTHER_ROUTES.keys() | PUBLIC | ADMIN | {("GET", "/docs/{name}"), ("GET", "/page/{name}")}
        assert routes_of(client.app) == known  # type: ignore[attr-defined] # set by `open_service`


@every_image_route
async def test_answer_has_its_id_and_is_counted(open_service: OpenService, route: tuple[str, str]) -> None:
    protocol, _, _ = IMAGE_ROUTES[route]
    async with open_service(**VERTEX) as client:
        response = await ask(client, route, **{"X-Request-ID": "mine"})
        assert (response.status_code, response.headers["x-request-id"]) == (200, "mine"), response.text
        assert "inference;dur=" in response.headers["server-timing"]
        counted = metrics_of((await client.get("/metrics")).content)
        method, path = route
        series = f'vit_http_requests_total{{method="{method}",protocol="{protocol}",route="{path}",status="200"}}'
        assert counted[series] == 1


@pytest.fixture(scope="module")
def everything() -> dict[str, Any]:
    return {**VERTEX, "api_keys": "secret", "rate_limit_per_key": None}


async def test_every_route_needs_a_key(open_service: OpenService, everything: dict[str, Any]) -> None:
    async with open_service(**everything) as client:
        for route, (protocol, path, request) in IMAGE_ROUTES.items():
            assert_form(await client.request(route[0], path, **request), protocol, 401)
        for (method, path), protocol in OTHER_ROUTES.items():
            response = await client.request(method, filled(path))
            assert_form(response, protocol, 401)
            assert response.headers["www-authenticate"] == "Bearer"
        for method, path in PUBLIC:
            assert (await client.request(method, path)).status_code == 200


@pytest.mark.parametrize("headers", [{"Authorization": "Bearer secret"}, {"X-API-Key": "secret"}, {"auth": ("u", "secret")}])
async def test_key_opens_every_route(open_service: OpenService, everything: dict[str, Any], headers: dict[str, Any]) -> None:
    sent = headers if "auth" in headers else {"headers": headers}
    async with open_service(**everything) as client:
        for route, (_, path, request) in IMAGE_ROUTES.items():
            assert (await client.request(route[0], path, **request, **sent)).status_code == 200
        for method, path in OTHER_ROUTES:
            assert (await client.request(method, filled(path), **sent)).status_code in (200, 400, 501)


async def test_every_route_is_rate_limited(open_service: OpenService) -> None:
    routes = len(IMAGE_ROUTES) + len(OTHER_ROUTES)
    async with open_service(**VERTEX, rate_limit_per_address="1/hour") as client:
        await client.get("/model")
        for route, (protocol, path, request) in IMAGE_ROUTES.items():
            response = await client.request(route[0], path, **request)
            assert_form(response, protocol, 429)
            assert int(response.headers["retry-after"]) > 0
        for (method, path), protocol in OTHER_ROUTES.items():
            assert_form(await client.request(method, filled(path)), protocol, 429)
        assert metrics_of((await client.get("/metrics")).content)['vit_rate_limited_requests_total{limit="address"}'] == routes


class Blocked:
    """Inference that waits until its gate is opened."""

    def __init__(self) -> None:
        self.begun, self.gate = asyncio.Event(), asyncio.Event()

    async def __call__(self, runner: ModelRunner, images: Sequence[Pixels]) -> Any:
        self.begun.set()
        await self.gate.wait()
        return await stub_run(runner, images)


async def test_full_queue_refuses_on_every_route(open_service: OpenService) -> None:
    blocked = Blocked()
    async with open_service(blocked, **VERTEX, max_inflight_images=1) as client:
        first = asyncio.create_task(client.post("/predict", content=CAT))
        await blocked.begun.wait()
        for route, (protocol, _, _) in IMAGE_ROUTES.items():
            response = await ask(client, route)
            assert_form(response, protocol, 429)
            assert int(response.headers["retry-after"]) >= 1
        for method, path in PUBLIC:
            assert (await client.request(method, path)).status_code == 200
        blocked.gate.set()
        assert (await first).status_code == 200


async def test_deadline_holds_on_every_route(open_service: OpenService) -> None:
    blocked = Blocked()
    async with open_service(blocked, **VERTEX) as client:
        for route, (protocol, _, _) in IMAGE_ROUTES.items():
            if route in BATCHES:  # each image has an outcome of its own
                continue
            assert_form(await ask(client, route, **{"X-Request-Timeout-Ms": "50"}), protocol, 504)
        blocked.gate.set()


async def test_large_body_is_refused_on_every_route(open_service: OpenService) -> None:
    async with open_service(**VERTEX, max_image_bytes=1000, max_request_bytes=1000) as client:
        for route, (protocol, _, _) in IMAGE_ROUTES.items():
            response = await ask(client, route)
            assert_form(response, protocol, 413)
            assert response.headers["connection"] == "close"


async def test_draining_refuses_on_every_route(open_service: OpenService) -> None:
    async with open_service(**VERTEX) as client:
        state_behind(client).service.draining = True
        for route, (protocol, _, _) in IMAGE_ROUTES.items():
            response = await ask(client, route)
            assert_form(response, protocol, 503)
            assert (response.headers["connection"], int(response.headers["retry-after"]) >= 1) == ("close", True)
        for path in ("/health", "/ping", "/v2/health/ready", "/vertex/health", "/health/ready"):
            assert (await client.get(path)).status_code == 503
        for path in ("/", "/health/live", "/v2/health/live"):
            assert (await client.get(path)).status_code == 200


async def test_bug_is_told_in_each_form(open_service: OpenService, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(service: Service) -> None:
        raise RuntimeError("a bug")

    async with open_service(**VERTEX) as client:
        monkeypatch.setattr(Service, "accept", broken)
        for route, (protocol, _, _) in IMAGE_ROUTES.items():
            assert_form(await ask(client, route), protocol, 500)


async def test_failed_inference_is_told_in_each_form(open_service: OpenService) -> None:
    async def failing(runner: ModelRunner, images: Sequence[Pixels]) -> Any:
        raise RuntimeError("the model fails")

    async with open_service(failing, **VERTEX) as client:
        for route, (protocol, _, _) in IMAGE_ROUTES.items():
            if route not in BATCHES | APART:
                assert_form(await ask(client, route), protocol, 500)


@every_image_route
async def test_client_that_leaves_frees_its_slot(open_service: OpenService, route: tuple[str, str]) -> None:
    blocked = Blocked()
    async with open_service(blocked, **VERTEX, max_inflight_images=1) as client:
        with pytest.raises(httpx.ReadTimeout):
            _, path, request = IMAGE_ROUTES[route]
            await client.request(route[0], path, **request, timeout=0.2)
        admission = state_behind(client).service.ready_classifier().admission
        async with asyncio.timeout(30):
            while admission.images:  # noqa: ASYNC110 - the end of a request sets no Event
                await asyncio.sleep(0.01)
        blocked.gate.set()
        assert (await ask(client, route)).status_code == 200


async def test_unknown_paths_and_methods(open_service: OpenService) -> None:
    async with open_service(**VERTEX) as client:
        for path, protocol in (
            ("/v2/x", "v2"),
            ("/v1/models/x/y/z", "v1"),
            ("/predictions/a/b/c", "torchserve"),
            ("/x", "predict"),
        ):
            assert_form(await client.get(path), protocol, 404)
        for path, protocol in (
            ("/v2/models/vit/infer", "v2"),
            ("/invocations", "sagemaker"),
            ("/predictions/vit", "torchserve"),
        ):
            response = await client.get(path)
            assert_form(response, protocol, 405)
            assert "POST" in response.headers["allow"]


@pytest.mark.parametrize("protocol", ["v2", "huggingface", "v1", "torchserve", "vertex", "openai", "predict"])
async def test_protocol_can_be_switched_off(open_service: OpenService, protocol: str) -> None:
    others = {*PROTOCOLS} - {protocol}
    async with open_service(**VERTEX, protocols=",".join(others)) as client:
        for route, (owner, _, _) in IMAGE_ROUTES.items():
            assert (await ask(client, route)).status_code == (200 if owner != protocol else 405 if route[1] == "/" else 404)
        assert (await client.get("/model")).status_code == 200
        assert (await client.get("/health/ready")).status_code == 200


async def test_unreadable_request_is_told_in_both_forms(open_service: OpenService) -> None:
    async with open_service() as client:
        host, port = client.base_url.host, client.base_url.port
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"this is no HTTP\r\n\r\n")
        answer = await reader.read()
        writer.close()
        body = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert body["error"] == body["detail"]
        assert body["code"] == "malformed_request"
