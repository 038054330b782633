"""`POST /invocations` over a real socket: whose it is is decided by the request's own shape."""

import json
import struct
from typing import Any

import httpx
import pytest

from tests.app.api.protocols.conftest import CAT
from tests.support.predict import base64_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

CAT64 = base64_of(CAT)
FRAME = {"index": [0, 1], "columns": ["image"], "data": [[CAT64], [CAT64]]}


SHAPES: dict[str, tuple[dict[str, Any], Any]] = {
    "raw": ({"content": CAT, "headers": {"Content-Type": "image/jpeg"}}, ["cat", "dog", "espresso"]),
    "x-image": ({"content": CAT, "headers": {"Content-Type": "application/x-image"}}, ["cat", "dog", "espresso"]),
    "no-type": ({"content": CAT}, ["cat", "dog", "espresso"]),
    "multipart": ({"files": {"body": CAT}}, ["cat", "dog", "espresso"]),
    "huggingface": ({"json": {"inputs": CAT64}}, ["cat", "dog", "espresso"]),
    "huggingface-list": ({"json": {"inputs": [CAT64], "parameters": {"top_k": 1}}}, [["cat"]]),
    "mlflow-split": ({"json": {"dataframe_split": FRAME}}, {"predictions": ["cat", "cat"]}),
    "mlflow-records": ({"json": {"dataframe_records": [{"image": CAT64, "id": 3}]}}, {"predictions": ["cat"]}),
    "mlflow-inputs": ({"json": {"inputs": [CAT64]}}, {"predictions": ["cat"]}),
    "mlflow-params": ({"json": {"inputs": [CAT64], "params": {"top_k": 1}}}, {"predictions": ["cat"]}),
    "mlflow-top-2": ({"json": {"inputs": [CAT64], "params": {"top_k": 2}}}, {"predictions": [["cat", "dog"]]}),
    "mlflow-unnamed": ({"json": {"dataframe_split": {"columns": [0], "data": [[CAT64]]}}}, {"predictions": ["cat"]}),
    "mlflow-columns-alone": ({"json": {"inputs": {"image": [CAT64]}}}, {"predictions": ["cat"]}),
    "mlflow-columns": ({"json": {"inputs": {"image": [CAT64]}, "params": {}}}, {"predictions": ["cat"]}),
}


def labels(answer: Any) -> Any:
    """Replace each `{"label", "score"}` by its label."""
    if isinstance(answer, list):
        return [labels(each) for each in answer]
    return answer["label"] if "label" in answer else {key: labels(value) for key, value in answer.items()}


@pytest.mark.parametrize("path", ["/invocations", "/endpoints/any-name/invocations"])
@pytest.mark.parametrize("name", SHAPES)
async def test_shape_decides(service: httpx.AsyncClient, name: str, path: str) -> None:
    request, expected = SHAPES[name]
    response = await service.post(path, **request)
    assert response.status_code == 200, response.text
    assert labels(response.json()) == expected


async def test_instances_are_answered_as_v1_does(service: httpx.AsyncClient) -> None:
    content = {"instances": [{"b64": CAT64}]}
    expected = (await service.post("/v1/models/vit:predict", json=content)).json()
    assert (await service.post("/invocations", json=content)).json() == expected


async def test_image_is_answered_natively(service: httpx.AsyncClient) -> None:
    expected = (await service.post("/predict", json={"image": CAT64})).json()
    assert (await service.post("/invocations", json={"image": CAT64})).json() == expected


async def test_tritons_media_type_is_v2(service: httpx.AsyncClient) -> None:
    element = struct.pack("<I", len(CAT)) + CAT
    tensor = {"name": "image", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(element)}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    kind = "application/vnd.sagemaker-triton.binary+json;json-header-size="
    response = await service.post("/invocations", content=head + element, headers={"Content-Type": f"{kind}{len(head)}"})
    sent = response.headers["content-type"]
    assert sent.startswith(kind)
    length = int(sent.removeprefix(kind))
    assert [output["name"] for output in json.loads(response.content[:length])["outputs"]] == [
        "logits",
        "probabilities",
        "labels",
    ]
    assert response.content[length : length + 12] == bytes.fromhex("000000400000803f00000000")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"content": CAT, "headers": {"Accept": "text/html"}}, 406),
        ({"content": b"a,b", "headers": {"Content-Type": "text/csv"}}, 415),
        ({"json": {"foo": 1}}, 400),
        ({"json": {"dataframe_split": {"columns": ["image"], "data": [[CAT64, 1]]}}}, 400),
        ({"json": {"dataframe_split": {"columns": ["a", "b"], "data": [[CAT64, 1]]}}}, 400),
        ({"json": {"dataframe_split": FRAME, "dataframe_records": []}}, 400),
        ({"json": {"dataframe_split": {"columns": ["image", "image"], "data": [[CAT64, CAT64]]}}}, 400),
        ({"json": {"instances": [CAT64], "parameters": {"maxPredictions": 1}}}, 400),
        ({"json": {"instances": [CAT64], "inputs": [CAT64]}}, 400),
        ({"json": {"image": CAT64, "top_k": 1}}, 400),
        ({"json": {"dataframe_records": []}}, 400),
        ({"json": {"inputs": [CAT64], "params": {"temperature": 1}}}, 400),
        ({"json": {"inputs": [1, 2]}}, 400),
        ({"content": b"x", "headers": {"Content-Type": "application/vnd.sagemaker-triton.binary+json"}}, 400),
    ],
)
async def test_refusals(service: httpx.AsyncClient, request_: dict[str, Any], status: int) -> None:
    response = await service.post("/invocations", **request_)
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error", "error_code", "message"}
    assert all(isinstance(value, str) for value in response.json().values())


async def test_acceptable_answers(service: httpx.AsyncClient) -> None:
    for accepted in ("application/json", "*/*", "text/html, application/json;q=0.5", "application/*"):
        assert (await service.post("/invocations", content=CAT, headers={"Accept": accepted})).status_code == 200


async def test_probes_of_mlflow(service: httpx.AsyncClient) -> None:
    assert (await service.get("/version")).text.count(".") == 2
    assert (await service.head("/ping")).status_code == 200
