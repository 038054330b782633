"""Vertex AI's custom containers over a real socket."""

from typing import Any

import httpx
import pytest

from app.errors import StartError
from app.main import create_app
from app.settings import read_settings
from tests.app.api.protocols.conftest import CAT, OpenService, state_behind
from tests.support.predict import base64_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

CAT64 = base64_of(CAT)
ROUTE = "/v1/projects/p/locations/l/endpoints/1:predict"


def assert_error(response: httpx.Response, status: int) -> None:
    """Check for an error in the form of Google's APIs."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert (error["code"], error["status"].isupper(), isinstance(error["message"], str)) == (status, True, True)


@pytest.fixture
def on_vertex(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("AIP_MODE", "PREDICTION")
    monkeypatch.setenv("AIP_HTTP_PORT", "0")
    monkeypatch.setenv("AIP_PREDICT_ROUTE", ROUTE)
    monkeypatch.setenv("AIP_HEALTH_ROUTE", "/v1/projects/p/health")
    return monkeypatch


async def test_googles_schema(open_service: OpenService, on_vertex: pytest.MonkeyPatch) -> None:
    content = {
        "instances": [{"content": CAT64, "mimeType": "image/jpeg"}],
        "parameters": {"maxPredictions": 2.0, "confidenceThreshold": 0.1},
    }
    async with open_service() as client:
        response = await client.post(f"{ROUTE}?%24alt=json%3Benum-encoding%3Dint", json=content)
        (prediction,) = response.json()["predictions"]
        assert (prediction["ids"], prediction["displayNames"]) == (["0", "1"], ["cat", "dog"])
        assert prediction["confidences"] == pytest.approx([0.66524096, 0.24472847], abs=1e-6)
        forms = [{"b64": CAT64}, CAT64, {"image": {"b64": CAT64}}]
        predictions = (await client.post(ROUTE, json={"instances": forms})).json()["predictions"]
        assert len(predictions) == 3
        assert predictions[0] == predictions[1] == predictions[2]
        threshold = {"instances": [CAT64], "parameters": {"confidenceThreshold": 1}}
        assert (await client.post(ROUTE, json=threshold)).json()["predictions"][0]["ids"] == []


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"instances": []},
        {"instances": [CAT64], "parameters": {"maxPredictions": 1.5}},
        {"instances": [CAT64], "parameters": {"confidenceThreshold": "x"}},
        {"instances": [CAT64], "parameters": {"topN": 1}},
        {"instances": [CAT64], "parameters": {"confidenceThreshold": 1e39}},
        {"instances": [CAT64, "!"]},
    ],
)
async def test_refusals(open_service: OpenService, on_vertex: pytest.MonkeyPatch, content: Any) -> None:
    async with open_service() as client:
        assert_error(await client.post(ROUTE, json=content), 400)


async def test_answer_of_300_images_is_small(open_service: OpenService, on_vertex: pytest.MonkeyPatch) -> None:
    async with open_service(max_images_per_request=300, max_inflight_images=300) as client:
        response = await client.post(ROUTE, json={"instances": [CAT64] * 300})
        assert len(response.json()["predictions"]) == 300
        assert len(response.content) < 1_500_000


async def test_health_needs_no_key(open_service: OpenService, on_vertex: pytest.MonkeyPatch) -> None:
    async with open_service(api_keys="secret") as client:
        assert (await client.get("/v1/projects/p/health")).status_code == 200
        assert_error(await client.post(ROUTE, json={"instances": [CAT64]}), 401)
        state_behind(client).service.draining = True
        assert_error(await client.get("/v1/projects/p/health"), 503)


async def test_predictions_may_take_the_native_path(open_service: OpenService, on_vertex: pytest.MonkeyPatch) -> None:
    on_vertex.setenv("AIP_PREDICT_ROUTE", "/predict")
    on_vertex.setenv("AIP_HEALTH_ROUTE", "/health")
    async with open_service() as client:
        assert "predictions" in (await client.post("/predict", json={"instances": [CAT64]})).json()
        assert (await client.get("/health")).status_code == 200
        assert_error(await client.post("/predict", content=b"x"), 400)


@pytest.mark.parametrize(
    ("variable", "path"),
    [
        ("AIP_PREDICT_ROUTE", "/invocations"),
        ("AIP_PREDICT_ROUTE", "/"),
        ("AIP_PREDICT_ROUTE", "/v1/models/vit:predict"),
        ("AIP_PREDICT_ROUTE", "/v2/models/vit/infer"),
        ("AIP_PREDICT_ROUTE", "/predictions/vit"),
        ("AIP_PREDICT_ROUTE", "/endpoints/x/invocations"),
        ("AIP_HEALTH_ROUTE", "/metrics"),
        ("AIP_HEALTH_ROUTE", "/docs"),
        ("AIP_HEALTH_ROUTE", "/openapi.json"),
        ("AIP_HEALTH_ROUTE", "/info"),
        ("AIP_HEALTH_ROUTE", ROUTE),
    ],
)
async def test_taken_path_ends_the_start(on_vertex: pytest.MonkeyPatch, variable: str, path: str) -> None:
    on_vertex.setenv(variable, path)
    with pytest.raises(StartError, match="belongs to another protocol"):
        create_app(read_settings())


async def test_vertex_alone_needs_its_path() -> None:
    for health in (None, "/vertex/health"):
        with pytest.raises(StartError, match="vertex alone needs AIP_PREDICT_ROUTE"):
            create_app(read_settings(protocols="vertex", vertex_health_route=health))


async def test_port_of_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGEMAKER_BIND_TO_PORT", "8081")
    assert read_settings().port == 8081
    monkeypatch.setenv("AIP_HTTP_PORT", "8082")
    assert read_settings().port == 8081
    monkeypatch.setenv("AIP_MODE", "PREDICTION")
    assert read_settings().port == 8082
    monkeypatch.setenv("VIT_PORT", "8083")
    assert read_settings().port == 8083
    monkeypatch.delenv("VIT_PORT")
    monkeypatch.setenv("AIP_HTTP_PORT", "many")
    with pytest.raises(StartError, match="VIT_PORT"):
        read_settings()
