"""KServe's protocol v1 and TensorFlow Serving's REST API over a real socket."""

from typing import Any

import httpx
import pytest

from tests.app.api.protocols.conftest import CAT, PROBABILITIES, OpenService, assert_error
from tests.support.predict import base64_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

CAT64 = base64_of(CAT)
PREDICT = "/v1/models/vit:predict"


@pytest.mark.parametrize("version", ["", "/versions/0", "/versions/1"])
async def test_columns_are_answered_with_columns(service: httpx.AsyncClient, version: str) -> None:
    content = b'{"inputs":{"image":[{"b64":"%b"}]}}' % CAT64.encode()
    response = await service.post(f"/v1/models/vit{version}:predict", content=content)
    assert set(response.json()) == {"outputs"}
    outputs = response.json()["outputs"]
    assert outputs["logits"] == [[2, 1, 0]]
    assert outputs["probabilities"][0] == pytest.approx(PROBABILITIES, abs=1e-6)


@pytest.mark.parametrize(
    "instance",
    [CAT64, {"b64": CAT64}, {"image": {"b64": CAT64}}, {"image_bytes": {"b64": CAT64}}, {"image": CAT64, "id": 7}],
    ids=["string", "b64", "image-b64", "image-bytes", "image-beside-others"],
)
async def test_rows_are_answered_with_rows(service: httpx.AsyncClient, instance: Any) -> None:
    response = await service.post(PREDICT, json={"instances": [instance, instance]})
    predictions = response.json()["predictions"]
    assert [row["logits"] for row in predictions] == [[2, 1, 0]] * 2
    assert predictions[1]["probabilities"] == pytest.approx(PROBABILITIES, abs=1e-6)


@pytest.mark.parametrize(
    "inputs", [[CAT64], CAT64, {"b64": CAT64}, {"anything": [CAT64]}], ids=str.split("list one b64 column")
)
async def test_forms_of_inputs(service: httpx.AsyncClient, inputs: Any) -> None:
    assert (await service.post(PREDICT, json={"inputs": inputs})).json()["outputs"]["logits"] == [[2, 1, 0]]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"instances": [{"b64": CAT64}, {"b64": "!"}]}, "instance 1"),
        ({"instances": []}, "no instance"),
        ({"instances": [5]}, "base64"),
        ({"instances": {"b64": CAT64}}, "list"),
        ({"instances": [CAT64] * 33}, "more than 32 instances"),
        ({"instances": [CAT64], "inputs": [CAT64]}, "not both"),
        ({"instances": ["aGVsbG8="] * 100_000}, "far more than images"),
        ({"instances": [CAT64], "signature_name": "other"}, "serving_default"),
        ({}, "instances"),
    ],
)
async def test_refusals(service: httpx.AsyncClient, content: Any, says: str) -> None:
    assert_error(await service.post(PREDICT, json=content), 400, says)


async def test_descriptions(open_service: OpenService) -> None:
    async with open_service(model_aliases="cats") as client:
        listed = (await client.get("/v1/models")).json()
        assert (listed["models"], [model["id"] for model in listed["data"]]) == (["vit", "cats"], ["vit", "cats"])
        available = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        for path in ("/v1/models/cats", "/v1/models/cats/versions/1", "/v1/models/cats/versions/0"):
            model = (await client.get(path)).json()
            assert (model["name"], model["ready"], model["model_version_status"]) == ("cats", True, [available])
        metadata = (await client.get("/v1/models/vit/metadata")).json()
        signature = metadata["metadata"]["signature_def"]["signatureDef"]["serving_default"]
        assert set(signature["outputs"]) == {"probabilities", "logits"}
        for path in ("/v1/models/nope", "/v1/models/vit/versions/2", "/v1/models/nope/metadata"):
            assert_error(await client.get(path), 404)
        assert_error(await client.post("/v1/models/nope:predict", json={"instances": [CAT64]}), 404, "served are vit, cats")
        assert_error(await client.post("/v1/models/vit:explain", json={"instances": [CAT64]}), 405)


async def test_greeting_is_kserves_liveness(service: httpx.AsyncClient) -> None:
    response = await service.get("/", headers={"Accept": "*/*"})
    assert (response.json()["status"], response.headers["vary"]) == ("alive", "Accept")
