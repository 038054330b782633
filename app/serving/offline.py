"""Classify many images in this process, with no server: what the command line does."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from uvicorn.loops.auto import auto_loop_factory

from app.errors import ServiceError
from app.metrics import Metrics
from app.serving.classifier import Classifier
from app.serving.loading import load_classifier
from app.serving.results import Classification
from app.settings import Settings

Key = TypeVar("Key")
Result = TypeVar("Result")


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end on the event loop that uvicorn takes for the service."""
    with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
        return runner.run(work)


@asynccontextmanager
async def running_classifier(settings: Settings) -> AsyncIterator[Classifier]:
    """A classifier, loaded, warmed up and working.

    Raises:
        StartError: it cannot be loaded.
    """
    classifier = load_classifier(settings, Metrics())
    classifier.start()
    try:
        yield classifier
    finally:
        await classifier.close()


async def classify_all(
    classifier: Classifier, images: Iterable[tuple[Key, Callable[[], bytes]]], concurrency: int
) -> AsyncIterator[tuple[Key, Classification | ServiceError | OSError]]:
    """Classify images, `concurrency` at once, and give each outcome under its key, in the order sent.

    Args:
        classifier: at work.
        images: keys, each with what reads the encoded image; read only when its turn comes.
        concurrency: images under way at once; two batches keep the device busy.
    """

    async def classify(read: Callable[[], bytes]) -> Classification | ServiceError | OSError:
        try:
            return await classifier.classify(await asyncio.to_thread(read))
        except (ServiceError, OSError) as error:
            return error

    under_way: list[tuple[Key, asyncio.Task[Classification | ServiceError | OSError]]] = []
    for key, read in images:
        under_way.append((key, asyncio.create_task(classify(read))))
        if len(under_way) >= concurrency:
            first, task = under_way.pop(0)
            yield first, await task
    for key, task in under_way:
        yield key, await task
