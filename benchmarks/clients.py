"""Clients of every sort: good ones whose answers are checked, and those that send what is broken, too much, or vanish.

Each sends one request, and writes down what it was answered, so that the service's own counters can be held against it.
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

from benchmarks.load import Answer, Connection, Connections, head

TOLERANCE = 1e-4
"""Of a logit, by the size of the batch that the image was in; what the README promises."""

REFUSALS = (429, 503)

_REFUSED = ("not_ready", "queue_full", "draining")
"""Codes of the same, of one image of a batch."""

_PATIENCE_S = 60.0
_BOUNDARY = "soak"


@dataclass(slots=True)
class Tally:
    """What was sent and what came of it."""

    kinds: Counter[str] = field(default_factory=Counter)
    answered: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By route and status."""
    vanished: int = 0
    """Requests to /predict that nobody waited for."""
    wrong: list[str] = field(default_factory=list)
    """Answers that were not what they had to be, in words."""
    unanswered: Counter[str] = field(default_factory=Counter)
    """Requests that were waited for in vain, by what happened."""
    images: int = 0
    """That were answered rightly."""
    timed: list[tuple[float, float]] = field(default_factory=list)
    """Of single good images: when they were due, and how many seconds later they were answered."""


@dataclass(frozen=True, slots=True)
class KnownImage:
    """An encoded image and what the model says of it alone."""

    image_bytes: bytes
    logits: NDArray[np.float64]


class Clients:
    """Sends requests of a kind that chance takes, by the shares that are stated.

    Args:
        port: of the server.
        images: to ask for, with what has to be answered.
        max_image_bytes: that the server takes.
        seed: of what chance takes.
    """

    def __init__(self, port: int, images: Sequence[KnownImage], max_image_bytes: int, seed: int) -> None:
        self.tally = Tally()
        self._port = port
        self._images = images
        self._max_image_bytes = max_image_bytes
        self._broken = _broken_requests(images[0].image_bytes)
        self._random = random.Random(seed)
        self._connections = Connections(port, limit=512)

    async def call(self, due: float) -> None:
        """One request, from the moment it was due to its end."""
        kind = self._random.choices(list(KINDS), [share for share, _ in KINDS.values()])[0]
        self.tally.kinds[kind] += 1
        try:
            await KINDS[kind][1](self, due)
        except (OSError, TimeoutError) as error:
            self.tally.unanswered[f"{kind}: {type(error).__name__}"] += 1

    async def attack(self, kind: str, request: tuple[str, bytes, str]) -> None:
        """Send a request of an attacker: path, body and content type. Any answer will do, but that there is one."""
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
        """Four images, one of them broken."""
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
        """An image that comes in pieces, with pauses between them."""
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
        """Chunk after chunk, until the answer comes."""
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
            await asyncio.sleep(self._random.uniform(0.02, 0.05))  # so that it has begun to be read
            connection.reset()
        self.tally.vanished += 1

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Connection]:
        connection = await Connection.open(self._port)
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
            return  # anybody may be told to come back later; how many were is in `answered`
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
"""Share of each kind of client; the first five are good."""

IMAGES_A_REQUEST = 0.925
"""That the model is asked for on average: three of each batch, one of each other good client and of who leaves at once."""


def _broken_requests(image: bytes) -> list[tuple[tuple[str, bytes, str], int]]:
    """What cannot be answered, as path, body and content type, and the status that has to tell so."""
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
    """Make a body of image parts of one name; its boundary is `soak`."""
    disposition = f'Content-Disposition: form-data; name="{field}"; filename="image.jpg"'
    part_head = f"--{_BOUNDARY}\r\n{disposition}\r\nContent-Type: image/jpeg\r\n\r\n".encode()
    return b"".join(part_head + image + b"\r\n" for image in images) + f"--{_BOUNDARY}--\r\n".encode()
