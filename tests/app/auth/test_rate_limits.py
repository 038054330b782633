"""Rate limits: windows, bounded memory, answers, and the client address behind proxies."""

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from app.auth.client_address import client_of
from app.auth.rate_limits import FixedWindows, RateLimit
from app.errors import RateLimited, StartError
from app.setting_values import Rate
from tests.app.conftest import OpenClient
from tests.support.clock import Clock
from tests.support.models import png
from tests.support.predict import assert_problem
from tests.support.server import Server, running_server


def taken(limit: RateLimit, client: str, times: int) -> int:
    """Return how many of the requests are accepted."""
    accepted = 0
    for _ in range(times):
        with suppress(RateLimited):
            limit.take(client)
            accepted += 1
    return accepted


def test_each_client_has_the_whole_limit() -> None:
    limit = RateLimit("3/minute", Clock())
    assert [taken(limit, client, 10) for client in ("a", "b", "a")] == [3, 3, 0]


def test_refusal_names_the_end_of_the_window() -> None:
    clock = Clock()
    limit = RateLimit("2/minute", clock)
    clock.now = 1000
    limit.take("a")
    clock.now = 1045
    assert taken(limit, "a", 5) == 1
    with pytest.raises(RateLimited, match="No more than 2/minute requests are taken") as refused:
        limit.take("a")
    assert refused.value.retry_after_s == 15  # refusals have not made it later
    clock.now += refused.value.retry_after_s
    assert taken(limit, "a", 5) == 2


def test_longest_wait_of_several_limits() -> None:
    clock = Clock()
    limit = RateLimit("2/second; 3 per hour", clock)
    assert taken(limit, "a", 5) == 2
    clock.now = 1
    assert taken(limit, "a", 5) == 1
    with pytest.raises(RateLimited) as refused:
        limit.take("a")
    assert refused.value.retry_after_s == 3599


def test_clients_remembered_are_bounded() -> None:
    windows = FixedWindows(Rate(1, 60), max_clients=100)
    for number in range(1000):
        windows.count(f"client {number}", number / 1000)
    assert len(windows) == 100
    assert windows.full_until("client 899", 1) == 0  # evicted, because its window would have ended first
    assert [windows.full_until(f"client {number}", 1) for number in (900, 999)] == [60.9, 60.999]


def test_ended_windows_are_evicted() -> None:
    windows = FixedWindows(Rate(1, 60), max_clients=100)
    for number in range(100):
        windows.count(f"early {number}", 0)
    for number in range(50):
        windows.count(f"late {number}", 60)
    assert len(windows) == 50


def test_counting_does_not_extend_a_window() -> None:
    windows = FixedWindows(Rate(3, 60), max_clients=100)
    for now in (0, 30, 59):
        assert windows.full_until("a", now) == 0
        windows.count("a", now)
    assert windows.full_until("a", 59) == 60
    assert windows.full_until("a", 60) == 0
    windows.count("a", 60)
    assert windows.full_until("a", 60) == 0


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::ffff", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("a proxy's word", "unknown"),
        (None, "unknown"),
    ],
)
def test_client_of_addresses(host: str | None, expected: str) -> None:
    client = None if host is None else (host, 1)
    assert client_of(Request({"type": "http", "client": client, "headers": []})) == expected


@pytest.mark.parametrize(
    ("options", "headers"),
    [
        pytest.param({"rate_limit_per_address": "2/hour"}, {}, id="address"),
        pytest.param({"rate_limit_per_key": "2/hour", "api_keys": "secret"}, {"X-API-Key": "secret"}, id="key"),
    ],
)
async def test_rate_limited_body_is_not_read(open_client: OpenClient, options: dict[str, Any], headers: dict[str, str]) -> None:
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        read += 1
        yield png(0)

    async with open_client(**options) as client:
        assert (await client.post("/predict", content=body(), headers=headers)).status_code == 200
        assert (await client.get("/model", headers=headers)).status_code == 200  # every route counts, and once
        refused = await client.post("/predict", content=body(), headers=headers)
        assert_problem(refused, 429, "rate_limited")
        assert 3590 <= int(refused.headers["retry-after"]) <= 3600
        assert read == 1
        for path in ("/health/live", "/health/ready", "/metrics", "/docs"):
            assert (await client.get(path)).status_code == 200
        counts = "key" if "api_keys" in options else "address"
        assert f'vit_rate_limited_requests_total{{limit="{counts}"}} 1.0' in (await client.get("/metrics")).text


async def test_batch_counts_as_one_request(open_client: OpenClient) -> None:
    async with open_client(rate_limit_per_address="2/hour") as client:
        files = [("images", png(seed)) for seed in range(5)]
        statuses = [(await client.post("/predict/batch", files=files)).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]


async def test_each_key_has_its_own_limit(open_client: OpenClient) -> None:
    async with open_client(rate_limit_per_key="1/hour", api_keys="one,two") as client:
        statuses = [(await client.get("/model", headers={"X-API-Key": key})).status_code for key in ("one", "two", "one", "no")]
    assert statuses == [200, 200, 429, 401]


async def test_guessing_keys_is_limited(open_client: OpenClient) -> None:
    async with open_client(rate_limit_per_address="5/hour", api_keys="secret") as client:
        tried = [(await client.get("/model", headers={"X-API-Key": f"guess {number}"})).status_code for number in range(7)]
        right = await client.get("/model", headers={"X-API-Key": "secret"})
    assert tried == [401] * 5 + [429] * 2
    assert_problem(right, 429, "rate_limited")  # or guesses could go on


async def test_limit_per_key_needs_keys(open_client: OpenClient) -> None:
    with pytest.raises(StartError, match="VIT_RATE_LIMIT_PER_KEY: there are no keys to count by"):
        async with open_client(rate_limit_per_key="1/hour"):
            pass


def statuses(server: Server, forwarded: list[str], local_address: str = "127.0.0.1") -> list[int]:
    """Return the statuses of consecutive requests, each with one X-Forwarded-For."""
    with httpx.Client(base_url=server.url, transport=httpx.HTTPTransport(local_address=local_address)) as client:
        return [client.get("/model", headers={b"X-Forwarded-For": value.encode("latin-1")}).status_code for value in forwarded]


@pytest.fixture(scope="module")
def behind_a_proxy(tiny_checkpoint: Path) -> Iterator[Server]:
    options = {"rate_limit_per_address": "1/hour", "trusted_proxies": "127.0.0.1,10.0.0.0/8"}
    with running_server(model=tiny_checkpoint, **options) as server:
        yield server


@pytest.mark.parametrize(
    ("forwarded", "expected"),
    [
        pytest.param(["192.0.2.1", "192.0.2.2", "192.0.2.1"], [200, 200, 429], id="each-client-alone"),
        pytest.param(["198.51.100.1, 192.0.2.3", "198.51.100.2, 192.0.2.3"], [200, 429], id="forged-by-the-client"),
        pytest.param(["192.0.2.4, 10.1.2.3", "192.0.2.4, 10.9.9.9"], [200, 429], id="chain-of-proxies"),
        pytest.param(["192.0.2.5:1234", "192.0.2.5:5678"], [200, 429], id="ports"),
        pytest.param(["2001:db8::1", "[2001:db8::2]:99", "2001:db8:0:1::1"], [200, 429, 200], id="ipv6-network"),
        pytest.param(["nonsense", "more, nonsense", "x" * 5000], [200, 429, 429], id="no-address"),
    ],
)
def test_trusted_proxy_names_the_client(behind_a_proxy: Server, forwarded: list[str], expected: list[int]) -> None:
    assert statuses(behind_a_proxy, forwarded) == expected


def test_invalid_forwarded_port_is_no_error(behind_a_proxy: Server) -> None:
    ports = ["9" * 4301, "+5", "1_0", "\xb2", "-1", "1e400", ""]
    forwarded = [f"{host}:{port}" for host in ("192.0.2.6", "[2001:db8:1::1]") for port in ports]
    assert set(statuses(behind_a_proxy, forwarded)) <= {200, 429}


def test_untrusted_proxy_is_ignored(behind_a_proxy: Server) -> None:
    forwarded = ["192.0.2.101", "192.0.2.102", "10.0.0.1"]
    assert statuses(behind_a_proxy, forwarded, local_address="127.0.0.2") == [200, 429, 429]


def test_no_proxy_is_trusted_by_default(tiny_checkpoint: Path) -> None:
    with running_server(model=tiny_checkpoint, rate_limit_per_address="1/hour") as server:
        assert statuses(server, ["192.0.2.1", "192.0.2.2"]) == [200, 429]
        assert httpx.get(f"{server.url}/health/ready").status_code == 200
