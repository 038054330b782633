"""Good clients whose answers are checked, and clients that send broken or oversize bodies or disconnect.

Each sends one request and tallies the answer, to compare with the service's own counters.
"""

import asyncio
import base64
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.bench.connections import Address, Answer, Connection, Connections
from app.bench.load import head

TOLERANCE = 1e-4
"""Allowed difference of a logit between batch sizes, as the README promises."""

REFUSALS = (429, 503)

_REFUSED = ("not_ready", "queue_full", "draining")
"""The same refusals as codes of single images in a batch."""

_PATIENCE_S = 60.0
_BOUNDARY = "soak"


@dataclass(slots=True)
class Tally:
    """Counts of requests and their outcomes."""

    kinds: Counter[str] = field(default_factory=Counter)
    answered: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Answers by route and status."""
    vanished: int = 0
    """Requests to /predict whose client disconnected before the answer."""
    wrong: list[str] = field(default_factory=list)
    """Descriptions of wrong answers."""
    unanswered: Counter[str] = field(default_factory=Counter)
    """Requests without an answer, by kind and error."""
    images: int = 0
    """Images with a correct answer."""
    timed: list[tuple[float, float]] = field(default_factory=list)
    """Due time and latency in seconds of single good images."""


@dataclass(frozen=True, slots=True)
class KnownImage:
    """Encoded image with the logits of the model for it alone."""

    image_bytes: bytes
    logits: NDArray[np.float64]


class Clients:
    """Clients that send requests of random kinds, by the shares in `KINDS`.

    Args:
        port: port of the server.
        images: images to send, with their expected logits.
        max_image_bytes: limit of the server.
        seed: seed of the random choices.
    """

    def __init__(self, port: int, images: Sequence[KnownImage], max_image_bytes: int, seed: int) -> None:
        self.tally = Tally()
        self._address = Address(port)
        self._images = images
        self._max_image_bytes = max_image_bytes
        self._broken = _broken_requests(images[0].image_bytes)
        self._random = random.Random(seed)
        self._connections = Connections(self._address, limit=512)

    async def call(self, due: float) -> None:
        """Send one request of a random kind."""
        kind = self._random.choices(list(KINDS), [share for share, _ in KINDS.values()])[0]
        self.tally.kinds[kind] += 1
        try:
            await KINDS[kind][1](self, due)
        except (OSError, TimeoutError) as error:
            self.tally.unanswered[f"{kind}: {type(error).__name__}"] += 1

    async def attack(self, kind: str, request: tuple[str, bytes, str]) -> None:
        """Send an attacker's request (path, body, content type); any answer will do."""
        self.tally.kinds[kind] += 1
        try:
            await self._ask(*request)
        except (OSError, TimeoutError) as error:
            self.tally.unanswered[f"{kind}: {type(error).__name__}"] += 1

    def close(self) -> None:
        self._connections.close()

    async def raw(self, due: float) -> None:
        image = self._random.choice(self._images)
        answer = await self._ask("/predict", image.image_bytes, "image/jpeg")
        if answer.status == 200:
            self.tally.timed.append((due, time.perf_counter() - due))
        self._check_one(answer, image)

    async def multipart(self, due: float) -> None:
        image = self._random.choice(self._images)
        body = multipart_body("image", [image.image_bytes])
        self._check_one(await self._ask("/predict", body, f"multipart/form-data; boundary={_BOUNDARY}"), image)

    async def base64(self, due: float) -> None:
        image = self._random.choice(self._images)
        body = json.dumps({"image": base64.b64encode(image.image_bytes).decode()}).encode()
        self._check_one(await self._ask("/predict", body, "application/json"), image)

    async def batch(self, due: float) -> None:
        """Send four images, one of them broken."""
        images = self._random.choices(self._images, k=4)
        broken = self._random.randrange(4)
        bodies = [each.image_bytes[:500] if index == broken else each.image_bytes for index, each in enumerate(images)]
        body = multipart_body("images", bodies)
        answer = await self._ask("/predict/batch", body, f"multipart/form-data; boundary={_BOUNDARY}")
        if answer.status != 200:
            return self._wrong(answer, 200)
        for index, (result, image) in enumerate(zip(json.loads(answer.body)["results"], images, strict=True)):
            if result.get("error", {}).get("code") in _REFUSED:
                continue
            if index != broken:
                self._check_result(result, image)
            elif result.get("error", {}).get("code") != "undecodable_image":
                self.tally.wrong.append(f"a broken image in a batch was answered {str(result)[:200]}")

    async def slow(self, due: float) -> None:
        """Send an image in pieces with pauses."""
        image = self._random.choice(self._images)
        size = len(image.image_bytes)
        async with self._connected() as connection:
            answered = connection.expect()
            connection.write(head("/predict", size, "image/jpeg"))
            for start in range(0, size, size // 4):
                connection.write(image.image_bytes[start : start + size // 4])
                await asyncio.sleep(0.2)
            self._check_one(await self._counted("/predict", answered), image)

    async def broken(self, due: float) -> None:
        (path, body, content_type), status = self._random.choice(self._broken)
        answer = await self._ask(path, body, content_type)
        if answer.status != status or b'"code"' not in answer.body:
            self._wrong(answer, status)

    async def declares_too_much(self, due: float) -> None:
        async with self._connected() as connection:
            answered = connection.expect()
            connection.write(head("/predict", 100 * self._max_image_bytes, "image/jpeg"))
            await self._refused(answered)

    async def sends_too_much(self, due: float) -> None:
        """Send chunks until the answer comes."""
        piece = b"%x\r\n%b\r\n" % (2**16, bytes(2**16))
        async with self._connected() as connection:
            answered = connection.expect()
            connection.write(head("/predict", None, "image/jpeg"))
            for _ in range(4 * self._max_image_bytes // 2**16):
                connection.write(piece)
                if (await asyncio.wait([answered], timeout=0.001))[0]:
                    break
            await self._refused(answered)

    async def leaves_halfway(self, due: float) -> None:
        image = self._random.choice(self._images)
        half = image.image_bytes[: self._random.randrange(len(image.image_bytes))]
        await self._vanish(head("/predict", len(image.image_bytes), "image/jpeg") + half)

    async def leaves_at_once(self, due: float) -> None:
        image = self._random.choice(self._images)
        await self._vanish(head("/predict", len(image.image_bytes), "image/jpeg") + image.image_bytes)

    async def _vanish(self, sent: bytes) -> None:
        async with self._connected() as connection:
            connection.write(sent)
            await asyncio.sleep(self._random.uniform(0.02, 0.05))  # the server has begun to read
            connection.reset()
        self.tally.vanished += 1

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Connection]:
        connection = await Connection.open(self._address)
        try:
            yield connection
        finally:
            connection.close()

    async def _refused(self, answered: Awaitable[Answer]) -> None:
        answer = await self._counted("/predict", answered)
        if answer.status != 413:
            self._wrong(answer, 413)

    async def _ask(self, path: str, body: bytes, content_type: str) -> Answer:
        request = head(path, len(body), content_type) + body
        return await self._counted(path.partition("?")[0], self._connections.send(request))

    async def _counted(self, route: str, answered: Awaitable[Answer]) -> Answer:
        async with asyncio.timeout(_PATIENCE_S):
            answer = await answered
        self.tally.answered[route, str(answer.status)] += 1
        return answer

    def _check_one(self, answer: Answer, image: KnownImage) -> None:
        if answer.status == 200:
            self._check_result(json.loads(answer.body), image)
        else:
            self._wrong(answer, 200)

    def _check_result(self, result: dict[str, Any], image: KnownImage) -> None:
        difference = np.abs(np.asarray(result.get("logits", np.nan)) - image.logits).max()
        ranked = [prediction["class_index"] for prediction in result.get("predictions", ())]
        if difference <= TOLERANCE and ranked[:1] == [int(image.logits.argmax())]:
            self.tally.images += 1
        else:
            self.tally.wrong.append(f"logits are {difference:.2g} away, of {str(result)[:200]}")

    def _wrong(self, answer: Answer, expected: int) -> None:
        if answer.status in REFUSALS and answer.retry_after:
            return  # allowed; `answered` counts it
        self.tally.wrong.append(f"{answer.status} instead of {expected}: {answer.body[:200].decode(errors='replace')}")


KINDS: dict[str, tuple[float, Callable[[Clients, float], Awaitable[None]]]] = {
    "raw": (0.55, Clients.raw),
    "multipart": (0.10, Clients.multipart),
    "base64": (0.05, Clients.base64),
    "batch": (0.05, Clients.batch),
    "slow": (0.05, Clients.slow),
    "broken": (0.10, Clients.broken),
    "declares too much": (0.03, Clients.declares_too_much),
    "sends too much": (0.02, Clients.sends_too_much),
    "leaves halfway": (0.025, Clients.leaves_halfway),
    "leaves at once": (0.025, Clients.leaves_at_once),
}
"""Share of each kind; the first five are good."""

IMAGES_A_REQUEST = 0.925
"""Mean images of a request that reach the model: three of a batch, one of any other good kind or `leaves at once`."""


def _broken_requests(image: bytes) -> list[tuple[tuple[str, bytes, str], int]]:
    """Return bad requests (path, body, content type) with the expected status."""
    form = f"multipart/form-data; boundary={_BOUNDARY}"
    return [
        (("/predict", image[: len(image) // 2], "image/jpeg"), 422),
        (("/predict", image[:1000], "image/jpeg"), 422),
        (("/predict?top_k=0", image, "image/jpeg"), 422),
        (("/predict", b"no image at all", "image/jpeg"), 415),
        (("/predict", b"", "image/jpeg"), 400),
        (("/predict", b'{"image": "***"}', "application/json"), 400),
        (("/predict", b"[" * 10_000, "application/json"), 400),
        (("/predict", multipart_body("image", [image])[:-20], form), 400),
        (("/predict", multipart_body("image", [image, image]), form), 400),
        (("/predict/batch", multipart_body("images", []), form), 400),
    ]


def multipart_body(field: str, images: Sequence[bytes]) -> bytes:
    """Return a multipart body of images under one name; its boundary is `soak`."""
    disposition = f'Content-Disposition: form-data; name="{field}"; filename="image.jpg"'
    part_head = f"--{_BOUNDARY}\r\n{disposition}\r\nContent-Type: image/jpeg\r\n\r\n".encode()
    return b"".join(part_head + image + b"\r\n" for image in images) + f"--{_BOUNDARY}--\r\n".encode()
