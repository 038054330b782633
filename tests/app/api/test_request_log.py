"""Sampling of the request log: the first refusal of a second, and the number of the others."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from tests.app.conftest import OpenClient
from tests.support.models import png

Lines = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    """Return the lines logged of requests so far: `lines(event)`."""
    caplog.set_level("INFO")

    def lines(event: str = "request") -> list[dict[str, Any]]:
        written = [record.msg for record in caplog.records]
        return [line for line in written if isinstance(line, dict) and line["event"] == event]

    return lines


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110 - a line in the log has no Event
            await asyncio.sleep(0.01)


async def test_refusals_are_sampled_and_counted(client: httpx.AsyncClient, lines: Lines) -> None:
    for _ in range(5):
        await client.get("/nowhere")
    await until(lambda: sum(line["requests"] for line in lines("more requests refused")) + len(lines()) == 5)
    first, last = lines()[0], lines("more requests refused")[0]
    assert (first["status"], first["code"], first["route"]) == (404, "not_found", "unmatched")
    assert (last["status"], last["code"]) == (404, "not_found")
    assert "request_id" in first
    assert "request_id" not in last
    assert 'route="unmatched",status="404"} 5.0' in (await client.get("/metrics")).text


async def test_single_refusal_has_no_count(client: httpx.AsyncClient, lines: Lines) -> None:
    for path in ("/nowhere", "/elsewhere"):
        await client.get(path)
        await asyncio.sleep(1.5 if path == "/nowhere" else 0)  # the second ends without a count
    assert (len(lines()), lines("more requests refused")) == (2, [])


async def test_each_refusal_reason_has_a_line(open_client: OpenClient, lines: Lines) -> None:
    async with open_client(max_inflight_bytes=1000, max_image_bytes=1000, max_request_bytes=1000) as client:
        for _ in range(2):
            await client.post("/predict", content=b"no image")
            await client.post("/predict", content=bytes(2000))
            await client.post("/predict?top_k=0", content=png(0))
            await client.get("/predict")
    reasons = [(line["status"], line["code"]) for line in lines()]
    assert sorted(set(reasons)) == [
        (405, "method_not_allowed"),
        (413, "image_too_large"),
        (415, "unsupported_image_format"),
        (422, "invalid_parameter"),
    ]
    counts = lines("more requests refused")  # although the seconds had not ended
    assert sum(line["requests"] for line in counts) + len(reasons) == 8


async def stalled() -> AsyncIterator[bytes]:
    """Send the beginning of an image and stop."""
    yield png(0)[:10]
    await asyncio.Event().wait()


async def test_answers_and_failures_have_every_line(open_client: OpenClient, lines: Lines) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("the model fails")

    async with open_client(run=fail) as client:
        for _ in range(3):
            await client.get("/model")
            await client.post("/predict", content=png(0))
            await client.post("/predict", content=stalled(), headers={"X-Request-Timeout-Ms": "1"})
    statuses = [line["status"] for line in lines()]
    assert [statuses.count(status) for status in (200, 500, 504)] == [3, 3, 3]
    assert {line["code"] for line in lines() if line["status"] >= 500} == {"inference_failed", "deadline_exceeded"}


async def test_probes_do_not_hide_refusals(open_client: OpenClient, lines: Lines) -> None:
    async with open_client() as client:
        await client.app.state.vit_serve.service.drain(0)  # type: ignore[attr-defined]
        for path in ("/health/ready", "/model"):
            assert (await client.get(path)).status_code == 503
    assert [line["route"] for line in lines()] == ["/model"]
