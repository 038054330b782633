"""Attackers beside the soak's clients, each in its own part of every minute, compared with the calm part.

usual            the clients at their full rate
calm             fewer clients: the baseline for the parts below
kills            decoders are killed at random, as the kernel does when memory runs out
large batches    one client repeats a batch of images that each take a decoder for a second
hostile bodies   sixteen clients send bodies that are slow to parse
"""

import asyncio
import io
import math
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from PIL import Image

from benchmarks.clients import Clients, multipart_body

PARTS = {
    "usual": 0.0,
    "calm": 0.43,
    "kills": 0.60,
    "recovery": 0.633,
    "large batches": 0.68,
    "rest": 0.83,
    "hostile bodies": 0.85,
}
"""Begin of each part as a share of the period, which is a minute."""

FEWER = 0.4
"""Share of the full rate in all parts but `usual`."""

PERIOD_S = 60.0

_CLIENTS = 16
_LARGE_SIDE = 7071
_LARGE_IMAGES = 8


@dataclass(slots=True)
class Periods:
    """Parts of a period by time, in seconds of `time.perf_counter`."""

    began: float
    period_s: float

    def part(self, moment: float) -> str:
        """Return the part at a moment."""
        share = (moment - self.began) / self.period_s % 1
        return next(name for name, begins in reversed(PARTS.items()) if begins <= share)

    def next_begin(self, part: str, now: float) -> float:
        """Return the next moment at which a part begins."""
        share = (now - self.began) / self.period_s
        return self.began + self.period_s * (int(share) + PARTS[part] + (share % 1 > PARTS[part]))

    def seconds(self, part: str) -> float:
        """Return the length of a part."""
        begins = [*PARTS.values(), 1.0]
        return self.period_s * next(
            end - begin for (begin, end), name in zip(pairwise(begins), PARTS, strict=True) if name == part
        )


@dataclass(slots=True)
class Attackers:
    """Attacks on a server; `clients` counts the answers."""

    clients: Clients
    pid: int
    """Process id of the server."""
    periods: Periods
    ends: float = math.inf
    """Moment after which no attack begins, by `time.perf_counter`."""
    kills: int = 0
    _large: bytes = field(default_factory=lambda: multipart_body("images", [large_image()] * _LARGE_IMAGES))
    _bodies: Sequence[tuple[str, bytes, str]] = field(default_factory=lambda: hostile_bodies())

    async def attack(self) -> None:
        """Run all attacks, each in its part of every period, until the end; wait for all answers."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._repeat_during("kills", self._kill))
            group.create_task(self._repeat_during("large batches", self._send_large_batch))
            for number in range(_CLIENTS):
                group.create_task(self._repeat_during("hostile bodies", self._sender(number)))

    async def _repeat_during(self, part: str, attack: Callable[[], Awaitable[None]]) -> None:
        """Repeat an attack while its part lasts."""
        while (begin := self.periods.next_begin(part, time.perf_counter())) < self.ends:
            await asyncio.sleep(begin - time.perf_counter())
            while time.perf_counter() < min(self.ends, begin + self.periods.seconds(part)):
                with suppress(OSError, TimeoutError):  # `clients` counts them
                    await attack()

    async def _kill(self) -> None:
        for pid in decoders_of(self.pid):
            if random.random() < 0.5:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    self.kills += 1
        await asyncio.sleep(random.random() * 0.1)

    async def _send_large_batch(self) -> None:
        await self.clients.attack(
            "large batch", ("/predict/batch?vectors=false", self._large, "multipart/form-data; boundary=soak")
        )

    def _sender(self, number: int) -> Callable[[], Awaitable[None]]:
        turns = iter(range(number, 10**9))

        async def send() -> None:
            await self.clients.attack("hostile body", self._bodies[next(turns) % len(self._bodies)])

        return send


def decoders_of(pid: int) -> list[int]:
    """Return the decoding workers of a server, its grandchildren."""
    return [worker for zygote in _children(pid) for worker in _children(zygote)]


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # it has ended
            found += map(int, task.read_text().split())
    return found


def large_image() -> bytes:
    """Encode an image of 50 million pixels in 50 KB."""
    file = io.BytesIO()
    Image.new("L", (_LARGE_SIDE, _LARGE_SIDE)).save(file, "PNG")
    return file.getvalue()


def hostile_bodies() -> list[tuple[str, bytes, str]]:
    """Make bodies that are slow to parse: path, body and content type."""
    form, mebibyte = "multipart/form-data; boundary=soak", 2**20
    part = b'--soak\r\nContent-Disposition: form-data; name="images"\r\n\r\n'
    return [
        ("/predict", b"", "multipart/form-data; boundary=" + "x;" * 15_000),
        ("/predict/batch", (part + b"\r\n") * 100_000, form),
        ("/predict/batch", b"--soak\r\n\r\n\r\n" * 200_000, form),
        ("/predict/batch", part + b"\r" * (4 * mebibyte) + b"\r\n--soak--\r\n", form),
        ("/predict/batch", part + b"\r\n--soa" * mebibyte + b"\r\n--soak--\r\n", form),
        ("/predict/batch", b'{"images": ["' + b"A" * (16 * mebibyte) + b'"]}', "application/json"),
        ("/predict/batch", b'{"images": ["' + b"\\/" * (2 * mebibyte) + b'"]}', "application/json"),
        ("/predict", b'{"image": "' + b" " * mebibyte + b'"}', "application/json"),
        ("/predict/batch", part + b"\r\n--soakx" * (2 * mebibyte), form),
        ("/predict/batch", part + b"\r\n--soak" + b" " * (32 * mebibyte), form),
        ("/predict/batch", b'{"a": "' + b'\\"' * (8 * mebibyte) + b'"}', "application/json"),
        ("/predict/batch", b"[" * (16 * mebibyte), "application/json"),
        ("/predict/batch", b'{"images": [' + b'"",' * (4 * mebibyte), "application/json"),
        ("/predict?top_k=0", b"x", "image/jpeg"),
    ]
