"""Leak test: the memory, files and threads of a real server process do not grow with the requests answered."""

import asyncio
import itertools
import statistics
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np

from benchmarks.clients import Clients, KnownImage
from benchmarks.watch import Usage, usage
from tests.support.models import encode, random_image
from tests.support.server import Server, running_server

_MAX_IMAGE_BYTES = 50_000
_IMAGE_SIZE = 56
"""Side of the model's input: a leak would keep 9 KiB of pixels for each image."""

_FEW = 8
"""Tolerated new files or threads: decoders and OpenVINO open some only under load."""

_CLIENTS = 32
_WARM_UP = 800
_BLOCK = 150
_BLOCKS = 8
_TRIES = 3
_GROWTH = 1024
"""Bytes per request that count as growth: a ninth of an image, and above the noise of a warm allocator."""


class Watched:
    """Load on a server with requests of every kind, and measurements of its process."""

    def __init__(self, server: Server) -> None:
        self._pid = server.process.pid
        self.clients = Clients(int(urlsplit(server.url).port or 0), _known_images(server.url), _MAX_IMAGE_BYTES, seed=0)
        self.resident_bytes: list[int] = []

    async def call(self, requests: int) -> Usage:
        """Send requests by a fixed number of clients, each awaiting its answer, and measure the process."""
        turns = iter(range(requests))

        async def client() -> None:
            for _ in turns:
                await self.clients.call(time.perf_counter())

        await asyncio.gather(*(client() for _ in range(_CLIENTS)))
        self.clients.close()
        return usage([self._pid])

    async def growth(self) -> float:
        """Return the growth in resident bytes per request.

        It is the median slope between all pairs of measurements (Theil-Sen), which ignores single jumps of the allocator.
        """
        sizes = [(await self.call(_BLOCK)).resident_bytes for _ in range(_BLOCKS + 1)]
        assert (self.clients.tally.wrong, self.clients.tally.unanswered.total()) == ([], 0)
        pairs = itertools.combinations(enumerate(sizes), 2)
        return statistics.median((late - early) / (j - i) for (i, early), (j, late) in pairs) / _BLOCK

    async def grows_on(self) -> bool:
        """Return True if memory grows in every measurement: an allocator settles sooner or later, a leak does not."""
        await self.call(_WARM_UP)
        for _ in range(_TRIES):
            if await self.growth() < _GROWTH:
                return False
        return True


def _known_images(url: str) -> list[KnownImage]:
    """Return images, each with the logits that it gets alone."""
    images = [encode(random_image(seed, 120, 100), "JPEG") for seed in range(8)]
    with httpx.Client(base_url=url, timeout=60) as client:
        return [KnownImage(image, np.array(client.post("/predict", content=image).json()["logits"])) for image in images]


async def test_memory_does_not_grow(tiny_checkpoint: Path) -> None:
    with running_server(model=tiny_checkpoint, image_size=_IMAGE_SIZE, max_image_bytes=_MAX_IMAGE_BYTES) as server:
        before = usage([server.process.pid])  # no client is connected
        watched = Watched(server)
        assert not await watched.grows_on()
        async with asyncio.timeout(60):  # the server notices closed connections a little later
            while (after := await watched.call(0)).open_files > before.open_files + _FEW:  # noqa: ASYNC110 - in another process
                await asyncio.sleep(0.1)
        assert after.threads <= before.threads + _FEW


async def test_leak_is_detected(tiny_checkpoint: Path) -> None:
    command = [sys.executable, "-m", "tests.support.leaking_server"]
    settings = {"model": tiny_checkpoint, "image_size": _IMAGE_SIZE, "max_image_bytes": _MAX_IMAGE_BYTES}
    with running_server(command=command, **settings) as server:
        assert await Watched(server).grows_on()
