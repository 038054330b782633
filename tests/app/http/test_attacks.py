"""Attacks on the decoding workers of a real server: killed, kept busy by one client, failing through bugs of our own."""

import io
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from PIL import Image

from benchmarks.watch import metrics_of, resident_bytes
from tests.support.models import png
from tests.support.server import Server, children, decoders, running_server

LARGE_SIDE = 6000


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path) -> Iterator[Server]:
    with running_server(model=tiny_checkpoint, decode_workers=2) as server:
        yield server


def metrics(server: Server) -> dict[str, float]:
    return metrics_of(httpx.get(f"{server.url}/metrics").content)


def restarts(server: Server) -> float:
    return sum(value for name, value in metrics(server).items() if name.startswith("vit_decoder_restarts_total"))


def kill_decoders(server: Server, stop: threading.Event) -> None:
    rng = random.Random(0)
    while not stop.wait(rng.random() * 0.02):
        for pid in decoders(server):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_killed_decoders_leave_nothing_behind(tiny_checkpoint: Path) -> None:
    with (
        running_server(model=tiny_checkpoint, decode_workers=2) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        right = [client.post("/predict", content=png(seed)).json() for seed in range(20)]
        pids = [server.process.pid, *children(server.process.pid)]
        memory, stop = sum(map(resident_bytes, pids)), threading.Event()
        killer = threading.Thread(target=kill_decoders, args=(server, stop))
        killer.start()
        with ThreadPoolExecutor(8) as clients:
            answers = list(clients.map(lambda seed: (seed % 20, client.post("/predict", content=png(seed % 20))), range(300)))
        stop.set()
        killer.join()
        assert {response.status_code for _, response in answers} <= {200, 503}
        assert all(response.json() == right[seed] for seed, response in answers if response.status_code == 200)
        assert all("retry-after" in response.headers for _, response in answers if response.status_code == 503)
        while client.get("/health/ready").status_code != 200 or len(decoders(server)) < 2:
            time.sleep(0.01)  # until the backoff is over
        assert [client.post("/predict", content=png(seed)).json() for seed in range(20)] == right
        lost = restarts(server)
        assert lost > 5
        for _ in range(5):
            assert [client.post("/predict", content=png(seed)).json() for seed in range(20)] == right
        assert restarts(server) == lost
        assert sum(map(resident_bytes, pids)) < memory + 64 * 2**20
        server.stop()
        assert server.wait() == 0


@pytest.fixture(scope="module")
def large_batch() -> list[tuple[str, bytes]]:
    """Images of 36 million pixels: slow to decode, small on the wire."""
    file = io.BytesIO()
    Image.new("L", (LARGE_SIDE, LARGE_SIDE)).save(file, "PNG")
    return [("images", file.getvalue())] * 11


def test_large_batch_delays_no_others(server: Server, large_batch: list[tuple[str, bytes]]) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as client, ThreadPoolExecutor(1) as attacker:
        batch = attacker.submit(httpx.post, f"{server.url}/predict/batch", files=large_batch, timeout=60)
        while not metrics(server)["vit_inflight_images"]:
            time.sleep(0.001)
        answers = [client.post("/predict", content=png(seed)).status_code for seed in range(10)]
        assert not batch.done()
        assert answers == [200] * 10
        assert batch.result().status_code == 200


def test_batch_with_too_many_pixels_is_413(server: Server, large_batch: list[tuple[str, bytes]]) -> None:
    before = metrics(server)["vit_decode_seconds_count"]
    answer = httpx.post(f"{server.url}/predict/batch", files=[*large_batch, *large_batch[:1]])
    assert (answer.status_code, answer.json()["code"]) == (413, "image_too_large")
    assert "send fewer" in answer.json()["detail"]
    assert metrics(server)["vit_decode_seconds_count"] == before
