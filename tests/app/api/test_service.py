"""Headers, errors and metrics of every request, and the routes other than /predict."""

import asyncio
import json
import re
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Message

from app.decoding.pool.select import make_decoder
from app.decoding.pool.threads import ThreadDecoder
from app.errors import Draining, StartError
from app.main import create_app
from app.metrics import Metrics
from app.serving.classifier import Classifier
from app.serving.loading import load_classifier
from app.serving.service import Service
from app.settings import read_settings
from tests.app.conftest import OpenClient
from tests.support.models import png
from tests.support.predict import Held, assert_problem


async def test_model_is_described(client: httpx.AsyncClient) -> None:
    assert (await client.get("/model")).json() == {
        "name": "tiny-dinov2",
        "architecture": "Dinov2ForImageClassification",
        "labels": [f"class {index}" for index in range(10)],
        "labels_source": "config.json",
        "activation": "softmax",
        "image_size": 28,
        "patch_size": 7,
        "served_by": "vit-serve",
        "parameters": 31_562,
        "output_size": 10,
        "features": [{"name": "token+avg", "size": 64}, {"name": "token", "size": 32}, {"name": "avg", "size": 32}],
        "explanations": ["relevance", "rollout"],
        "device": "cpu",
        "dtype": "float32",
        "preprocessing": (
            "resize shortest edge to 32 (bicubic), crop centre 28 x 28, mean 0.485/0.456/0.406, std 0.229/0.224/0.225"
        ),
        "max_batch_size": 4,
        "compiled_batch_sizes": [],
        "engine": "torch",
    }


async def test_healthy_service_is_live_and_ready(client: httpx.AsyncClient) -> None:
    assert (await client.get("/health/live")).json() == {"status": "live"}
    assert (await client.get("/health/ready")).json() == {"status": "ready", "models": {"tiny-dinov2": "ready"}}
    assert (await client.head("/health/ready")).status_code == 200


async def test_loading_service_is_live_not_ready(tiny_checkpoint: Any) -> None:
    loading = threading.Event()

    def slow(*arguments: Any) -> Classifier:
        loading.wait(30)
        return load_classifier(*arguments)

    app = create_app(read_settings(model=tiny_checkpoint), load=slow)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        assert (await client.get("/health/live")).status_code == 200
        for call in (client.get("/health/ready"), client.post("/predict", content=png(0)), client.get("/model")):
            response = await call
            assert_problem(response, 503, "not_ready")
            assert int(response.headers["retry-after"]) >= 1
        loading.set()
        await app.state.vit_serve.starting
        assert (await client.get("/health/ready")).status_code == 200


async def test_probes_count_as_no_problems(tiny_checkpoint: Any) -> None:
    app = create_app(read_settings(model=tiny_checkpoint))  # not started, so never ready
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for path in ("/health/ready", "/v2/health/ready", "/ping", "/health"):
            assert (await client.get(path)).status_code == (await client.head(path)).status_code == 503
        assert 'vit_http_problems_total{code="not_ready"} 0.0' in (await client.get("/metrics")).text
        await client.post("/predict", content=png(0))
        assert 'vit_http_problems_total{code="not_ready"} 1.0' in (await client.get("/metrics")).text


async def test_load_failure_ends_the_service(tiny_checkpoint: Any) -> None:
    def impossible(*_: Any) -> Classifier:
        raise StartError("VIT_MODEL: no")

    reasons: list[str] = []
    app = create_app(read_settings(model=tiny_checkpoint), load=impossible, on_failure=reasons.append)
    async with app.router.lifespan_context(app):
        await app.state.vit_serve.starting
    assert reasons == ["the model could not be loaded"]


async def test_draining_finishes_work_and_refuses_more(open_client: OpenClient) -> None:
    held = Held()
    async with open_client(held) as client:
        first = asyncio.create_task(client.post("/predict", content=png(0)))
        await held.begun.wait()
        drained = asyncio.create_task(client.app.state.vit_serve.service.drain(30))  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        refused = await client.post("/predict", content=png(1))
        assert_problem(refused, 503, "draining")
        assert (refused.headers["connection"], int(refused.headers["retry-after"]) >= 1) == ("close", True)
        assert_problem(await client.get("/health/ready"), 503, "draining")
        assert (await client.get("/health/live")).status_code == 200
        assert not drained.done()
        held.gate.set()
        assert (await first).status_code == 200
        assert await drained


async def test_late_upload_does_not_block_closing(
    tiny_checkpoint: Path,
) -> None:
    service = Service(read_settings(model=str(tiny_checkpoint)), Metrics(), load_classifier, make_decoder)
    now = asyncio.get_running_loop().time()

    async def arrive() -> None:
        async with service.uploading(now - 1):
            await asyncio.Event().wait()

    upload = asyncio.create_task(arrive())
    for _ in range(2):  # it starts; its deadline has passed, and its task has not run yet
        await asyncio.sleep(0)
    await service.close()
    with pytest.raises(Draining):
        await upload


async def test_decoders_warm_up_while_models_load(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2, timeout=30)  # broken, unless one comes while the other waits

    def load(*arguments: Any, **options: Any) -> Classifier:
        both.wait()
        return load_classifier(*arguments, **options)

    monkeypatch.setattr(ThreadDecoder, "warm_up", lambda decoder: both.wait() and None)
    service = Service(read_settings(model=str(tiny_checkpoint)), Metrics(), load, make_decoder)
    await service.start()
    await service.close()


@pytest.mark.parametrize("model", ["loads", "fails"])
async def test_failed_decoders_stop_the_start(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    def warm_up(_: ThreadDecoder) -> None:
        raise StartError("VIT_DECODE_ISOLATION: no decoding process can be started here")

    def load(*arguments: Any, **options: Any) -> Classifier:
        if model == "fails":
            raise StartError("VIT_MODEL: broken")
        return load_classifier(*arguments, **options)

    monkeypatch.setattr(ThreadDecoder, "warm_up", warm_up)
    service = Service(read_settings(model=str(tiny_checkpoint)), Metrics(), load, make_decoder)
    with pytest.raises(StartError, match="^VIT_MODEL" if model == "fails" else "^VIT_DECODE_ISOLATION"):
        await service.start()
    await service.close()


async def test_drain_returns_false_on_timeout(open_client: OpenClient) -> None:
    held = Held()
    async with open_client(held) as client:
        first = asyncio.create_task(client.post("/predict", content=png(0)))
        await held.begun.wait()
        assert not await client.app.state.vit_serve.service.drain(0.01)  # type: ignore[attr-defined]
        held.gate.set()
        await first


async def test_every_answer_has_id_and_timings(client: httpx.AsyncClient) -> None:
    for response in (await client.post("/predict", content=png(0)), await client.get("/nowhere")):
        assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])
    predicted = (await client.post("/predict", content=png(0))).headers["server-timing"]
    steps = dict(re.findall(r"(\w+);dur=([\d.]+)", predicted))
    assert list(steps) == ["decode_wait", "decode", "queue", "inference", "total"]
    times = {name: float(value) for name, value in steps.items()}
    total = times.pop("total")
    assert total >= sum(times.values()) - 0.05
    assert re.fullmatch(r"total;dur=[\d.]+", (await client.get("/nowhere")).headers["server-timing"])


@pytest.mark.parametrize("sent", ["abc-123", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "a" * 128])
async def test_sane_request_id_is_echoed(client: httpx.AsyncClient, sent: str) -> None:
    assert (await client.get("/health/live", headers={"X-Request-ID": sent})).headers["x-request-id"] == sent


@pytest.mark.parametrize("sent", ["", "a" * 129, "two words", "a\tb", "ü".encode("latin-1"), b"a\x1b[31m"])
async def test_unfit_request_id_is_replaced(client: httpx.AsyncClient, sent: Any) -> None:
    echoed = (await client.get("/health/live", headers={"X-Request-ID": sent})).headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", echoed)


async def test_framework_errors_are_problems(client: httpx.AsyncClient) -> None:
    assert_problem(await client.get("/nowhere"), 404, "not_found")
    assert_problem(await client.post("/predict/", content=png(0)), 404, "not_found")  # and no redirect
    for method in ("GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
        wrong_method = await client.request(method, "/predict")
        assert_problem(wrong_method, 405, "method_not_allowed")
        assert wrong_method.headers["allow"] == "POST"
    assert (await client.head("/predict")).status_code == 405


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/model", "/metrics", "/docs", "/openapi.json"])
async def test_head_is_answered_where_get_is(client: httpx.AsyncClient, path: str) -> None:
    head = await client.head(path)
    assert (head.status_code, head.headers["content-type"]) == (200, (await client.get(path)).headers["content-type"])
    allowed = (await client.delete(path)).headers["allow"]
    assert set(allowed.split(", ")) == {"GET", "HEAD"}


async def test_answers_forbid_caching_and_sniffing(client: httpx.AsyncClient) -> None:
    for response in (await client.get("/model"), await client.get("/nowhere"), await client.post("/predict", content=b"x")):
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-content-type-options"] == "nosniff"


async def test_10_000_paths_add_no_series(client: httpx.AsyncClient) -> None:
    async def series() -> list[str]:
        return [line.split(" ")[0] for line in (await client.get("/metrics")).text.splitlines()]

    async def call(method: str, path: str) -> None:
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": b"",
            "headers": [(b"x-request-id", path.encode())],
        }
        await client.app(scope, nothing, ignore)  # type: ignore[attr-defined] # ten times as fast as through the client

    async def nothing() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def ignore(message: Any) -> None:
        pass

    for method in ("GET", "BREW"):
        await call(method, "/first")
    await client.get("/metrics")
    before = await series()
    for number in range(5000):
        await call("GET", f"/{number:x}/\n{number}")
        await call("BREW", f"/predict/{number}")
    assert await series() == before


async def test_metrics_count_what_happened(client: httpx.AsyncClient) -> None:
    await client.post("/predict", content=png(0))
    await client.post("/predict", content=b"hello")
    await client.get("/nowhere/1")
    await client.get("/nowhere/2")
    lines = (await client.get("/metrics")).text.splitlines()
    for line in (
        'vit_http_requests_total{method="POST",protocol="predict",route="/predict",status="200"} 1.0',
        'vit_http_requests_total{method="POST",protocol="predict",route="/predict",status="415"} 1.0',
        'vit_http_requests_total{method="GET",protocol="predict",route="unmatched",status="404"} 2.0',
        'vit_images_total{model="tiny-dinov2",outcome="ok"} 1.0',
        'vit_images_total{model="tiny-dinov2",outcome="unsupported_image_format"} 1.0',
        'vit_inference_seconds_count{model="tiny-dinov2"} 1.0',
        'vit_batch_size_images_count{model="tiny-dinov2"} 1.0',
        'vit_inflight_images{model="tiny-dinov2"} 0.0',
        'vit_decode_wait_seconds_count{model="tiny-dinov2"} 1.0',
        'vit_decode_seconds_count{model="tiny-dinov2"} 1.0',
        'vit_http_problems_total{code="unsupported_image_format"} 1.0',
        'vit_http_problems_total{code="not_found"} 2.0',
        'vit_http_request_seconds_count{method="POST",route="/predict"} 2.0',
        'vit_queued_images{model="tiny-dinov2"} 0.0',
        "vit_inflight_requests 0.0",
        "vit_ready 1.0",
    ):
        assert line in lines


async def test_cors_allows_configured_origins(open_client: OpenClient) -> None:
    async with open_client(cors_origins="https://shop.example") as client:
        allowed = await client.get("/health/live", headers={"Origin": "https://shop.example"})
        other = await client.get("/health/live", headers={"Origin": "https://evil.example"})
        preflight = await client.options(
            "/predict", headers={"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
        )
    assert allowed.headers["access-control-allow-origin"] == "https://shop.example"
    assert "access-control-allow-origin" not in other.headers
    assert (preflight.status_code, preflight.headers["access-control-allow-methods"]) == (200, "GET, POST")
    assert preflight.headers["x-request-id"]


PREFLIGHT = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        pytest.param({"Origin": "https://evil.example"}, "Disallowed CORS origin.", id="origin"),
        pytest.param({"Access-Control-Request-Method": "DELETE"}, "Disallowed CORS method.", id="method"),
        pytest.param({"Access-Control-Request-Private-Network": "true"}, "Disallowed CORS private-network.", id="network"),
    ],
)
async def test_refused_preflight_is_a_problem(open_client: OpenClient, headers: dict[str, str], says: str) -> None:
    async with open_client(cors_origins="https://shop.example") as client:
        response = await client.options("/predict", headers=PREFLIGHT | headers)
    assert assert_problem(response, 400, "bad_request")["detail"] == says
    assert response.headers["vary"].startswith("Origin")
    assert ("access-control-allow-origin" in response.headers) == ("Origin" not in headers)
    assert response.headers["x-request-id"]


@pytest.mark.parametrize("path", ["/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js"])
@pytest.mark.parametrize("sent", ["x", "lines=1-2", "bytes=", "bytes=a-b", "bytes=5-2", f"bytes={'9' * 4301}-"])
async def test_malformed_range_is_400(client: httpx.AsyncClient, path: str, sent: str) -> None:
    assert_problem(await client.get(path, headers={"Range": sent}), 400, "bad_request")
    head = await client.head(path, headers={"Range": sent})
    assert (head.status_code, head.headers["content-type"]) == (400, "application/problem+json")


async def test_range_beyond_the_end_is_416(client: httpx.AsyncClient) -> None:
    response = await client.get("/docs/swagger-ui.css", headers={"Range": "bytes=99999999-"})
    assert_problem(response, 416, "range_not_satisfiable")
    assert response.headers["content-range"].startswith("bytes */")
    part = await client.get("/docs/swagger-ui.css", headers={"Range": "bytes=0-9"})
    assert (part.status_code, len(part.content)) == (206, 10)


async def test_broken_middleware_gives_a_problem(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Any) -> None:
        raise ZeroDivisionError("confidential")

    monkeypatch.setattr("app.api.middleware._request_id", broken)
    transport = httpx.ASGITransport(create_app(read_settings(model=tiny_checkpoint)), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.get("/health/live")
    assert_problem(response, 500, "internal_error")
    assert "confidential" not in response.text


@pytest.mark.parametrize("sent", [0, 1], ids=["before-the-head", "after-the-head"])
async def test_answer_that_cannot_be_sent_ends_the_exchange(open_client: OpenClient, sent: int) -> None:
    """Nothing is sent after a failure: the server cuts the connection, for half an answer may be out."""
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)
        if len(messages) == sent + 1:
            raise ZeroDivisionError

    body = [{"type": "http.request", "body": png(0), "more_body": False}]

    async def receive() -> Message:
        if not body:
            await asyncio.Event().wait()  # the client stays
        return body.pop()

    async with open_client() as client:
        app = client.app  # type: ignore[attr-defined] # see `open_client`
        scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": [], "state": {}}
        with pytest.raises(ZeroDivisionError):
            await app({**scope, "http_version": "1.1", "scheme": "http", "root_path": "", "client": ("::1", 1)}, receive, send)
    assert len(messages) == sent + 1


async def test_browser_can_read_errors(open_client: OpenClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("app.api.predict.read_image", broken)
    async with open_client(cors_origins="https://shop.example") as client:
        response = await client.post("/predict", content=png(0), headers={"Origin": "https://shop.example"})
    assert_problem(response, 500, "internal_error")
    assert response.headers["access-control-allow-origin"] == "https://shop.example"


async def test_openapi_examples_work(client: httpx.AsyncClient) -> None:
    specification = (await client.get("/openapi.json")).json()
    for path in ("/predict", "/predict/batch"):
        operation = specification["paths"][path]["post"]
        statuses = {"200", "400", "401", "404", "408", "413", "414", "415", "422", "429", "431", "500", "501", "503", "504"}
        assert set(operation["responses"]) == statuses
        example = operation["requestBody"]["content"]["application/json"]["example"]
        response = await client.post(path, json=example)
        assert response.status_code == 200
        assert "error" not in json.dumps(response.json())
    assert (await client.get("/docs")).status_code == 200


async def test_docs_page_loads_from_this_host_alone(client: httpx.AsyncClient) -> None:
    page = (await client.get("/docs")).text
    addresses = re.findall(r"""(?:src|href)=["']([^"']+)|url: ["']([^"']+)""", page)
    loaded = {first or second for first, second in addresses}
    assert {"docs/swagger-ui-bundle.js", "docs/swagger-ui.css", "openapi.json"} <= loaded
    assert not re.search("https?:", page)
    kinds = {}
    for address in loaded:
        response = await client.get(f"/{address}")
        assert response.status_code == 200
        kinds[address.rpartition(".")[2]] = response.headers["content-type"].partition(";")[0]
    assert kinds == {"js": "text/javascript", "css": "text/css", "png": "image/png", "json": "application/json"}


@pytest.mark.parametrize("name", ["__init__.py", "..%2F..%2F..%2Fmain.py", "%2Fetc%2Fpasswd", "swagger-ui.css%00"])
async def test_docs_serve_no_other_file(client: httpx.AsyncClient, name: str) -> None:
    assert_problem(await client.get(f"/docs/{name}"), 404, "not_found")


async def test_documents_can_be_switched_off(open_client: OpenClient) -> None:
    async with open_client(docs=False) as client:
        for path in ("/docs", "/docs/swagger-ui.css", "/openapi.json", "/redoc"):
            problem = assert_problem(await client.get(path), 404, "not_found")
            assert "/docs" not in problem["detail"]
        assert (await client.post("/predict", content=png(0))).status_code == 200


@pytest.mark.parametrize("options", [{"metrics": False}, {"metrics_port": 0}])
async def test_metrics_can_be_switched_off(open_client: OpenClient, options: dict[str, Any]) -> None:
    async with open_client(**options) as client:
        assert_problem(await client.get("/metrics"), 404, "not_found")
        assert "/metrics" not in (await client.get("/openapi.json")).json()["paths"]
        assert (await client.get("/health/ready")).status_code == 200
