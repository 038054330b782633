"""Fixtures: a service with three models that can be told apart."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.engines.memory import Memory
from tests.app.api.models.several import ADMIN
from tests.app.conftest import OpenClient
from tests.support.models import TINY_DINOV2
from tests.support.versions import write_version


@pytest.fixture
def directories(tmp_path: Path) -> dict[str, Path]:
    """Checkpoints of three models, of two sizes."""
    sizes = {"a": 28, "b": 42, "c": 28}
    return {
        name: write_version(tmp_path / name, index, replace(TINY_DINOV2, image_size=size))
        for index, (name, size) in enumerate(sizes.items(), start=1)
    }


@pytest.fixture
def several(open_client: OpenClient, directories: dict[str, Path]) -> Any:
    """Open a client of a service with these models: `async with several(max_model_bytes=...) as client`."""
    models = ",".join(f"{name}={path}" for name, path in directories.items())

    def several(**options: Any) -> Any:
        return open_client(model=None, models=models, admin_key=ADMIN["X-API-Key"], **options)

    return several


@pytest.fixture
async def client(several: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with several() as client:
        yield client


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each load measure 1000 bytes."""
    monkeypatch.setattr(Memory, "growth", lambda *_: 1000)
