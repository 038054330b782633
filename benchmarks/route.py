"""CPU time that the event loop spends on a request to /predict, with decoder and engine faked, and without a socket.

python -m benchmarks.route [--rounds N] [--requests N] [--log-level LEVEL] [--query QUERY]

It compares versions of the code: run it in both checkouts in turn, and read the least of the rounds.
"""

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from starlette.types import ASGIApp, Message, Scope

from app.decoding import Decoded, OnDecoded, Preprocessor
from app.main import create_app
from app.pixels import Pixels
from app.process.logs import configure_logging
from app.serving.loading import load_classifier
from app.serving.runner import ModelRunner, Scores
from app.settings import read_settings
from benchmarks.models import BenchmarkModel

_CLASSES = 1000
_IMAGE = bytes(105_000)
_TINY = BenchmarkModel("tiny", "one block of 64 numbers", 64, 1, 1, depth=1)


class FakeDecoder:
    """Decoder that gives the same pixels at once."""

    why_not_ready = None

    def __init__(self, pixels: Pixels) -> None:
        self._decoded = Decoded(pixels, 1e-4, 1e-3)

    def warm_up(self) -> None:
        """See `Decoder`."""

    def start(self) -> None:
        """See `Decoder`."""

    async def decode(
        self,
        image_bytes: bytes,
        request: Hashable = None,
        preprocessor: Preprocessor | None = None,
        on_decoded: OnDecoded | None = None,
    ) -> Decoded:
        """See `Decoder`."""
        if on_decoded is not None:
            on_decoded(self._decoded)
        return self._decoded

    async def close(self) -> None:
        """See `Decoder`."""


async def fake_run(runner: ModelRunner, images: Sequence[Pixels]) -> list[Scores]:
    """Give the same scores to every image at once."""
    return [_SCORES] * len(images)


def _scores() -> Scores:
    logits = np.random.default_rng(0).normal(size=_CLASSES).astype(np.float32)
    shares = np.exp(logits) / np.exp(logits).sum()
    return Scores(logits, shares.astype(np.float32))


_SCORES = _scores()


async def send_one(app: ASGIApp, scope: Scope) -> None:
    """Have the application answer one request.

    Raises:
        SystemExit: it refuses.
    """
    unread, sent, never = [{"type": "http.request", "body": _IMAGE, "more_body": False}], list[Message](), asyncio.Event()

    async def receive() -> Message:
        if not unread:
            await never.wait()  # the client stays
        return unread.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    await app({**scope, "state": {}}, receive, send)
    if sent[0]["status"] != 200:
        raise SystemExit(f"refused: {sent}")


async def measure(app: Any, query: str, rounds: int, requests: int) -> list[float]:
    """Return the milliseconds of a request in each round."""
    headers = {"host": "localhost", "content-type": "image/jpeg", "content-length": str(len(_IMAGE)), "user-agent": "bench"}
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/predict",
        "raw_path": b"/predict",
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
    async with app.router.lifespan_context(app):
        await app.state.vit_serve.starting
        for _ in range(requests // 2):
            await send_one(app, scope)
        times = []
        for _ in range(rounds):
            began = time.thread_time()
            for _ in range(requests):
                await send_one(app, scope)
            times.append((time.thread_time() - began) / requests * 1e3)
    return times


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--query", default="vectors=false")
    arguments = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as directory, Path("/dev/null").open("w") as nowhere:
        with contextlib.redirect_stderr(nowhere):
            configure_logging(arguments.log_level, "json")
        model = _TINY.directory(Path(directory))
        settings = read_settings(model=str(model), engine="torch", inference_threads=1, explain=False)
        pixels = np.zeros((3, 224, 224), np.uint8)
        load = partial(load_classifier, run=fake_run)
        app = create_app(settings, load=load, make_decoder=lambda settings, metrics: FakeDecoder(pixels))
        times = uvloop.run(measure(app, arguments.query, arguments.rounds, arguments.requests))
    sys.stdout.write(f"least {min(times):.3f} ms, median {statistics.median(times):.3f} ms of CPU a request\n")


if __name__ == "__main__":
    main()
