"""Start from the cache: the process that serves loads neither torch nor a checkpoint, and those that decode no engine."""

import signal
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.support.models import encode, random_image
from tests.support.server import Server, running_server

_TORCH = "libtorch"


def maps(pid: int | str) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def children(server: Server) -> list[str]:
    """Return the ids of the processes that the service has started."""
    tasks = Path(f"/proc/{server.process.pid}/task").glob("*/children")
    return [pid for task in tasks for pid in task.read_text().split()]


def logits(server: Server) -> list[float]:
    answer = httpx.post(f"{server.url}/predict", content=encode(random_image(1, 320, 240), "JPEG"), timeout=60)
    assert answer.status_code == 200, answer.text
    logits: list[float] = answer.json()["logits"]
    return logits


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads Linux's /proc")
def test_service_never_loads_torch(tmp_path: Path, tiny_checkpoint: Path) -> None:
    with running_server(model=tiny_checkpoint, engine="torch", explain=False) as server:
        assert _TORCH in maps(server.process.pid)
        expected = logits(server)
    for conversions in (1, 0):
        with running_server(model=tiny_checkpoint, cache_dir=tmp_path, explain=False) as server:
            np.testing.assert_allclose(logits(server), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
            assert _TORCH not in maps(server.process.pid)
            assert "libopenvino" in maps(server.process.pid)
            (zygote,) = [pid for pid in children(server) if "simplejpeg" in maps(pid)]
            assert not any(library in maps(zygote) for library in (_TORCH, "libopenvino"))
            assert sum(record["event"].startswith("converting") for record in server.log) == conversions
            server.stop(signal.SIGTERM)
            assert server.wait() == 0
