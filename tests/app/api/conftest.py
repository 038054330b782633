"""The app in this process, ready, with a client that calls it."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.batching import Batcher
from app.classifier import Classifier
from app.images import ImageDecoder, Pixels
from app.main import create_app
from app.metrics import Metrics
from app.runner import ModelRunner, Scores
from app.settings import Settings, read_settings
from model.checkpoint import load_checkpoint

Run = Callable[[ModelRunner, Sequence[Pixels]], Any]
OpenClient = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


def loader_with(run: Run) -> Callable[[Settings, Metrics], Classifier]:
    """Makes classifiers whose runs are `run(runner, images)`: to hold up, to fail, to die."""

    def load(settings: Settings, metrics: Metrics) -> Classifier:
        checkpoint = load_checkpoint(settings.model)
        decoder = ImageDecoder(
            checkpoint.preprocessing,
            formats=settings.image_formats,
            max_bytes=settings.max_image_bytes,
            max_pixels=settings.max_image_pixels,
        )
        runner = ModelRunner(
            checkpoint, device="cpu", dtype="float32", compile_model=False, max_batch_size=4, threads=1
        )  # fmt: skip
        batcher = Batcher[Pixels, Scores](
            lambda images: run(runner, images),
            max_batch_size=settings.max_batch_size,
            max_queue_size=settings.max_queue_size,
        )
        return Classifier(checkpoint, decoder, runner, batcher, decode_threads=2, metrics=metrics)

    return load


@pytest.fixture
def open_client(tiny_checkpoint: Path) -> OpenClient:
    """`async with open_client(max_queue_size=2, ...) as client`: settings as keywords, `run` to replace the model's run."""

    @asynccontextmanager
    async def open_client(run: Run | None = None, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
        settings = read_settings(**{"model": tiny_checkpoint, "max_batch_size": 4, **options})
        app = create_app(settings) if run is None else create_app(settings, load=loader_with(run))
        transport = httpx.ASGITransport(app)
        async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await app.state.starting
            client.app = app  # type: ignore[attr-defined] # for tests that reach behind the wire
            yield client

    return open_client


@pytest.fixture
async def client(open_client: OpenClient) -> AsyncIterator[httpx.AsyncClient]:
    async with open_client() as client:
        yield client
