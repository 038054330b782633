"""Work on many files at once, in threads or in tasks: in bounded memory, and stopped when its iterator is closed."""

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from threading import Event
from typing import TypeVar

from vit_serve_client.images import images_below

T = TypeVar("T")


def images_of(folder: str | os.PathLike[str], concurrency: int) -> Iterator[Path]:
    """Return an iterator over the images below a folder.

    Raises:
        NotADirectoryError: it is not a folder.
        ValueError: `concurrency` is not positive.
    """
    at_least_1("concurrency", concurrency)
    if not os.path.isdir(folder):
        raise NotADirectoryError(f"{os.fspath(folder)} is not a folder")
    return images_below(Path(folder))


def at_least_1(name: str, number: int) -> None:
    """Refuse a number that is not positive."""
    if number < 1:
        raise ValueError(f"{name} must be at least 1, not {number}")


def in_threads(
    paths: Iterator[Path], work: Callable[[Path, Event], T], concurrency: int
) -> Generator[tuple[Path, T], None, None]:
    """Yield what the work returns for each path, as it finishes. The event tells work that nobody waits for it any more."""
    stop = Event()
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="vit-serve-client")
    running: dict[Future[T], Path] = {}
    try:
        while True:
            for path in islice(paths, concurrency - len(running)):
                running[pool.submit(work, path, stop)] = path
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


async def in_tasks(
    paths: Iterator[Path], work: Callable[[Path], Awaitable[T]], concurrency: int
) -> AsyncGenerator[tuple[Path, T], None]:
    """Yield what the work returns for each path, as it finishes. Work that is running when this is closed is cancelled."""
    running: dict[asyncio.Task[T], Path] = {}

    async def run(path: Path) -> T:
        return await work(path)

    try:
        while True:
            while len(running) < concurrency and (path := await asyncio.to_thread(next, paths, None)) is not None:
                running[asyncio.create_task(run(path))] = path
            if not running:
                return
            for task in (await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED))[0]:
                yield running.pop(task), task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
