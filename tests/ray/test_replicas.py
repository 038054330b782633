"""Replicas behind Ray's HAProxy on one node: updates, failures, limits, scaling, shutdown."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is an extra: make ray-test")

import httpx
from ray import serve

from app.ray import Options
from benchmarks.watch import metrics_of
from tests.support.models import png
from tests.support.ray_serve import (
    NAME,
    PORT,
    Clients,
    deploy,
    deployed,
    free_port,
    kill,
    message,
    predict,
    replicas,
    running,
    variables,
    wait_for,
)

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("ray_cluster")]  # warnings of Ray's own code

HELD_MS = 5000
"""Time for which a lone image waits for others, so that tests can have requests in flight."""


@pytest.fixture(autouse=True)
def model(tiny_checkpoint: Path) -> Iterator[None]:
    with variables(model=tiny_checkpoint, model_aliases="first"):
        yield


def counted(client: httpx.Client, name: str) -> float:
    return metrics_of(client.get("/metrics").content).get(name, 0.0)


def in_flight(client: httpx.Client, number: int) -> None:
    """Wait until so many requests are in flight in the only replica."""
    wait_for(lambda: counted(client, "vit_inflight_requests") == number)


def test_first_request_finds_a_loaded_model() -> None:
    with deployed(Options(cpus=1)) as client:
        answer = predict(client)
        assert answer.status_code == 200
        assert len(answer.json()["predictions"]) == 5
        assert client.get("/health/ready").status_code == 200


@pytest.mark.parametrize("sent", [{}, {"X-Request-ID": "from-the-client"}])
def test_response_has_one_request_id(sent: dict[str, str]) -> None:
    with deployed(Options(cpus=1)) as client:
        ids = predict(client, headers=sent).headers.get_list("X-Request-ID")
    assert len(ids) == 1
    assert not sent or ids == ["from-the-client"]


def test_update_under_load_loses_nothing() -> None:
    with deployed(Options(replicas=2, cpus=1)) as client:
        clients = Clients(4)
        with clients.sending():
            clients.answered(50)
            deploy(Options(replicas=2, cpus=1), model_aliases="second")
            wait_for(lambda: client.get("/v2/models/first").status_code == 404)
            clients.answered(50)
        assert set(clients.outcomes) == {"200"}, clients.outcomes
        assert client.get("/v2/models/second").status_code == 200


def test_failed_update_leaves_the_old_one() -> None:
    with deployed(Options(replicas=2, cpus=1)) as client:
        with pytest.raises(RuntimeError):
            deploy(Options(replicas=2, cpus=1), model="/no/such/model")
        assert "VIT_MODEL: /no/such/model does not exist" in message()
        assert predict(client).status_code == 200


def test_killed_replica_is_replaced(ray_cluster: Any) -> None:
    with deployed(Options(replicas=2, cpus=1)):
        clients = Clients(4)
        before = set(replicas(ray_cluster.head_node))
        with clients.sending():
            clients.answered(50)
            kill(min(before))
            wait_for(lambda: running() == 2 and len(set(replicas(ray_cluster.head_node)) - before) == 1)
            clients.answered(50)
        lost = sum(number for outcome, number in clients.outcomes.items() if outcome != "200")
        assert lost <= 4, clients.outcomes  # no more than there are clients: what was in flight


def test_full_service_answers_429_itself() -> None:
    with deployed(Options(cpus=1), max_inflight_images=2, max_queue_delay_ms=HELD_MS, max_batch_size=8) as client:
        with ThreadPoolExecutor(8) as pool:
            held = [pool.submit(predict, client, seed) for seed in range(2)]
            in_flight(client, 2)
            refused = list(pool.map(lambda seed: predict(client, seed), range(2, 8)))
        assert [each.status_code for each in refused] == [429] * 6
        assert all(each.json()["code"] == "queue_full" and int(each.headers["Retry-After"]) > 0 for each in refused)
        assert [each.result().status_code for each in held] == [200, 200]


def test_client_that_leaves_frees_its_slot() -> None:
    body = png(0)
    head = f"POST /predict HTTP/1.1\r\nHost: any\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
    with deployed(Options(cpus=1), max_queue_delay_ms=10_000, max_batch_size=8) as client:
        with socket.create_connection(("127.0.0.1", PORT)) as connection:
            connection.sendall(head.encode() + body)
            in_flight(client, 1)
        in_flight(client, 0)
        assert counted(client, "vit_batch_size_images_count") == 0  # no batch was run: it was cancelled, not answered


def test_half_a_header_is_cut() -> None:
    with deployed(Options(cpus=1)), socket.create_connection(("127.0.0.1", PORT), timeout=60) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: any\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")
        assert connection.recv(1000) == b""


def test_request_in_flight_survives_a_shutdown() -> None:
    with deployed(Options(cpus=1), max_queue_delay_ms=HELD_MS, max_batch_size=8) as client:
        outcomes = []
        thread = threading.Thread(target=lambda: outcomes.append(predict(client).status_code))
        thread.start()
        in_flight(client, 1)
        serve.delete(NAME)
        thread.join()
        assert outcomes == [200]


def test_replicas_follow_the_load() -> None:
    options = Options(replicas=1, max_replicas=2, cpus=1, target_ongoing_requests=4, upscale_delay_s=1, downscale_delay_s=1)
    with deployed(options, max_queue_delay_ms=300, max_batch_size=64):
        clients = Clients(12)
        with clients.sending():
            wait_for(lambda: running() == 2)
            clients.answered(12)
        wait_for(lambda: running() == 1)
        assert set(clients.outcomes) == {"200"}, clients.outcomes


def test_each_replica_has_a_port_for_metrics() -> None:
    first = free_port()
    with deployed(Options(replicas=2, cpus=1), metrics_port=first) as client:
        for seed in range(6):
            assert predict(client, seed).status_code == 200
        pages = [httpx.get(f"http://127.0.0.1:{port}/metrics").content for port in (first, first + 1)]
        assert sum(metrics_of(page)["vit_batch_size_images_sum"] for page in pages) == 6
        assert client.get("/metrics").status_code == 404
