"""Shared fixtures: the real service with a tiny model, and both clients behind one face."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest

from client.tests.driver import AnyClient, AsyncDriver
from tests.support.models import write_tiny_checkpoint
from tests.support.server import Server, running_server
from vit_serve_client import VitClient

KEY = "secret"


class MakeClient(Protocol):
    """Function that makes a client, which is closed after the test."""

    def __call__(self, url: str, **arguments: Any) -> AnyClient: ...


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the variables of whoever runs the tests away from clients."""
    monkeypatch.delenv("VIT_SERVE_URL", raising=False)
    monkeypatch.delenv("VIT_SERVE_API_KEY", raising=False)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Service with a tiny model and one key."""
    checkpoint = write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny-dinov2")
    with running_server(model=checkpoint, engine="torch", api_keys=KEY) as server:
        yield server


@pytest.fixture(params=["sync", "async"])
def make_client(request: pytest.FixtureRequest) -> Iterator[MakeClient]:
    """Make a `VitClient`, and an `AsyncVitClient` that is called like one."""
    with ExitStack() as stack:

        def make(url: str, **arguments: Any) -> AnyClient:
            if request.param == "sync":
                return stack.enter_context(VitClient(url, **arguments))
            return stack.enter_context(AsyncDriver(url, **arguments))

        yield make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Empty folder for images."""
    path = tmp_path / "images"
    path.mkdir()
    return path
