"""Many clients of a real server: own answers, batches, exact counters, and nothing left of those that disconnect."""

import asyncio
import random
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from app.bench.connections import Address, Connection
from app.bench.load import head
from benchmarks.clients import KINDS, TOLERANCE, Clients, KnownImage
from benchmarks.soak import counted
from benchmarks.watch import metrics_of, usage
from tests.support.models import encode, png, random_image
from tests.support.server import Server, running_server, wait_for_metric

_CLIENTS = 64
_REQUESTS = 1500
_MAX_BATCH_SIZE = 8

_GONE = 'vit_http_requests_total{method="POST",protocol="predict",route="/predict",status="499"}'
_CANCELLED = 'vit_images_total{outcome="cancelled"}'
_WAVES, _WAVE = 4, 60
_LARGE_BATCH = 64
"""Batch size larger than a wave: a batch that is held open until it is full waits for all of it."""


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path) -> Iterator[Server]:
    settings = {"max_batch_size": _MAX_BATCH_SIZE, "max_queue_delay_ms": 20, "max_image_bytes": 50_000}
    with running_server(model=tiny_checkpoint, **settings) as server:
        yield server


@pytest.fixture(scope="module")
def patient_server(tiny_checkpoint: Path) -> Iterator[Server]:
    """Server that holds a batch open until it is full."""
    settings = {"max_batch_size": _LARGE_BATCH, "max_queue_delay_ms": 10_000, "inference_threads": 1}
    with running_server(model=tiny_checkpoint, **settings) as server:
        yield server


def metrics(server: Server) -> dict[str, float]:
    return metrics_of(httpx.get(f"{server.url}/metrics").content)


def port(server: Server) -> int:
    return int(urlsplit(server.url).port or 0)


async def test_64_clients_get_their_own_answers(server: Server) -> None:
    limits = httpx.Limits(max_connections=_CLIENTS, max_keepalive_connections=_CLIENTS)
    async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
        alone = np.array([(await client.post("/predict", content=png(seed))).json()["logits"] for seed in range(40)])
        before, work = metrics(server), enumerate(random.Random(0).choices(range(40), k=_REQUESTS))
        answers: list[tuple[int, int, httpx.Response]] = []

        async def client_task() -> None:
            for number, seed in work:
                sent = {"X-Request-ID": f"request-{number}"}
                answers.append((number, seed, await client.post("/predict", content=png(seed), headers=sent)))

        await asyncio.gather(*(client_task() for _ in range(_CLIENTS)))

    assert sorted(number for number, _, _ in answers) == list(range(_REQUESTS))
    assert all(response.headers["x-request-id"] == f"request-{number}" for number, _, response in answers)
    logits = np.array([response.json()["logits"] for _, _, response in answers])
    np.testing.assert_allclose(logits, alone[[seed for _, seed, _ in answers]], rtol=0, atol=TOLERANCE)
    distances = np.abs(alone[:, None] - alone).max(axis=-1) + np.eye(len(alone))
    assert distances.min() > 100 * TOLERANCE  # a mixed-up answer would be seen

    after = metrics(server)
    runs, images, largest = (
        after[f"vit_batch_size_images_{name}"] - before[f"vit_batch_size_images_{name}"]
        for name in ("count", "sum", f'bucket{{le="{_MAX_BATCH_SIZE:.1f}"}}')
    )
    assert images == _REQUESTS
    assert largest == runs
    assert images / runs > 1.5


async def test_counters_match_answers_exactly(server: Server) -> None:
    image = encode(random_image(0, 120, 100), "JPEG")
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        logits = np.array((await client.post("/predict", content=image)).json()["logits"])
    clients = Clients(port(server), [KnownImage(image, logits)], 50_000, seed=0)
    before = metrics(server)
    kinds = [call for kind, (_, call) in KINDS.items() if not kind.startswith("leaves")]
    await asyncio.gather(*(call(clients, time.perf_counter()) for call in kinds * 15))
    clients.close()
    after = metrics(server)
    assert clients.tally.wrong == []
    assert {status for _, status in clients.tally.answered} == {"200", "400", "413", "415", "422"}
    assert counted(before, after) == clients.tally.answered
    for name in ('vit_images_total{outcome="ok"}', "vit_batch_size_images_sum", "vit_decode_seconds_count"):
        assert after[name] - before[name] == clients.tally.images
    assert (after["vit_inflight_images"], after["vit_queued_images"], after["vit_inflight_requests"]) == (0, 0, 0)


@pytest.mark.parametrize(("share", "gauge"), [(0.5, "vit_inflight_requests"), (1.0, "vit_queued_images")])
async def test_vanished_clients_leave_nothing_behind(patient_server: Server, share: float, gauge: str) -> None:
    server, before = patient_server, metrics(patient_server)
    files = usage([server.process.pid]).open_files
    for wave in range(1, _WAVES + 1):
        connections = [await Connection.open(Address(port(server))) for _ in range(_WAVE)]
        for seed, connection in enumerate(connections):
            image = png(seed)
            connection.write(head("/predict", len(image), "image/png") + image[: int(share * len(image))])
        await wait_for_metric(server, gauge, _WAVE)
        for connection in connections:
            connection.reset()
        await wait_for_metric(server, _GONE, before.get(_GONE, 0) + wave * _WAVE)
    after = metrics(server)
    assert (after["vit_inflight_images"], after["vit_queued_images"], after["vit_inflight_requests"]) == (0, 0, 0)
    cancelled = after.get(_CANCELLED, 0) - before.get(_CANCELLED, 0)
    assert cancelled == (_WAVES * _WAVE if share == 1 else 0)
    assert after["vit_batch_size_images_count"] == before["vit_batch_size_images_count"]  # the model ran nothing
    assert usage([server.process.pid]).open_files < files + 10  # of `_WAVES` times `_WAVE` connections
    await all_places_are_free(server)


async def all_places_are_free(server: Server) -> None:
    """Check that a full batch is answered at once, each image with its own logits."""
    limits = httpx.Limits(max_connections=_LARGE_BATCH)
    async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
        calls = (client.post("/predict", content=png(seed)) for seed in range(_LARGE_BATCH))
        responses = await asyncio.gather(*calls)
    assert [response.status_code for response in responses] == [200] * _LARGE_BATCH
    assert len({tuple(response.json()["logits"]) for response in responses}) == _LARGE_BATCH
