"""POST /predict: the numbers of the answer, capacity, deadlines and failures."""

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from typing import Any
from unittest.mock import patch

import httpx
import numpy as np
import pytest

from app.api.problems import problem_headers
from app.errors import EngineDead, QueueFull
from app.pixels import Logits, Pixels
from app.serving.runner import ModelRunner
from benchmarks.watch import metrics_of
from tests.app.conftest import OpenClient
from tests.support.models import png
from tests.support.predict import NO_NUMBERS, Held, assert_problem, base64_of, chunks

FORMS: dict[str, dict[str, Any]] = {
    "part-image": {"files": {"image": png(0)}},
    "part-file": {"files": {"file": ("name.png", png(0), "text/plain")}},
    "part-data": {"files": {"data": png(0)}},
    "part-beside-others": {"files": {"image": png(0), "notes": b"some"}, "data": {"user": "me"}},
    "raw-image": {"content": png(0), "headers": {"Content-Type": "image/png"}},
    "raw-octets": {"content": png(0), "headers": {"Content-Type": "application/octet-stream"}},
    "raw-wrong-type": {"content": png(0), "headers": {"Content-Type": "image/jpeg"}},
    "raw-no-type": {"content": png(0)},
    "raw-curl-default": {"content": png(0), "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
    "raw-for-a-browser": {"content": png(0), "headers": {"Accept": "text/html"}},
    "raw-chunked": {"content": chunks(png(0)[:100], png(0)[100:])},
    "json": {"json": {"image": base64_of(png(0))}},
    "json-data-uri": {"json": {"image": f"data:image/png;base64,{base64_of(png(0))}"}},
    "json-with-line-breaks": {"json": {"image": base64.encodebytes(png(0)).decode()}},
}


@pytest.mark.parametrize("form", [pytest.param(form, id=name) for name, form in FORMS.items()])
async def test_all_request_forms_give_the_same_answer(client: httpx.AsyncClient, form: dict[str, Any]) -> None:
    expected = (await client.post("/predict", content=png(0))).json()
    response = await client.post("/predict", **form)
    assert response.status_code == 200
    answer = response.json()
    assert answer["predictions"][0]["label"] == expected["predictions"][0]["label"]
    assert answer["logits"] == pytest.approx(expected["logits"], abs=1e-5)


async def test_answer_is_ranked_and_consistent(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/predict", content=png(1))).json()
    logits, probabilities = np.array(answer["logits"]), np.array(answer["probabilities"])
    assert list(answer) == ["model", "activation", "predictions", "logits", "probabilities"]
    assert answer["model"] == "tiny-dinov2"
    np.testing.assert_allclose(probabilities, np.exp(logits) / np.exp(logits).sum(), atol=1e-6)
    assert probabilities.sum() == pytest.approx(1, abs=1e-6)
    assert [prediction["class_index"] for prediction in answer["predictions"]] == np.argsort(-logits)[:5].tolist()
    for prediction in answer["predictions"]:
        index = prediction["class_index"]
        assert prediction == {
            "label": f"class {index}",
            "class_index": index,
            "probability": answer["probabilities"][index],
            "logit": answer["logits"][index],
        }


@pytest.mark.parametrize(("top_k", "expected"), [(1, 1), (5, 5), (10, 10), (1000, 10)])
async def test_top_k_limits_the_predictions(client: httpx.AsyncClient, top_k: int, expected: int) -> None:
    answer = (await client.post("/predict", params={"top_k": top_k}, content=png(1))).json()
    assert len(answer["predictions"]) == expected


async def test_vectors_can_be_left_out(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/predict", params={"vectors": "false"}, content=png(1))).json()
    assert set(answer) == {"model", "activation", "predictions"}


async def test_concurrent_answers_match_single_ones(open_client: OpenClient) -> None:
    async with open_client(max_batch_size=32) as client:
        alone = [(await client.post("/predict", content=png(seed))).json()["logits"] for seed in range(200)]
        together = await asyncio.gather(*(client.post("/predict", content=png(seed)) for seed in range(200)))
        metrics = metrics_of((await client.get("/metrics")).content)
    np.testing.assert_allclose([response.json()["logits"] for response in together], alone, rtol=0, atol=1e-4)
    distances = np.abs(np.array(alone)[:, None] - np.array(alone)[None]).max(axis=-1) + np.eye(200)
    assert distances.min() > 1e-2  # a swapped answer would fail the comparison above
    assert metrics["vit_batch_size_images_count"] < 300  # batches did form


async def test_corrupt_image_fails_alone_of_sixteen(client: httpx.AsyncClient) -> None:
    good = [(await client.post("/predict", content=png(seed))).json()["logits"] for seed in range(16)]
    bodies = [png(seed) for seed in range(16)]
    bodies[7] = bodies[7][: len(bodies[7]) // 2]
    responses = await asyncio.gather(*(client.post("/predict", content=body) for body in bodies))
    assert_problem(responses[7], 422, "undecodable_image")
    for seed in set(range(16)) - {7}:
        assert responses[seed].status_code == 200
        np.testing.assert_allclose(responses[seed].json()["logits"], good[seed], rtol=0, atol=1e-4)


async def test_full_queue_is_429_with_retry_after(open_client: OpenClient) -> None:
    held, read = Held(), []

    async def body() -> AsyncIterator[bytes]:
        read.append(True)
        yield png(0)

    async with open_client(held, max_inflight_images=1) as client:
        first = asyncio.create_task(client.post("/predict", content=png(0)))
        await held.begun.wait()
        refused = await client.post("/predict", content=body())
        batch = await client.post("/predict/batch", content=body())
        ready = await client.get("/health/ready")
        held.gate.set()
        assert (await first).status_code == 200
    assert_problem(refused, 429, "queue_full")
    assert_problem(batch, 429, "queue_full")
    assert not read
    assert int(refused.headers["retry-after"]) >= 1
    assert ready.status_code == 200


async def test_too_many_bytes_in_flight_is_429(open_client: OpenClient) -> None:
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield png(0)[:-1]
        arrived.set()
        await go_on.wait()
        yield png(0)[-1:]

    size = len(png(0))
    async with open_client(max_image_bytes=size, max_request_bytes=size, max_inflight_bytes=2 * size - 2) as client:
        first = asyncio.create_task(client.post("/predict", content=slow()))
        await arrived.wait()
        refused = await client.post("/predict", content=png(0))
        go_on.set()
        assert (await first).status_code == 200
        assert (await client.post("/predict", content=png(0))).status_code == 200
    assert_problem(refused, 429, "queue_full")
    assert int(refused.headers["retry-after"]) >= 1


async def test_retry_after_is_jittered() -> None:
    times = {problem_headers(QueueFull("full", retry_after_s=100))["Retry-After"] for _ in range(50)}
    assert len(times) > 1
    assert {80 <= int(time) <= 120 for time in times} == {True}


async def test_late_image_is_504_and_skips_inference(open_client: OpenClient) -> None:
    held = Held()
    async with open_client(held) as client:
        first = asyncio.create_task(client.post("/predict", content=png(0)))
        await held.begun.wait()
        late = await client.post("/predict", content=png(1), headers={"X-Request-Timeout-Ms": "20"})
        held.gate.set()
        await first
    assert_problem(late, 504, "deadline_exceeded")
    assert held.ran == 1


async def test_client_cannot_extend_the_deadline(open_client: OpenClient) -> None:
    held = Held()
    async with open_client(held, request_timeout_s=0.02) as client:
        late = await client.post("/predict", content=png(1), headers={"X-Request-Timeout-Ms": "60000"})
    assert_problem(late, 504, "deadline_exceeded")


async def test_stalled_body_is_504(open_client: OpenClient) -> None:
    async def stalled() -> AsyncIterator[bytes]:
        yield png(0)[:10]
        await asyncio.Event().wait()

    async with open_client(request_timeout_s=0.02) as client:
        assert_problem(await client.post("/predict", content=stalled()), 504, "deadline_exceeded")


@pytest.mark.parametrize("value", ["0", "soon", "", *NO_NUMBERS])
async def test_invalid_deadline_is_422(client: httpx.AsyncClient, value: str) -> None:
    headers = {b"X-Request-Timeout-Ms": value.encode("latin-1")}
    response = await client.post("/predict", content=png(0), headers=headers)
    assert_problem(response, 422, "invalid_parameter")


async def test_model_failure_is_500_without_details(open_client: OpenClient) -> None:
    async def fails(runner: ModelRunner, images: Sequence[Pixels]) -> Any:
        raise RuntimeError("/secret/path 0xdeadbeef")

    async with open_client(fails) as client:
        response = await client.post("/predict", content=png(0))
    assert_problem(response, 500, "inference_failed")
    assert "secret" not in response.text


async def test_non_finite_logits_are_500(open_client: OpenClient) -> None:
    async def burns(runner: ModelRunner, images: Sequence[Pixels]) -> Any:
        def run(images: Sequence[Pixels], *, use_all_cores: bool) -> Logits:
            logits = runs(images, use_all_cores=use_all_cores).copy()
            logits[0, 3] = np.nan
            return logits

        runs = runner.engine.run
        with patch.object(runner.engine, "run", run):
            return await runner.run(images)

    async with open_client(burns) as client:
        assert_problem(await client.post("/predict", content=png(0)), 500, "inference_failed")
        metrics = metrics_of((await client.get("/metrics")).content)
        assert metrics['vit_images_total{outcome="inference_failed"}'] == 1


async def test_dead_worker_is_503_and_not_ready(open_client: OpenClient) -> None:
    async def dies(runner: ModelRunner, images: Sequence[Pixels]) -> Any:
        raise EngineDead

    async with open_client(dies) as client:
        for _ in range(2):  # the request that killed it, and the next
            assert_problem(await client.post("/predict", content=png(0)), 503, "not_ready")
        problem = assert_problem(await client.get("/health/ready"), 503, "not_ready")
        assert problem["detail"] == "The inference worker has died."
        assert (await client.get("/health/live")).status_code == 200
