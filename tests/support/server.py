"""Real server process for tests, on a free port."""

import asyncio
import fcntl
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from app.process.signals import STOP
from benchmarks.watch import metrics_of
from tests.support.models import CACHE

_BIN = Path(sys.executable).parent
_TIMEOUT_S = 120


@contextmanager
def default_signals() -> Iterator[None]:
    """Give children default signal handling, also under `nohup` or in a shell's background."""
    ignored = [sig for sig in STOP if signal.getsignal(sig) is signal.SIG_IGN]
    for sig in ignored:
        signal.signal(sig, signal.SIG_DFL)
    try:
        yield
    finally:
        for sig in ignored:
            signal.signal(sig, signal.SIG_IGN)


class Server:
    """Process of `vit-serve serve` or another serving command, whose log a thread reads."""

    def __init__(self, command: Sequence[str | Path] = (_BIN / "vit-serve", "serve"), **variables: object) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("VIT_")}
        given = {"port": 0, "device": "cpu", "cache_dir": CACHE, **variables}
        environment |= {f"VIT_{name.upper()}": str(value) for name, value in given.items()}
        with default_signals():
            self.process = subprocess.Popen(
                command,
                env={**environment, "VIT_LOG_FORMAT": "json"},
                stderr=subprocess.PIPE,
                text=True,
                process_group=0,  # lets a test signal all of its processes
            )
        self.log: list[dict[str, Any]] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reading = threading.Event()
        self._reading.set()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = ""

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self._lines.put(line)
                self._reading.wait()
        self._lines.put(None)

    @contextmanager
    def unread_log(self) -> Iterator[None]:
        """Stop reading the log, with the smallest pipe that the system allows."""
        assert self.process.stderr is not None
        self._reading.clear()
        fcntl.fcntl(self.process.stderr, fcntl.F_SETPIPE_SZ, 4096)
        try:
            yield
        finally:
            self._reading.set()

    def wait_for_log(self, event: str) -> dict[str, Any]:
        """Return the next log line whose event begins with `event`."""
        while (line := self._lines.get(timeout=_TIMEOUT_S)) is not None:
            try:
                record = json.loads(line)
            except ValueError:
                record = {"event": line}
            self.log.append(record)
            if str(record["event"]).startswith(event):
                return record
        raise AssertionError(f"the server ended with {self.process.wait()} before {event!r}: {self.log}")

    def wait_until_ready(self) -> None:
        self.url = self.wait_for_log("Uvicorn running on")["event"].split()[3]
        self.wait_for_log("ready")

    def stop(self, sig: int = signal.SIGTERM) -> None:
        self.process.send_signal(sig)

    def wait(self) -> int:
        """Return the exit status."""
        self._reader.join(timeout=_TIMEOUT_S)
        return self.process.wait(timeout=_TIMEOUT_S)


@contextmanager
def running_server(**variables: Any) -> Iterator[Server]:
    """Start a server and wait until it is ready; kill it at the end."""
    server = Server(**variables)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.process.kill()
        server.wait()


def children(pid: int) -> list[int]:
    """Return the processes that any thread of a process has started."""
    return [int(child) for each in Path(f"/proc/{pid}/task").glob("*/children") for child in each.read_text().split()]


def decoders(server: Server) -> list[int]:
    """Return the decoding workers: children of the zygote, which is the only child of the service."""
    (zygote,) = children(server.process.pid)
    return children(zygote)


def metric(server: Server, name: str) -> float:
    return metrics_of(httpx.get(f"{server.url}/metrics").content).get(name, 0.0)


async def wait_for_metric(server: Server, name: str, value: float) -> None:
    """Poll a metric until it has the value."""
    async with asyncio.timeout(60):
        while await asyncio.to_thread(metric, server, name) != value:  # noqa: ASYNC110 - another process has no Event
            await asyncio.sleep(0.01)
