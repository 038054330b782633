"""An `AsyncVitClient` that is called like a `VitClient`, so that one test covers both."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from pathlib import Path
from typing import Any, Self, TypeAlias, TypeVar

from vit_serve_client import AsyncVitClient, Embedding, Explanation, Failure, Model, Result, VitClient

T = TypeVar("T")


class AsyncDriver:
    """Runs each call of an `AsyncVitClient` on an event loop of its own."""

    def __init__(self, url: str, *, sleep: Callable[[float], object] | None = None, **arguments: Any) -> None:
        if sleep is not None:

            async def async_sleep(seconds: float) -> None:
                sleep(seconds)

            arguments["sleep"] = async_sleep
        self._runner = asyncio.Runner()
        self._client = AsyncVitClient(url, **arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._client.aclose())
        self._runner.close()

    def classify(self, *arguments: Any, **options: Any) -> Result:
        return self._run(self._client.classify(*arguments, **options))

    def embed(self, *arguments: Any, **options: Any) -> Embedding:
        return self._run(self._client.embed(*arguments, **options))

    def explain(self, *arguments: Any, **options: Any) -> Explanation:
        return self._run(self._client.explain(*arguments, **options))

    def explain_picture(self, *arguments: Any, **options: Any) -> bytes:
        return self._run(self._client.explain_picture(*arguments, **options))

    def classify_many(self, *arguments: Any, **options: Any) -> list[Result | Failure]:
        return self._run(self._client.classify_many(*arguments, **options))

    def classify_folder(self, *arguments: Any, **options: Any) -> Generator[tuple[Path, Result | Failure], None, None]:
        return self._iterate(self._client.classify_folder(*arguments, **options))

    def model(self) -> Model:
        return self._run(self._client.model())

    def ready(self) -> bool:
        return self._run(self._client.ready())

    def _run(self, call: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await call

        return self._runner.run(awaited())

    def _iterate(self, items: AsyncGenerator[T, None]) -> Generator[T, None, None]:
        try:
            while True:
                try:
                    item = self._run(anext(items))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            self._run(items.aclose())


AnyClient: TypeAlias = VitClient | AsyncDriver
