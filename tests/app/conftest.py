"""Fixtures: the app in this process, ready, and its client."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.main import create_app
from app.serving.loading import Run, load_classifier
from app.settings import read_settings

OpenClient = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture(scope="session")
def open_client(tiny_checkpoint: Path) -> OpenClient:
    """Open a client of an app: `async with open_client(max_inflight_images=2) as client`; `run` replaces the inference."""

    @asynccontextmanager
    async def open_client(run: Run | None = None, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
        settings = read_settings(**{"model": tiny_checkpoint, "max_batch_size": 4, "inference_threads": 1, **options})
        app = create_app(settings) if run is None else create_app(settings, load=partial(load_classifier, run=run))
        transport = httpx.ASGITransport(app)
        async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await app.state.vit_serve.starting
            client.app = app  # type: ignore[attr-defined] # for tests that reach behind the wire
            yield client

    return open_client


@pytest.fixture
async def client(open_client: OpenClient) -> AsyncIterator[httpx.AsyncClient]:
    async with open_client() as client:
        yield client
