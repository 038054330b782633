"""Retries and deadlines of both clients, against servers that misbehave."""

import threading
from pathlib import Path
from typing import Any

import pytest

from client.tests.clocks import FakeTime
from client.tests.conftest import MakeClient
from client.tests.driver import AnyClient
from client.tests.scripted_server import OK, Reply, answering, problem
from vit_serve_client import AsyncVitClient, ConnectionFailed, NotReady, Overloaded, RateLimited, Timeout, VitClient, VitError
from vit_serve_client.tries import Clocks

HTML = Reply(502, b"<html>Bad Gateway</html>", {"Content-Type": "text/html; charset=utf-8"})
CUT = Reply(cut=True)


def client_of(make_client: MakeClient, url: str, time: FakeTime, **arguments: Any) -> AnyClient:
    return make_client(url, clocks=time.clocks, sleep=time.sleep, **arguments)


@pytest.mark.parametrize(
    "first", [problem(429, "queue_full"), problem(503, "draining"), HTML, CUT], ids=["429", "503", "502", "cut"]
)
def test_another_try_succeeds(make_client: MakeClient, first: Reply) -> None:
    time = FakeTime()
    with answering(first, OK) as server:
        result = client_of(make_client, server.url, time).classify(b"image")
    assert result.predictions[0].label == "cat"
    assert time.waits == [0.25]
    assert [request.body for request in server.received] == [b"image", b"image"]


@pytest.mark.parametrize("status", [400, 401, 404, 408, 413, 415, 422, 500, 501, 504])
def test_other_statuses_are_not_retried(make_client: MakeClient, status: int) -> None:
    time = FakeTime()
    with answering(problem(status, "whatever", Retry_After="0"), OK) as server, pytest.raises(VitError) as caught:
        client_of(make_client, server.url, time).classify(b"image")
    assert (caught.value.status, caught.value.code, len(server.received), time.waits) == (status, "whatever", 1, [])


def test_waits_double_up_to_a_bound(make_client: MakeClient) -> None:
    time = FakeTime(chance=1)
    with answering(problem(503, "not_ready")) as server, pytest.raises(NotReady):
        client_of(make_client, server.url, time, timeout=100, max_retries=6).classify(b"image")
    assert time.waits == [0.5, 1, 2, 4, 8, 8]
    assert len(server.received) == 7


@pytest.mark.parametrize("retries", [0, -1])
def test_retries_can_be_switched_off(make_client: MakeClient, retries: int) -> None:
    with answering(problem(429, "queue_full"), OK) as server, pytest.raises(Overloaded):
        make_client(server.url, max_retries=retries).classify(b"image")
    assert len(server.received) == 1


@pytest.mark.parametrize("retry_after", ["7", "Sun, 06 Nov 1994 08:49:44 GMT"])
def test_retry_after_is_obeyed(make_client: MakeClient, retry_after: str) -> None:
    time = FakeTime()
    with answering(problem(429, "rate_limited", Retry_After=retry_after), OK) as server:
        client_of(make_client, server.url, time).classify(b"image")
    assert time.waits == [7]


@pytest.mark.parametrize("retry_after", ["30", "9" * 400, "Sun, 06 Nov 2094 08:49:44 GMT"], ids=["30", "huge", "date"])
def test_too_long_a_wait_fails_at_once(make_client: MakeClient, retry_after: str) -> None:
    time = FakeTime()
    busy = problem(429, "rate_limited", Retry_After=retry_after)
    with answering(busy, OK) as server, pytest.raises(RateLimited) as caught:
        client_of(make_client, server.url, time, timeout=30).classify(b"image")
    assert (len(server.received), time.waits) == (1, [])
    assert caught.value.retry_after is not None and caught.value.retry_after >= 30


def test_one_deadline_covers_all_tries(make_client: MakeClient) -> None:
    time = FakeTime()
    busy = problem(429, "queue_full", Retry_After="4")
    with answering(busy, busy, busy, OK) as server, pytest.raises(Overloaded):
        client_of(make_client, server.url, time, timeout=10, max_retries=5).classify(b"image")
    assert time.waits == [4, 4]
    deadlines = [int(request.headers["X-Request-Timeout-Ms"]) for request in server.received]
    assert deadlines == [10_000, 6_000, 2_000]


def test_silent_server_is_a_timeout(make_client: MakeClient) -> None:
    with answering(Reply(silent=True)) as server:
        with pytest.raises(Timeout, match=r"^There was no answer within 0\.2 s\.$"):
            make_client(server.url, timeout=0.2).classify(b"image")
        assert len(server.received) == 1


def test_slow_body_is_a_timeout(make_client: MakeClient) -> None:
    moments = iter([0.0, 1.0, 31.0])
    with answering(OK) as server, pytest.raises(Timeout):
        make_client(server.url, clocks=Clocks(monotonic=lambda: next(moments, 31.0))).classify(b"image")
    assert next(moments, None) is None


async def test_header_without_end_is_a_timeout() -> None:
    with answering(Reply(dripping=True)) as server:
        async with AsyncVitClient(server.url, timeout=0.3) as client:
            with pytest.raises(Timeout):
                await client.classify(b"image")
        assert len(server.received) == 1


def test_endless_answer_is_given_up(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vit_serve_client.transport.MAX_ANSWER_BYTES", len(OK.body))
    with answering(OK, Reply(200, OK.body + b" ")) as server:
        client = make_client(server.url)
        assert client.classify(b"image").model == "tiny"
        with pytest.raises(VitError, match="has more than"):
            client.classify(b"image")


def test_missing_server_fails_to_connect(make_client: MakeClient) -> None:
    time = FakeTime()
    with answering(OK) as server:
        url = server.url
    with pytest.raises(ConnectionFailed, match=r"^The connection to http://127\.0\.0\.1:\d+ failed: .+\.$") as caught:
        client_of(make_client, url, time).classify(b"image")
    assert (caught.value.status, caught.value.code, len(time.waits)) == (None, None, 2)


def test_proxy_page_is_a_sentence(make_client: MakeClient) -> None:
    time = FakeTime()
    with answering(HTML) as server, pytest.raises(VitError) as caught:
        client_of(make_client, server.url, time).classify(b"image")
    assert type(caught.value) is VitError
    assert (caught.value.status, caught.value.code, len(server.received)) == (502, None, 3)
    assert str(caught.value) == "The answer is 502 Bad Gateway (text/html) and not one of vit-serve; it may be a proxy's."


def test_redirects_are_not_followed(make_client: MakeClient) -> None:
    with answering(OK) as other:
        redirect = Reply(307, headers={"Location": other.url})
        with answering(redirect) as server, pytest.raises(VitError, match="use that URL"):
            make_client(server.url, api_key="secret").classify(b"image")
    assert (len(server.received), other.received) == (1, [])


@pytest.mark.parametrize(
    ("reply", "is_ready"),
    [(Reply(200), True), (problem(503, "not_ready"), False), (HTML, False), (CUT, False), (problem(503, "draining"), False)],
    ids=["ready", "loading", "proxy", "cut", "draining"],
)
def test_readiness_is_asked_once(make_client: MakeClient, reply: Reply, is_ready: bool) -> None:
    with answering(reply) as server:
        assert make_client(server.url).ready() is is_ready
    assert [request.path for request in server.received] == ["/health/ready"]


def test_readiness_of_something_else_is_an_error(make_client: MakeClient) -> None:
    with answering(Reply(404)) as server, pytest.raises(VitError, match="not one of vit-serve"):
        make_client(server.url).ready()


def test_closed_folder_ends_its_retries(folder: Path) -> None:
    (folder / "a.png").write_bytes(b"image")
    (folder / "b.png").write_bytes(b"image")
    busy = problem(429, "queue_full", Retry_After="3600")
    with answering(OK, busy) as server, VitClient(server.url, timeout=7200, max_retries=9) as client:
        outcomes = client.classify_folder(folder, concurrency=2)
        next(outcomes)
        server.arrived.acquire()
        server.arrived.acquire()
        outcomes.close()  # would last an hour
    assert len(server.received) == 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vit-serve-client")]
