"""HAProxy with the configuration of deploy/ before two real servers."""

import asyncio
import signal
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml  # type: ignore[import-untyped]  # as in tests/test_deploy.py

from tests.support.fake_service import CERTIFICATE
from tests.support.models import ROOT, png
from tests.support.proxy import CONFIG, Proxy, check_config, needs_haproxy, running_proxy
from tests.support.raw_http import TIMEOUT_S, answers_in, read_to_end, request
from tests.support.server import Server, metric, wait_for_metric

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.scale.yml").read_text(encoding="utf-8"))["services"]
SETTINGS = {name: value for name, value in COMPOSE["vit-serve"]["environment"].items() if "CORES" not in str(value)}
CLIENTS = 8
LIMIT = 20
PREDICTED = 'vit_http_requests_total{method="POST",protocol="predict",route="/predict",status="200"}'

pytestmark = needs_haproxy


@contextmanager
def running_pair(checkpoint: Path, **variables: Any) -> Iterator[tuple[Server, Server]]:
    """Start two servers with one port, each with an address, as containers have them; settings are those of compose."""
    with socket.socket() as free:
        free.bind(("127.0.0.2", 0))
        port = free.getsockname()[1]
    given = {name.removeprefix("VIT_").lower(): value for name, value in SETTINGS.items()}
    given |= {"trusted_proxies": "127.0.0.1", "model": checkpoint, "port": port, **variables}
    with ExitStack() as stack:
        pair = Server(host="127.0.0.2", **given), Server(host="127.0.0.3", **given)
        for server in pair:
            stack.callback(server.wait)
            stack.callback(server.process.kill)
        for server in pair:
            server.wait_until_ready()
        yield pair


@pytest.fixture(scope="module")
def pair(tiny_checkpoint: Path) -> Iterator[tuple[Server, Server]]:
    with running_pair(tiny_checkpoint, max_image_bytes=100_000, rate_limit_per_address=f"{LIMIT}/hour") as pair:
        yield pair


@pytest.fixture(scope="module")
def proxy(pair: tuple[Server, Server]) -> Iterator[Proxy]:
    with running_proxy(pair, header_timeout="500ms") as proxy:
        yield proxy


def client_from(address: str, url: str, **options: Any) -> httpx.Client:
    """Return a client that connects from an address of this machine."""
    return httpx.Client(base_url=url, timeout=60, transport=httpx.HTTPTransport(local_address=address, **options))


def lasting(response: httpx.Response) -> dict[str, str]:
    """Return the headers that do not depend on the moment or the connection."""
    passing = ("x-request-id", "server-timing", "date", "retry-after", "connection")
    return {name: value for name, value in response.headers.items() if name not in passing}


@pytest.mark.parametrize("variables", [{}, {"PROXY_TLS": str(CERTIFICATE)}])
def test_haproxy_accepts_the_file(variables: dict[str, str]) -> None:
    checked = check_config(CONFIG, **variables)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_haproxy_finds_a_typo(tmp_path: Path) -> None:
    (tmp_path / "haproxy.cfg").write_text(CONFIG.read_text(encoding="utf-8").replace("balance leastconn", "balance leastcon"))
    assert check_config(tmp_path / "haproxy.cfg").returncode != 0


def test_requests_spread(pair: tuple[Server, Server], proxy: Proxy) -> None:
    before = [metric(server, PREDICTED) for server in pair]
    with client_from("127.0.0.11", proxy.url) as client:
        assert {client.post("/predict", content=png(seed)).status_code for seed in range(12)} == {200}
    shares = [metric(server, PREDICTED) - then for server, then in zip(pair, before, strict=True)]
    assert sum(shares) == 12
    assert min(shares) >= 4


def test_half_a_header_is_timed_out(proxy: Proxy) -> None:
    url = urlsplit(proxy.url)
    with socket.create_connection((url.hostname, url.port), timeout=TIMEOUT_S) as peer:
        peer.sendall(b"POST /predict HTTP/1.1\r\nHost: te")
        (answer,) = answers_in(read_to_end(peer))
    assert answer.status == 408
    assert answer.headers["connection"] == "close"


def test_refusals_pass_unchanged(pair: tuple[Server, Server], proxy: Proxy) -> None:
    answers = {}
    for url, address in ((pair[0].url, "127.0.0.12"), (proxy.url, "127.0.0.13")):
        with client_from(address, url) as client:
            large = client.post("/predict", content=bytes(100_001), headers={"X-Request-ID": "mine"})
            limited = large
            for _ in range(2 * LIMIT):
                limited = client.post("/predict", content=b"") if limited.status_code != 429 else limited
        assert large.headers.get_list("x-request-id") == ["mine"]
        assert 0 < int(limited.headers["retry-after"]) <= 3600
        answers[url] = [(each.status_code, each.content, lasting(each)) for each in (large, limited)]
    direct, proxied = answers.values()
    assert [status for status, _, _ in direct] == [413, 429]
    assert proxied == direct


def test_clients_count_by_their_address(pair: tuple[Server, Server], proxy: Proxy) -> None:
    with client_from("127.0.0.14", proxy.url) as client, client_from("127.0.0.15", proxy.url) as other:
        forged = [client.get("/model", headers={"X-Forwarded-For": f"203.0.113.{n}"}) for n in range(2 * LIMIT + 1)]
        assert forged[-1].status_code == 429
        assert sum(response.status_code == 200 for response in forged) == 2 * LIMIT
        assert other.get("/model").status_code == 200


def test_body_is_not_kept_in_the_proxy(pair: tuple[Server, Server], proxy: Proxy) -> None:
    url = urlsplit(proxy.url)
    whole = request(body=bytes(90_000))
    with socket.create_connection((url.hostname, url.port), timeout=TIMEOUT_S, source_address=("127.0.0.16", 0)) as peer:
        peer.sendall(whole[:-1])
        while not any(metric(server, "vit_inflight_bytes") > 50_000 for server in pair):
            pass
        peer.sendall(whole[-1:] + request("GET /health/live", "Connection: close"))
        assert [answer.status for answer in answers_in(read_to_end(peer))] == [415, 200]


@pytest.mark.parametrize("path", ["/metrics", "/%6detrics"])
def test_metrics_of_a_replica_are_hidden(proxy: Proxy, path: str) -> None:
    answer = httpx.get(proxy.url + path)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_new_replica_joins(pair: tuple[Server, Server]) -> None:
    with running_proxy(pair[:1]) as proxy:
        proxy.dns.addresses.append("127.0.0.3")
        proxy.wait_for_replicas(2)
        proxy.dns.addresses.remove("127.0.0.2")
        proxy.wait_for_replicas(1)


def test_tls_by_a_file(pair: tuple[Server, Server]) -> None:
    trusted = ssl.create_default_context(cafile=str(CERTIFICATE))
    with running_proxy(pair, tls=CERTIFICATE) as proxy, client_from("127.0.0.17", proxy.url, verify=trusted) as client:
        assert client.post("/predict", content=png(0)).status_code == 200
        with pytest.raises(httpx.TransportError):
            httpx.get(proxy.url.replace("https", "http"))


@asynccontextmanager
async def clients_at_work(proxy: Proxy) -> AsyncIterator[list[Counter[str]]]:
    """Have clients send one request after another until the end of the block; each counts its outcomes."""
    counts, enough = [Counter[str]() for _ in range(CLIENTS)], asyncio.Event()

    async def work(client: httpx.AsyncClient, outcomes: Counter[str]) -> None:
        while not enough.is_set():
            try:
                outcomes[str((await client.post("/predict", content=png(0))).status_code)] += 1
            except httpx.RemoteProtocolError:  # the proxy passes on that a connection was lost which it had used before
                outcomes["lost"] += 1

    async with httpx.AsyncClient(base_url=proxy.url, timeout=60) as client, asyncio.TaskGroup() as group:
        for outcomes in counts:
            group.create_task(work(client, outcomes))
        yield counts
        enough.set()


async def more(counts: list[Counter[str]], number: int) -> None:
    """Wait until every client has that many more outcomes."""
    goals = [outcomes.total() + number for outcomes in counts]
    async with asyncio.timeout(60):
        while any(outcomes.total() < goal for outcomes, goal in zip(counts, goals, strict=True)):  # noqa: ASYNC110 - all clients
            await asyncio.sleep(0.01)


def failures(counts: list[Counter[str]]) -> Counter[str]:
    """Return the outcomes of all clients other than an answer."""
    return Counter({kind: number for kind, number in sum(counts, Counter[str]()).items() if kind != "200"})


async def test_killed_replica_costs_what_it_had(tiny_checkpoint: Path) -> None:
    with running_pair(tiny_checkpoint) as (first, second), running_proxy((first, second)) as proxy:
        async with clients_at_work(proxy) as counts:
            await more(counts, 5)
            first.stop(signal.SIGKILL)
            await asyncio.to_thread(proxy.wait_for_replicas, 1)
            await more(counts, 1)  # what was under way has ended
            lost = failures(counts)
            await more(counts, 10)
        assert lost.keys() <= {"502", "lost"}
        assert lost.total() <= CLIENTS
        assert failures(counts) == lost
        second.stop(signal.SIGKILL)
        await asyncio.to_thread(proxy.wait_for_replicas, 0)
        async with httpx.AsyncClient(timeout=60) as client:
            refused = await client.post(f"{proxy.url}/predict", content=png(0))
            watched = await client.get(f"{proxy.watch}/ready")
        assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (503, "not_ready", "2")
        assert watched.status_code == 503


async def test_draining_replica_loses_nothing(tiny_checkpoint: Path) -> None:
    with running_pair(tiny_checkpoint) as (first, second), running_proxy((first, second)) as proxy:
        async with clients_at_work(proxy) as counts:
            await more(counts, 5)
            first.stop()
            await asyncio.to_thread(proxy.wait_for_replicas, 1)
            assert first.process.poll() is None
            assert await asyncio.to_thread(first.wait) == 0
            await more(counts, 5)
        assert set().union(*counts) == {"200"}
        await wait_for_metric(second, "vit_inflight_images", 0)
