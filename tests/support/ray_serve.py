"""The service under Ray Serve, in a cluster that tests/ray/conftest.py starts."""

import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
from ray import serve

from app.ray import Options, app
from tests.support.models import png
from tests.support.server import children

NAME = "vit-serve"
PATIENCE_S = 90


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


PORT = free_port()
URL = f"http://127.0.0.1:{PORT}"


@contextmanager
def variables(**settings: object) -> Iterator[None]:
    """Set VIT_* variables for the block."""
    given = {f"VIT_{name.upper()}": str(value) for name, value in settings.items()}
    before = dict(os.environ)
    os.environ |= given
    try:
        yield
    finally:
        for name in given:
            del os.environ[name]
        os.environ |= {name: before[name] for name in given if name in before}


def deploy(options: Options, **settings: object) -> None:
    """Run the application, or replace the one that runs; return once it does."""
    with variables(**settings):
        serve.run(app(options), name=NAME)


@contextmanager
def deployed(options: Options, **settings: object) -> Iterator[httpx.Client]:
    """Run the application for the block; yields a client of its proxy."""
    deploy(options, **settings)
    try:
        with httpx.Client(base_url=URL, timeout=PATIENCE_S) as client:
            yield client
    finally:
        serve.delete(NAME)


def predict(client: httpx.Client, seed: int = 0, headers: Mapping[str, str] = MappingProxyType({})) -> httpx.Response:
    return client.post("/predict", content=png(seed), headers={"Content-Type": "image/png", **headers})


def message() -> str:
    """Return Ray's last words on the application."""
    status = serve.status().applications[NAME]
    return "\n".join((status.message, *(each.message for each in status.deployments.values())))


def running() -> int:
    """Return the number of replicas that Ray counts as running."""
    status = serve.status().applications.get(NAME)
    return 0 if status is None else status.deployments["VitServe"].replica_states.get("RUNNING", 0)


def wait_for(condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> float:
    """Poll until a condition in other processes holds; return the seconds that it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + patience_s, message()
        time.sleep(0.1)
    return time.monotonic() - began


def replicas(node: Any) -> list[int]:
    """Return the processes of a node's replicas."""
    (raylet,) = node.all_processes["raylet"]
    return [pid for pid in children(raylet.process.pid) if _title(pid).startswith("ray::ServeReplica")]


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


class Clients:
    """Clients that send one image after another, and count the outcomes."""

    def __init__(self, number: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(seed,), daemon=True) for seed in range(number)]

    @contextmanager
    def sending(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()

    def answered(self, more: int) -> None:
        """Wait until so many more answers with 200 have come."""
        before = self.outcomes["200"]
        wait_for(lambda: self.outcomes["200"] >= before + more)

    def _send(self, seed: int) -> None:
        with httpx.Client(base_url=URL, timeout=PATIENCE_S) as client:
            while not self._stop.is_set():
                try:
                    outcome = str(predict(client, seed).status_code)
                except httpx.TransportError as error:
                    outcome = type(error).__name__
                self.outcomes[outcome] += 1
