"""Requests of `POST /predict` and checks of their answers."""

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx

from app.pixels import Pixels
from app.serving.runner import ModelRunner

MULTIPART = "multipart/form-data; boundary=frontier"
IMAGE = 'Content-Disposition: form-data; name="image"'
NOTE = "Content-Disposition: form-data; name=note"

NO_NUMBERS = [
    "+5",
    "-5",
    " 5",
    "5 ",
    "1_000",
    "5.0",
    "1e3",
    "1e400",
    "0x5",
    "inf",
    "nan",
    "\xb2",
    "9" * 19,
    "9" * 4301,
    "0" * 4301,
]
"""Values that are not a plain whole number."""


def assert_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    problem: dict[str, Any] = response.json()
    assert (response.status_code, problem["code"]) == (status, code), problem
    assert response.headers["content-type"] == "application/problem+json"
    assert set(problem) == {"type", "title", "status", "detail", "code"}
    assert problem["status"] == status
    return problem


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    """Yield a body in chunks, which has no Content-Length."""
    for part in parts:
        yield part


def base64_of(image_bytes: bytes) -> str:
    return base64.b64encode(image_bytes).decode()


def multipart(*parts: tuple[str, bytes], before: bytes = b"", after: bytes = b"", boundary: str = "frontier") -> dict[str, Any]:
    """Return a request whose parts have exactly these headers."""
    framed = [f"--{boundary}\r\n{header}\r\n\r\n".encode() + body + b"\r\n" for header, body in parts]
    body = b"".join([before, *framed, f"--{boundary}--\r\n".encode(), after])
    return {"content": body, "headers": {"Content-Type": f"multipart/form-data; boundary={boundary}"}}


class Held:
    """Inference that waits until its gate is opened."""

    def __init__(self) -> None:
        self.begun, self.gate = asyncio.Event(), asyncio.Event()
        self.ran = 0

    async def __call__(self, runner: ModelRunner, images: Sequence[Pixels]) -> Any:
        self.begun.set()
        await self.gate.wait()
        self.ran += len(images)
        return await runner.run(images)
