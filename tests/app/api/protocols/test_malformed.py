"""Malformed requests of each protocol, made by Hypothesis: that protocol's own error, never a 5xx, with bounded memory."""

import asyncio
import gzip
import json
import struct
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.app.api.protocols.conftest import CAT, OpenService, assert_error
from tests.support.predict import base64_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

CAT64 = base64_of(CAT)
LENGTH = "Inference-Header-Content-Length"
MANY = settings(
    max_examples=80, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
GOOD: dict[str, dict[str, Any]] = {
    "/": {"inputs": CAT64, "parameters": {"top_k": 2, "function_to_apply": "softmax"}},
    "/v1/models/vit:predict": {"instances": [{"b64": CAT64}], "signature_name": "serving_default"},
    "/predictions/vit": {"data": CAT64},
    "/invocations": {"dataframe_split": {"columns": ["image"], "data": [[CAT64]]}, "params": {"top_k": 1}},
    "/v2/models/vit/infer": {
        "id": "a",
        "inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [CAT64], "parameters": {}}],
        "outputs": [{"name": "logits", "parameters": {"classification": 1, "binary_data": True}}],
        "parameters": {"timeout": 10_000_000, "priority": 1},
    },
    "/vertex": {"instances": [{"content": CAT64}], "parameters": {"maxPredictions": 1, "confidenceThreshold": 0.1}},
}
"""A good request for each path, which is broken in one place."""


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values in JSON."""
    inner: Any = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))]


def with_value(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    changed = dict(content) if isinstance(content, dict) else list(content)
    changed[path[0]] = with_value(content[path[0]], path[1:], value)
    return changed


@pytest.mark.parametrize("path", GOOD)
async def test_one_wrong_value_is_no_fault_of_ours(open_service: OpenService, path: str) -> None:
    loop = asyncio.get_running_loop()
    async with open_service(vertex_predict_route="/vertex") as client:

        def ask(content: Any) -> httpx.Response:
            return asyncio.run_coroutine_threadsafe(client.post(path, json=content), loop).result(60)

        @MANY
        @given(place=st.sampled_from(places(GOOD[path])), value=VALUES)
        def check(place: tuple[Any, ...], value: Any) -> None:
            response = ask(with_value(GOOD[path], place, value))
            assert response.status_code < 500, response.text
            if response.status_code >= 400:
                assert isinstance(response.json(), dict)
                assert {"error", "message"} & response.json().keys()

        assert (await client.post(path, json=GOOD[path])).status_code == 200
        await asyncio.to_thread(check)


async def test_lying_lengths_are_no_fault_of_ours(service: httpx.AsyncClient) -> None:
    element = struct.pack("<I", len(CAT)) + CAT
    loop = asyncio.get_running_loop()

    @MANY
    @given(
        shape=st.lists(st.integers(-(2**40), 2**70), max_size=5),
        size=st.integers(-5, len(element) + 5),
        length=st.integers(-3, 300),
        element_length=st.integers(0, 2**32 - 1),
        datatype=st.sampled_from(["BYTES", "UINT8", "FP32", "BF16"]),
        cut=st.integers(0, len(element)),
    )
    def check(shape: list[int], size: int, length: int, element_length: int, datatype: str, cut: int) -> None:
        tensor = {"name": "image", "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}
        head = json.dumps({"inputs": [tensor]}).encode()
        content = head + (struct.pack("<I", element_length) + CAT)[:cut]
        for sent in (str(len(head)), str(length)):
            call = service.post("/v2/models/vit/infer", content=content, headers={LENGTH: sent})
            response = asyncio.run_coroutine_threadsafe(call, loop).result(60)
            assert response.status_code < 500, response.text

    await asyncio.to_thread(check)


HOSTILE: dict[str, tuple[str, dict[str, Any]]] = {
    "10^5-instances": ("/v1/models/vit:predict", {"json": {"instances": ["aGVsbG8="] * 100_000}}),
    "10^5-inputs": ("/", {"json": {"inputs": ["aGVsbG8="] * 100_000}}),
    "10^5-rows": ("/invocations", {"json": {"dataframe_records": [{"image": "aGVsbG8="}] * 100_000}}),
    "10^6-numbers": ("/v2/models/vit/infer", {"content": b'{"inputs":[' + b"1," * 1_000_000 + b"1]}"}),
    "deep-lists": ("/v2/models/vit/infer", {"content": b'{"inputs":' + b"[" * 500_000}),
    "deep-objects": ("/v1/models/vit:predict", {"content": b'{"a":' * 100_000}),
    "long-number": ("/v2/models/vit/infer", {"content": b'{"inputs":[' + b"1" * 5_000_000 + b"]}"}),
    "blanks": ("/v2/models/vit/infer", {"content": b'{"inputs":[' + b" " * 5_000_000 + b"1]}"}),
    "bomb": (
        "/v2/models/vit/infer",
        {"content": gzip.compress(bytes(100_000_000)), "headers": {"Content-Encoding": "gzip"}},
    ),
    "large-binary": ("/v2/models/vit/infer", {"content": bytes(60_000_000), "headers": {LENGTH: "2"}}),
    "many-elements": (
        "/v2/models/vit/infer",
        {"content": b'{"inputs":[{"name":"image","shape":[32],"datatype":"BYTES","data":[' + b'"",' * 500_000 + b'""]}]}'},
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_body_is_refused(service: httpx.AsyncClient, name: str) -> None:
    path, request = HOSTILE[name]
    response = await service.post(path, **request)
    assert 400 <= response.status_code < 500, response.text
    if path != "/invocations":
        assert_error(response, response.status_code)
