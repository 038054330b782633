"""A service that gives every image the logits 2, 1, 0 for cat, dog and espresso, behind a real socket."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
import torch
import uvicorn

from app.api.state import AppState, state_of
from app.http.connections import Connections
from app.http.limits import HttpLimits
from app.http.protocol import HttpProtocol
from app.main import create_app
from app.pixels import Pixels
from app.server import server_error
from app.serving.loading import load_classifier
from app.serving.runner import ModelRunner, Scores
from app.settings import read_settings
from model.checkpoints.checkpoint import save_checkpoint
from model.head import softmax
from model.vit import VisionTransformer
from tests.support.models import ROOT, TINY_DINOV2, TINY_PREPROCESSING

CAT = (ROOT / "examples" / "images" / "cat.jpg").read_bytes()
LABELS = ("cat", "dog", "espresso")
LOGITS = np.array([2, 1, 0], np.float32)

PROBABILITIES = [0.66524096, 0.24472847, 0.09003057]

OpenService = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture(scope="session")
def stub_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of three classes, called `vit`."""
    directory = tmp_path_factory.mktemp("stub") / "vit"
    model = VisionTransformer(replace(TINY_DINOV2, num_classes=3))
    save_checkpoint(directory, model, TINY_PREPROCESSING, LABELS, torch.float32)
    return directory


async def stub_run(runner: ModelRunner, images: Sequence[Pixels]) -> list[Scores]:
    features = np.arange(128, dtype=np.float32)  # those of the checkpoint: 64 of class token and mean, 32 of each
    return [Scores(LOGITS, softmax(LOGITS[None])[0], features) for _ in images]


@pytest.fixture(scope="session")
def open_service(stub_checkpoint: Path) -> OpenService:
    """Serve over a socket: `async with open_service(api_keys="k") as client`; `run` replaces the inference."""

    @asynccontextmanager
    async def open_service(run: Any = stub_run, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
        settings = read_settings(**{"model": str(stub_checkpoint), "max_batch_size": 4, "inference_threads": 1, **options})
        app = create_app(settings, load=partial(load_classifier, run=run))
        state = app.state.vit_serve
        connections = Connections(
            HttpLimits(max_connections=settings.max_connections, reserve=16, header_timeout_s=30),
            state.metrics,
            health_paths=state.wires.health_paths,
            server_error=partial(server_error, state.wires),
            slices=state.slices,
        )
        config = uvicorn.Config(
            app,
            port=0,
            http=partial(HttpProtocol, connections=connections),  # type: ignore[arg-type] # as it is used
            ws="none",
            log_config=None,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 - uvicorn has no Event for it
            await asyncio.sleep(0.01)
        await state.starting
        host, port = server.servers[0].sockets[0].getsockname()
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=30) as client:
            client.app = app  # type: ignore[attr-defined] # for tests that reach behind the wire
            try:
                yield client
            finally:
                server.should_exit = True
                await serving

    return open_service


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(open_service: OpenService) -> AsyncIterator[httpx.AsyncClient]:
    async with open_service() as client:
        yield client


def state_behind(client: httpx.AsyncClient) -> AppState:
    """Return the state of the application that a client of `open_service` talks to."""
    return state_of(client.app)  # type: ignore[attr-defined] # set by `open_service`


def assert_error(response: httpx.Response, status: int, says: str = "") -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert isinstance(body["error"], str)
    assert says in body["error"]
