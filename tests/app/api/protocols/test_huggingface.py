"""Hugging Face's inference API over a real socket."""

import time
from typing import Any

import httpx
import pytest

from app.api.problems import ErrorResponse, problem_of
from app.errors import NotReady, TooManyConnections
from tests.app.api.protocols.conftest import CAT, OpenService, assert_error, state_behind
from tests.support.predict import base64_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

RANKED = [("cat", 0.66524096), ("dog", 0.24472847), ("espresso", 0.09003057)]


def assert_ranked(response: httpx.Response, expected: list[tuple[str, float]]) -> None:
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json"), response.text
    assert [row["label"] for row in response.json()] == [label for label, _ in expected]
    assert [row["score"] for row in response.json()] == pytest.approx([score for _, score in expected], abs=1e-6)


FORMS: dict[str, dict[str, Any]] = {
    "raw": {"content": CAT, "headers": {"Content-Type": "image/jpeg"}},
    "no-type": {"content": CAT},
    "json": {"json": {"inputs": base64_of(CAT)}},
    "data-uri": {"json": {"inputs": f"data:image/jpeg;base64,{base64_of(CAT)}"}},
    "empty-parameters": {"json": {"inputs": base64_of(CAT), "parameters": {}}},
    "null-parameters": {"json": {"inputs": base64_of(CAT), "parameters": None}},
}


@pytest.mark.parametrize("name", FORMS)
async def test_image_is_ranked(service: httpx.AsyncClient, name: str) -> None:
    assert_ranked(await service.post("/", **FORMS[name]), RANKED)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"top_k": 1, "function_to_apply": "sigmoid"}, [("cat", 0.88079708)]),
        ({"top_k": 1, "function_to_apply": "none"}, [("cat", 2.0)]),
        ({"top_k": 2.0, "function_to_apply": "softmax"}, RANKED[:2]),
        ({"function_to_apply": None}, RANKED),
        ({"top_k": 99}, RANKED),
    ],
)
async def test_parameters(service: httpx.AsyncClient, parameters: dict[str, Any], expected: list[tuple[str, float]]) -> None:
    assert_ranked(await service.post("/", json={"inputs": base64_of(CAT), "parameters": parameters}), expected)


async def test_parameters_in_the_query(service: httpx.AsyncClient) -> None:
    assert_ranked(await service.post("/?top_k=1&unknown=1", content=CAT), RANKED[:1])
    assert_ranked(await service.post("/?top_k=1&function_to_apply=none", content=CAT), [("cat", 2.0)])
    both = {"inputs": base64_of(CAT), "parameters": {"top_k": 2}}
    assert_ranked(await service.post("/?top_k=1", json=both), RANKED[:2])


async def test_several_images_give_several_lists(service: httpx.AsyncClient) -> None:
    response = await service.post("/", json={"inputs": [base64_of(CAT)] * 2, "parameters": {"top_k": 1}})
    assert [[row["label"] for row in rows] for rows in response.json()] == [["cat"], ["cat"]]


@pytest.mark.parametrize(
    ("request_", "status", "says"),
    [
        ({"json": {"inputs": base64_of(CAT), "parameters": {"candidate_labels": ["a", "b"]}}}, 400, "candidate_labels"),
        ({"json": {"inputs": {"image": base64_of(CAT)}, "parameters": {"candidate_labels": ["a"]}}}, 400, "candidate_labels"),
        ({"json": {"inputs": base64_of(CAT), "parameters": {"top_k": 0}}}, 400, "top_k"),
        ({"json": {"inputs": base64_of(CAT), "parameters": {"function_to_apply": "relu"}}}, 400, "function_to_apply"),
        ({"json": {"inputs": "hello"}}, 400, "base64"),
        ({"json": {"inputs": "https://example.org/cat.jpg"}}, 400, "never fetched"),
        ({"json": {"inputs": []}}, 400, "no input"),
        ({"json": {"inputs": 5}}, 400, "base64"),
        ({"json": {"text": "hello"}}, 400, "no image"),
        ({"json": [1]}, 400, "object"),
        ({"content": CAT[:20_000]}, 422, "truncated"),
        ({"content": b"hello"}, 415, ""),
        ({"content": b""}, 400, "no image"),
    ],
)
async def test_refusals(service: httpx.AsyncClient, request_: dict[str, Any], status: int, says: str) -> None:
    assert_error(await service.post("/", **request_), status, says)


async def test_description_and_health(service: httpx.AsyncClient) -> None:
    assert (await service.get("/health")).json() == {"status": "UP"}
    info = (await service.get("/info")).json()
    assert (info["model_id"], info["task"]) == ("vit", "image-classification")


async def test_refusal_of_the_reserve_is_not_held(open_service: OpenService) -> None:
    async with open_service(max_connections=1) as client:
        state = state_behind(client)
        render = state.wires.at("/").render
        busy = render(problem_of(TooManyConnections("All connections are busy.", 1.0)), {})
        loading = render(problem_of(NotReady("The model is still loading.", 1.0)), {})
        assert (type(busy) is ErrorResponse, type(loading) is ErrorResponse) == (True, False)


async def test_503_is_held_back(open_service: OpenService) -> None:
    async with open_service() as client:
        state_behind(client).service.draining = True
        started = time.perf_counter()
        response = await client.post("/", content=CAT)
        assert_error(response, 503)
        assert response.headers["retry-after"]
        assert time.perf_counter() - started >= 0.5  # a client in a hot loop sends two requests a second
