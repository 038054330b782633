"""Client for code on an event loop of asyncio."""

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Self

import httpx2

from vit_serve_client import requests
from vit_serve_client.answers import (
    Answer,
    check,
    read_embedding,
    read_explanation,
    read_model,
    read_picture,
    read_result,
    read_results,
)
from vit_serve_client.errors import VitError
from vit_serve_client.folder import at_least_1, images_of, in_tasks
from vit_serve_client.images import Image, image_bytes, readable_bytes
from vit_serve_client.results import Embedding, Explanation, Failure, Model, Result
from vit_serve_client.transport import LIMITS, Body, failure_of, in_places, is_unready, sent_images, stream_arguments
from vit_serve_client.tries import Clocks, Tries


class AsyncVitClient:
    """Client of one service. Tasks of one event loop may share it. Close it, or use it as an asynchronous context manager."""

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        model: str | None = None,
        timeout: float = 30,
        max_retries: int = 2,
        http_client: httpx2.AsyncClient | None = None,
        clocks: Clocks | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """Make a client, without connecting.

        Args:
            base_url: URL of the service; without it `VIT_SERVE_URL`, or http://127.0.0.1:8000.
            api_key: key of the service; without it `VIT_SERVE_API_KEY`, or none.
            model: name of the model that answers, where the service has several; without it the default.
            timeout: seconds for one request, all its tries and the waits between them included.
            max_retries: most further tries of one request, where the service is busy, away or restarting.
            http_client: client that sends the requests, for certificates or proxies. It stays open when this one is closed.
            clocks: sources of time and chance, for tests.
            sleep: waits before a retry, for tests.

        Raises:
            ValueError: the URL is not one of HTTP, or the key cannot be in a header.
        """
        self._target = requests.target(base_url, api_key, model)
        self._timeout_s = timeout
        self._max_retries = max_retries
        self._http = http_client or httpx2.AsyncClient(limits=LIMITS)
        self._owns_http = http_client is None
        self._clocks = clocks or Clocks()
        self._sleep = sleep

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        if self._owns_http:
            await self._http.aclose()

    async def classify(self, image: Image, top_k: int = 5, vectors: bool = False) -> Result:
        """Classify one image; with `vectors` the result has the numbers of all classes.

        Raises:
            OSError: the image's file cannot be read.
            VitError: the service refuses it, or cannot be asked.
        """
        return read_result(await self._call(requests.predict(await asyncio.to_thread(image_bytes, image), top_k, vectors)))

    async def classify_many(
        self, images: Iterable[Image], top_k: int = 5, vectors: bool = False, *, batch_size: int = 32
    ) -> list[Result | Failure]:
        """Classify images in requests of at most `batch_size`, one after the other. A bad image fails alone.

        Where a whole request fails, each of its images does, with the same error.
        """
        at_least_1("batch_size", batch_size)
        outcomes: list[Result | Failure] = []
        read = requests.chunks(map(readable_bytes, images), batch_size)
        while (chunk := await asyncio.to_thread(next, read, None)) is not None:  # files are read in a thread
            outcomes += await self._classify_chunk(chunk, top_k, vectors)
        return outcomes

    def classify_folder(
        self, path: str | os.PathLike[str], concurrency: int = 8, top_k: int = 5, vectors: bool = False
    ) -> AsyncGenerator[tuple[Path, Result | Failure], None]:
        """Classify all images below a folder, and yield each with its path as it finishes.

        At most `concurrency` images are in memory. Closing the iterator (`contextlib.aclosing`) cancels what is under way.

        Raises:
            NotADirectoryError: it is not a folder.
        """
        return in_tasks(images_of(path, concurrency), lambda file: self._outcome(file, top_k, vectors), concurrency)

    async def embed(self, image: Image, pooling: str | None = None, normalize: bool = False) -> Embedding:
        """Return the features of one image; without `pooling` the model's usual ones.

        Raises:
            OSError: the image's file cannot be read.
            VitError: the service refuses it, or cannot be asked.
        """
        encoded = await asyncio.to_thread(image_bytes, image)
        return read_embedding(await self._call(requests.embed(encoded, pooling, normalize)))

    async def explain(self, image: Image, class_: str | int | None = None, method: str | None = None) -> Explanation:
        """Return how much each patch of one image counts for a class.

        Args:
            image: the image.
            class_: label or index of the class; None for the first one.
            method: `relevance`, or `rollout` for no class; None for the usual one.

        Raises:
            OSError: the image's file cannot be read.
            VitError: the service refuses it, or cannot be asked.
        """
        encoded = await asyncio.to_thread(image_bytes, image)
        return read_explanation(await self._call(requests.explain(encoded, class_, method)))

    async def explain_picture(
        self, image: Image, class_: str | int | None = None, method: str | None = None, *, opacity: float | None = None
    ) -> bytes:
        """Return the same as colours over the image, as a PNG; `opacity` is that of the colours, from 0 to 1.

        Raises:
            OSError: the image's file cannot be read.
            VitError: the service refuses it, or cannot be asked.
        """
        encoded = await asyncio.to_thread(image_bytes, image)
        return read_picture(await self._call(requests.explain_picture(encoded, class_, method, opacity)))

    async def model(self) -> Model:
        """Return the description of the served model."""
        return read_model(await self._call(requests.model()))

    async def ready(self) -> bool:
        """Tell whether the service takes images now; asks once.

        Raises:
            VitError: what answers is not vit-serve.
        """
        try:
            await self._try(requests.ready(), Tries(self._timeout_s, 0, self._clocks))
        except VitError as error:
            if is_unready(error):
                return False
            raise
        return True

    async def _classify_chunk(self, chunk: list[bytes | VitError], top_k: int, vectors: bool) -> list[Result | Failure]:
        images = sent_images(chunk)
        if not images:
            return in_places(chunk, [])
        try:
            return in_places(chunk, read_results(await self._call(requests.predict_batch(images, top_k, vectors)), len(images)))
        except VitError as error:
            return in_places(chunk, [Failure(error)] * len(images))

    async def _outcome(self, file: Path, top_k: int, vectors: bool) -> Result | Failure:
        image = await asyncio.to_thread(readable_bytes, file)
        if isinstance(image, VitError):
            return Failure(image)
        try:
            return read_result(await self._call(requests.predict(image, top_k, vectors)))
        except VitError as error:
            return Failure(error)

    async def _call(self, request: requests.Request) -> Answer:
        tries = Tries(self._timeout_s, self._max_retries, self._clocks)
        while True:
            try:
                return await self._try(request, tries)
            except VitError as error:
                wait_s = tries.wait_s(error)
            await self._sleep(wait_s)

    async def _try(self, request: requests.Request, tries: Tries) -> Answer:
        left_s = tries.left_s()
        try:
            async with (
                asyncio.timeout(left_s),
                self._http.stream(**stream_arguments(self._target, request, left_s)) as response,
            ):
                body = Body(response, tries)
                async for chunk in response.aiter_bytes():
                    body.add(chunk)
        except httpx2.HTTPError as error:
            raise failure_of(error, self._target, tries) from error
        except TimeoutError:
            raise tries.timeout() from None
        answer = body.answer()
        check(answer, self._clocks.wall())
        return answer
