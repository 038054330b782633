"""Offline classification of many images in this process, for the command line."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from uvicorn.loops.auto import auto_loop_factory

from app.decoding.pool.select import make_decoder
from app.errors import ServiceError
from app.metrics import Metrics
from app.serving.classifier import Classifier
from app.serving.loading import load_classifier
from app.serving.model_list import ModelSpec
from app.serving.shared import Shared
from app.settings import Settings

Key = TypeVar("Key")
Result = TypeVar("Result")


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine on the kind of event loop that uvicorn uses for the service."""
    with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
        return runner.run(work)


@asynccontextmanager
async def running_classifier(settings: Settings) -> AsyncIterator[Classifier]:
    """Load, warm up and start a classifier; close it at the end.

    Raises:
        StartError: it cannot be loaded.
    """
    metrics = Metrics()
    shared = Shared(settings, metrics, make_decoder(settings, metrics))
    try:
        classifier = load_classifier(ModelSpec(None, settings), metrics, shared)
        shared.warm_up()
        shared.start()
        classifier.start()
        try:
            yield classifier
        finally:
            await classifier.close()
    finally:
        await shared.close()


async def infer_all(
    infer: Callable[[bytes], Awaitable[Result]], images: Iterable[tuple[Key, Callable[[], bytes]]], concurrency: int
) -> AsyncIterator[tuple[Key, Result | ServiceError | OSError]]:
    """Classify or embed images concurrently, and yield each outcome with its key, in the order given.

    Args:
        infer: `classify` or `embed` of a started classifier.
        images: keys, each with a function that reads the encoded image, called when its turn comes.
        concurrency: images in flight; two batches keep the device busy.
    """

    async def outcome(read: Callable[[], bytes]) -> Result | ServiceError | OSError:
        try:
            return await infer(await asyncio.to_thread(read))
        except (ServiceError, OSError) as error:
            return error

    in_flight: list[tuple[Key, asyncio.Task[Result | ServiceError | OSError]]] = []
    for key, read in images:
        in_flight.append((key, asyncio.create_task(outcome(read))))
        if len(in_flight) >= concurrency:
            first, task = in_flight.pop(0)
            yield first, await task
    for key, task in in_flight:
        yield key, await task
