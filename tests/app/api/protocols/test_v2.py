"""Open Inference Protocol v2 over a real socket, byte by byte."""

import gzip
import json
import struct
import zlib
from typing import Any

import httpx
import numpy as np
import pytest

from tests.app.api.protocols.conftest import CAT, PROBABILITIES, OpenService, assert_error
from tests.support.predict import base64_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

ELEMENT = struct.pack("<I", len(CAT)) + CAT
INFER = "/v2/models/vit/infer"
LENGTH = "Inference-Header-Content-Length"


def image_input(shape: tuple[int, ...] = (1, 1), size: int = len(ELEMENT), **parameters: Any) -> dict[str, Any]:
    given = {"binary_data_size": size, **parameters}
    return {"name": "image", "shape": shape, "datatype": "BYTES", "parameters": given}


def binary(content: dict[str, Any], *tensors: bytes) -> dict[str, Any]:
    """Return a request whose tensors follow its JSON."""
    head = json.dumps(content, separators=(",", ":")).encode()
    return {"content": b"".join((head, *tensors)), "headers": {LENGTH: str(len(head))}}


def outputs_of(response: httpx.Response) -> dict[str, bytes]:
    """Return the binary outputs of an answer, whose sizes must agree."""
    assert response.headers["content-type"] == "application/octet-stream"
    length = int(response.headers[LENGTH])
    described = json.loads(response.content[:length])["outputs"]
    assert length + sum(output["parameters"]["binary_data_size"] for output in described) == len(response.content)
    outputs, position = {}, length
    for output in described:
        size = output["parameters"]["binary_data_size"]
        outputs[output["name"]] = response.content[position : position + size]
        position += size
    return outputs


async def test_perf_analyzers_image_is_answered(service: httpx.AsyncClient) -> None:
    request = binary({"inputs": [image_input()], "parameters": {"binary_data_output": True}}, ELEMENT)
    assert (request["headers"][LENGTH], len(request["content"])) == ("143", 35189)
    response = await service.post(INFER, **request)
    assert response.status_code == 200
    outputs = outputs_of(response)
    assert list(outputs) == ["logits", "probabilities", "labels"]
    assert outputs["logits"] == bytes.fromhex("000000400000803f00000000")
    np.testing.assert_allclose(np.frombuffer(outputs["probabilities"], "<f4"), PROBABILITIES, atol=1e-6)
    assert outputs["labels"] == b"\x03\0\0\0cat\x03\0\0\0dog\x08\0\0\0espresso"


async def test_classification_gives_the_best_classes(service: httpx.AsyncClient) -> None:
    asked = {"name": "probabilities", "parameters": {"classification": 2, "binary_data": True}}
    response = await service.post(INFER, **binary({"id": "abc", "inputs": [image_input()], "outputs": [asked]}, ELEMENT))
    answer = json.loads(response.content[: int(response.headers[LENGTH])])
    assert (answer["id"], answer["outputs"][0]["shape"], answer["outputs"][0]["datatype"]) == ("abc", [1, 2], "BYTES")
    assert outputs_of(response)["probabilities"] == b"\x0e\0\0\x000.665241:0:cat\x0e\0\0\x000.244728:1:dog"
    asked = {"name": "logits", "parameters": {"classification": 99}}
    response = await service.post(INFER, **binary({"inputs": [image_input()], "outputs": [asked]}, ELEMENT))
    assert response.json()["outputs"][0]["data"] == ["2.000000:0:cat", "1.000000:1:dog", "0.000000:2:espresso"]


@pytest.mark.parametrize("classes", [0, -1, "2", 1.5, True, None, [1]])
async def test_wrong_classification_is_refused(service: httpx.AsyncClient, classes: Any) -> None:
    if classes is None:
        classes = {"a": 1}
    asked = {"name": "logits", "parameters": {"classification": classes}}
    response = await service.post(INFER, **binary({"inputs": [image_input()], "outputs": [asked]}, ELEMENT))
    assert_error(response, 400, "classification")


async def test_pixels_are_answered(service: httpx.AsyncClient) -> None:
    tensor = {"name": "pixels", "shape": [4, 3, 28, 28], "datatype": "UINT8", "parameters": {"binary_data_size": 9408}}
    asked = [{"name": "logits", "parameters": {"binary_data": True}}]
    request = binary({"id": "", "inputs": [tensor], "outputs": asked}, bytes(9408))
    response = await service.post("/v2/models/vit-pixels/infer", **request)
    answer = json.loads(response.content[: int(response.headers[LENGTH])])
    assert "id" not in answer
    assert (answer["model_name"], answer["model_version"]) == ("vit-pixels", "1")
    assert answer["outputs"][0]["shape"] == [4, 3]
    assert len(outputs_of(response)["logits"]) == 48


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("datatype", ["UINT8", "FP32"])
async def test_pixels_in_json_are_answered(service: httpx.AsyncClient, datatype: str, nested: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 28, 28))
    data = pixels.tolist() if nested else pixels.ravel().tolist()
    tensor = {"name": "pixels", "shape": [2, 3, 28, 28], "datatype": datatype, "data": data}
    for name in ("vit", "vit-pixels"):
        response = await service.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]})
        assert response.status_code == 200, response.text
        assert response.json()["outputs"][0] == {"name": "logits", "datatype": "FP32", "shape": [2, 3], "data": [2, 1, 0] * 2}


async def test_json_in_and_json_out(service: httpx.AsyncClient) -> None:
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64_of(CAT)]}
    outputs = [{"name": "labels", "parameters": {"binary_data": False}}]
    content = {"id": "7", "inputs": [tensor], "outputs": outputs, "parameters": {"priority": 2, "timeout": 5_000_000}}
    response = await service.post(INFER, json={**content, "model_name": "vit"})
    assert response.headers["content-type"] == "application/json"
    assert LENGTH not in response.headers
    expected = {"name": "labels", "datatype": "BYTES", "shape": [1, 3], "data": ["cat", "dog", "espresso"]}
    assert response.json() == {"model_name": "vit", "model_version": "1", "id": "7", "outputs": [expected]}


@pytest.mark.parametrize("coding", ["gzip", "deflate", "GZIP"])
async def test_compressed_request_is_inflated(service: httpx.AsyncClient, coding: str) -> None:
    request = binary({"inputs": [image_input()]}, ELEMENT)
    compress = zlib.compress if coding == "deflate" else gzip.compress
    request = {"content": compress(request["content"]), "headers": request["headers"] | {"Content-Encoding": coding}}
    response = await service.post("/v2/models/vit/versions/1/infer", **request)
    assert response.status_code == 200, response.text
    assert response.json()["outputs"][0]["data"] == [2, 1, 0]


async def test_bomb_is_refused(service: httpx.AsyncClient) -> None:
    bomb = gzip.compress(bytes(200_000_000))
    response = await service.post(INFER, content=bomb, headers={LENGTH: "100", "Content-Encoding": "gzip"})
    assert_error(response, 413)


@pytest.mark.parametrize(
    ("content", "coding", "status"),
    [
        (b"abc", "br", 415),
        (b"abc", "gzip, gzip", 415),
        (b"abc", "gzip", 400),
        (gzip.compress(b"{}", mtime=0)[:-3], "gzip", 400),
        (gzip.compress(b"{}", mtime=0) + b"more", "gzip", 400),
        (b"", "gzip", 400),
    ],
)
async def test_broken_compression_is_refused(service: httpx.AsyncClient, content: bytes, coding: str, status: int) -> None:
    response = await service.post(INFER, content=content, headers={"Content-Encoding": coding})
    assert_error(response, status)
    assert response.headers.get("accept-encoding") == ("gzip, deflate" if status == 415 else None)


@pytest.mark.parametrize("size", [65_536, 65_537, 131_072])
async def test_cut_compressed_body_is_refused(service: httpx.AsyncClient, size: int) -> None:
    compressed = zlib.compress(np.random.default_rng(0).integers(0, 4, size, dtype=np.uint8).tobytes())
    for end in (*range(len(compressed) - 12, len(compressed)), len(compressed) // 2):
        for last in (b"", b"\x00", b"\xff"):
            content = compressed[:end] + last
            assert_error(await service.post(INFER, content=content, headers={"Content-Encoding": "deflate"}), 400)


async def test_large_answer_is_compressed_if_asked(service: httpx.AsyncClient) -> None:
    tensor = {"name": "pixels", "shape": [1, 3, 28, 28], "datatype": "UINT8", "parameters": {"binary_data_size": 2352}}
    for accepted, coding in (
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, br", None),
        ("sgzip", None),
        ("", None),
    ):
        request = binary({"inputs": [tensor]}, bytes(2352))
        request["headers"]["Accept-Encoding"] = accepted
        response = await service.post("/v2/models/vit-pixels/infer", **request)
        assert (response.headers.get("content-encoding"), response.headers["vary"]) == (coding, "Accept-Encoding")
        assert response.json()["outputs"][0]["data"] == [2, 1, 0]


async def test_raw_body_is_the_one_input(service: httpx.AsyncClient) -> None:
    response = await service.post(INFER, content=CAT, headers={LENGTH: "0"})
    assert outputs_of(response)["logits"] == bytes.fromhex("000000400000803f00000000")
    response = await service.post("/v2/models/vit-pixels/infer", content=bytes(2352), headers={LENGTH: "0"})
    assert list(outputs_of(response)) == ["logits"]
    assert_error(await service.post("/v2/models/vit-pixels/infer", content=bytes(2351), headers={LENGTH: "0"}), 400)
    assert_error(await service.post(INFER, content=b"", headers={LENGTH: "0"}), 400)


async def test_file_behind_the_json_needs_no_size(service: httpx.AsyncClient) -> None:
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES"}
    assert (await service.post(INFER, **binary({"inputs": [tensor]}, CAT))).status_code == 200


TINY = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64_of(CAT)]}
PIXELS = {"name": "pixels", "shape": [1, 3, 28, 28], "datatype": "FP32"}

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "length-over-the-body": ({"content": b"{}", "headers": {LENGTH: "9999"}}, "more than the body has"),
    "length-no-number": ({"content": b"{}", "headers": {LENGTH: "two"}}, "whole number"),
    "negative-length": ({"content": b"{}", "headers": {LENGTH: "-1"}}, "whole number"),
    "size-one-short": (binary({"inputs": [image_input(size=len(ELEMENT) - 1)]}, ELEMENT), "binary bytes"),
    "element-one-short": (binary({"inputs": [image_input(size=len(ELEMENT) - 1)]}, ELEMENT[:-1]), "longer than the data"),
    "trailing-bytes": (binary({"inputs": [image_input()]}, ELEMENT, b"more"), "binary bytes"),
    "unknown-output": ({"json": {"inputs": [TINY], "outputs": [{"name": "boxes"}]}}, "no output 'boxes'"),
    "output-twice": ({"json": {"inputs": [TINY], "outputs": [{"name": "logits"}, {"name": "logits"}]}}, "asked for twice"),
    "many-outputs": ({"json": {"inputs": [TINY], "outputs": [{"name": "labels"}] * 10}}, "more outputs"),
    "half-a-pair-as-id": ({"content": b'{"id":"\\ud800","inputs":[]}'}, ""),
    "list-as-sequence": ({"json": {"inputs": [TINY], "parameters": {"sequence_id": [1, 2]}}}, "Sequences"),
    "array-as-key": ({"content": b'{"inputs":[{[1]:2}]}'}, "not valid JSON"),
    "two-lengths": ({"content": CAT, "headers": [(LENGTH, "0"), (LENGTH, "5")]}, "one whole number"),
    "nearly-whole-shape": ({"json": {"inputs": [{**TINY, "shape": [1.00000000001]}]}}, "shape"),
    "two-inputs": ({"json": {"inputs": [TINY, TINY]}}, "one input"),
    "no-input": ({"json": {"inputs": []}}, "one input"),
    "inputs-no-list": ({"json": {"inputs": {}}}, "must be a list"),
    "unknown-input": ({"json": {"inputs": [{**TINY, "name": "INPUT__0"}]}}, "no input 'INPUT__0'"),
    "two-for-one-image": (binary({"inputs": [image_input((2, 1))]}, ELEMENT), "fewer elements"),
    "one-for-two-images": (binary({"inputs": [image_input((1,), 2 * len(ELEMENT))]}, ELEMENT, ELEMENT), "more data"),
    "shape-of-json": ({"json": {"inputs": [{**TINY, "shape": [2]}]}}, "shape for 2"),
    "no-images": ({"json": {"inputs": [{**TINY, "shape": [0], "data": []}]}}, "1 to 32 images"),
    "wide-shape": ({"json": {"inputs": [{**TINY, "shape": [1, 2]}]}}, "[N, 1]"),
    "huge-shape": ({"json": {"inputs": [{**TINY, "shape": [1e300]}]}}, "shape"),
    "fraction-in-shape": ({"json": {"inputs": [{**TINY, "shape": [1.5]}]}}, "shape"),
    "negative-shape": ({"json": {"inputs": [{**TINY, "shape": [-1]}]}}, "shape"),
    "too-many-images": ({"json": {"inputs": [{**TINY, "shape": [33], "data": ["" for _ in range(33)]}]}}, "1 to 32"),
    "shared-memory": (binary({"inputs": [image_input(shared_memory_region="r")]}, ELEMENT), "Shared memory"),
    "shared-memory-out": (
        {"json": {"inputs": [TINY], "outputs": [{"name": "logits", "parameters": {"shared_memory_region": "r"}}]}},
        "Shared memory",
    ),
    "sequence": ({"json": {"inputs": [TINY], "parameters": {"sequence_id": 5}}}, "Sequences"),
    "reserved": ({"json": {"inputs": [TINY], "parameters": {"triton_x": 5}}}, "triton_"),
    "priority": ({"json": {"inputs": [TINY], "parameters": {"priority": -1}}}, "priority"),
    "timeout": ({"json": {"inputs": [TINY], "parameters": {"timeout": "1"}}}, "timeout"),
    "no-data": ({"json": {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES"}]}}, "must have `data`"),
    "datatype": ({"json": {"inputs": [{**TINY, "datatype": "INT64"}]}}, "datatype 'INT64'"),
    "no-datatype": ({"json": {"inputs": [{"name": "image", "shape": [1], "data": []}]}}, "datatype"),
    "not-an-image": ({"json": {"inputs": [{**TINY, "data": [base64_of(b"hello there")]}]}}, ""),
    "empty-image": ({"json": {"inputs": [{**TINY, "data": [""]}]}}, "empty"),
    "url": ({"json": {"inputs": [{**TINY, "data": ["https://example.org/cat.jpg"]}]}}, "never fetched"),
    "numbers-for-images": ({"json": {"inputs": [{**TINY, "data": [1, 2]}]}}, ""),
    "not-json": ({"content": b"{"}, "not valid JSON"),
    "not-an-object": ({"content": b"[1, 2]"}, "must be an object"),
    "empty": ({"content": b""}, "not valid JSON"),
    "normalised": ({"json": {"inputs": [{**PIXELS, "data": [0.5] * 2352}]}}, "whole numbers from 0 to 255"),
    "too-bright": ({"json": {"inputs": [{**PIXELS, "data": [256] * 2352}]}}, "whole numbers from 0 to 255"),
    "infinite": ({"json": {"inputs": [{**PIXELS, "data": [1e300] * 2352}]}}, "whole numbers from 0 to 255"),
    "too-few-numbers": ({"json": {"inputs": [{**PIXELS, "data": [0] * 2351}]}}, "flat or nested"),
    "too-many-numbers": ({"json": {"inputs": [{**PIXELS, "data": [0] * 200_000}]}}, "more numbers"),
    "wrongly-nested": ({"json": {"inputs": [{**PIXELS, "data": [[0] * 1176] * 2}]}}, "flat or nested"),
    "strings-among-numbers": ({"json": {"inputs": [{**PIXELS, "data": [0, "a"]}]}}, "not valid JSON"),
    "other-size": ({"json": {"inputs": [{**PIXELS, "shape": [1, 3, 27, 28], "data": [0]}]}}, "[-1, 3, 28, 28]"),
    "channels-last": ({"json": {"inputs": [{**PIXELS, "shape": [1, 28, 28, 3], "data": [0]}]}}, "[-1, 3, 28, 28]"),
    "bytes-of-another-shape": (binary({"inputs": [{**PIXELS, "parameters": {"binary_data_size": 4}}]}, b"abcd"), "bytes"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_wrong_request_is_refused(service: httpx.AsyncClient, name: str) -> None:
    request, says = WRONG[name]
    response = await service.post(INFER, **request)
    assert_error(response, 415 if name == "not-an-image" else 400, says)


async def test_second_of_two_images_is_named(service: httpx.AsyncClient) -> None:
    broken = CAT[: len(CAT) // 2]
    data = struct.pack("<I", len(broken)) + broken
    request = binary({"inputs": [image_input((2, 1), len(ELEMENT) + len(data))]}, ELEMENT, data)
    assert_error(await service.post(INFER, **request), 400, "image 1")


async def test_deadline_of_a_request_is_kept(service: httpx.AsyncClient) -> None:
    response = await service.post(INFER, json={"inputs": [TINY], "parameters": {"timeout": 1}})
    assert_error(response, 504)


async def test_names_and_versions(open_service: OpenService) -> None:
    async with open_service(model_aliases="resnet50,model") as client:
        index = (await client.post("/v2/repository/index")).json()
        names = ["vit", "vit-pixels", "resnet50", "resnet50-pixels", "model", "model-pixels"]
        assert [model["name"] for model in index] == names
        assert (await client.get("/v2/models")).json() == {"models": names}
        for name in names:
            assert (await client.get(f"/v2/models/{name}/ready")).json() == {"name": name, "ready": True}
        assert (await client.post("/v2/models/model/infer", json={"inputs": [TINY]})).json()["model_name"] == "model"
        assert_error(await client.get("/v2/foosharedmemory/status"), 400)
        for path in ("/v2/models/nope", "/v2/models/vit/versions/2", "/v2/models/nope/ready", "/v2/models/vit/nothing"):
            assert_error(await client.get(path), 404)
        assert_error(await client.post("/v2/models/nope/infer", json={"inputs": [TINY]}), 404, "served are vit,")


async def test_descriptions(service: httpx.AsyncClient) -> None:
    assert (await service.get("/v2/health/live")).json() == {"live": True}
    assert (await service.get("/v2/health/ready")).json() == {"ready": True, "live": True}
    assert "statistics" in (await service.get("/v2")).json()["extensions"]
    assert (await service.get("/v2/")).json() == (await service.get("/v2")).json()
    metadata = (await service.get("/v2/models/vit-pixels")).json()
    assert metadata["inputs"] == [{"name": "pixels", "datatype": "UINT8", "shape": [-1, 3, 28, 28]}]
    assert metadata["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}]
    config = (await service.get("/v2/models/vit/versions/1/config")).json()
    assert (config["max_batch_size"], config["input"][0]["data_type"]) == (32, "TYPE_STRING")
    assert [output["name"] for output in config["output"]] == ["logits", "probabilities", "labels"]


async def test_statistics_count_images(open_service: OpenService) -> None:
    async with open_service() as client:
        for _ in range(3):
            await client.post(INFER, json={"inputs": [TINY]})
        await client.post(INFER, json={"inputs": [{**TINY, "data": [base64_of(b"hello there")]}]})
        (stats,) = (await client.get("/v2/models/vit/stats")).json()["model_stats"]
        assert (stats["inference_count"], stats["execution_count"]) == (3, 3)
        assert (stats["inference_stats"]["success"]["count"], stats["inference_stats"]["fail"]["count"]) == (3, 1)
        assert stats["inference_stats"]["compute_input"]["ns"] > 0
        both = (await client.get("/v2/models/stats")).json()["model_stats"]
        assert [each["name"] for each in both] == ["vit", "vit-pixels"]


async def test_calls_that_are_refused(service: httpx.AsyncClient) -> None:
    for kind in ("system", "cuda"):
        assert (await service.get(f"/v2/{kind}sharedmemory/status")).json() == []
        assert (await service.get(f"/v2/{kind}sharedmemory/region/r/status")).json() == []
        assert (await service.post(f"/v2/{kind}sharedmemory/unregister")).status_code == 200
        assert_error(await service.post(f"/v2/{kind}sharedmemory/region/r/register", json={}), 501)
    assert_error(await service.post("/v2/repository/models/vit/load", json={}), 501)
    assert_error(await service.post("/v2/repository/models/vit/unload", json={}), 501)
    for path in ("/v2/trace/setting", "/v2/models/vit/trace/setting", "/v2/logging"):
        assert_error(await service.get(path), 501)
        assert_error(await service.post(path, json={}), 501)
    assert_error(await service.delete("/v2/models/vit"), 405)
