"""Shared fixtures."""

import asyncio
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from uvicorn.loops.auto import auto_loop_factory

from tests.support.torchvision_operators import declare_missing_operators

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment] # as in the service; it needs a home directory
declare_missing_operators()  # before transformers looks for torchvision

from app.process.child import start_child  # noqa: E402
from app.process.logs import configure_logging  # noqa: E402
from tests.support.models import CACHE, write_tiny_checkpoint  # noqa: E402

configure_logging("info", "json")
os.environ["VIT_DEVICE"] = "cpu"  # the tolerances in tests are for a CPU
os.environ["VIT_ENGINE"] = "torch"  # converts nothing; server processes and tests of OpenVINO take the default
os.environ["VIT_DECODE_ISOLATION"] = "thread"  # starts at once; server processes take the default
os.environ["VIT_CACHE_DIR"] = CACHE


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run async tests on the service's event loop; plain asyncio's differs in details."""
    return {"service": auto_loop_factory()}


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint in Hugging Face layout of a model that loads and runs in milliseconds."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny-dinov2")


@pytest.fixture
def converts_beside_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process that converts declare torchvision's operators too, as this one does."""
    convert = "app.converting.process.start_child"
    monkeypatch.setattr(convert, lambda module, descriptor: start_child("tests.support.converting", descriptor))
