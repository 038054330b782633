"""Replicas of the service behind HAProxy with deploy/haproxy.cfg, on addresses of this machine."""

import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx

from app.settings import BUNDLED_MODEL
from benchmarks.contenders import start_ours
from benchmarks.peers import ROOT, Server

_CONFIG = ROOT / "deploy" / "haproxy.cfg"
_PATIENCE_S = 180.0
REPLICA = {"inference_threads": 1, "decode_workers": 1}
"""Settings of every replica, also of one alone."""


class Group:
    """Replicas that are paused and resumed together; they have one port and an address each."""

    def __init__(self, servers: Mapping[str, Server], port: int) -> None:
        self.servers, self.port = servers, port

    def pause(self) -> None:
        for server in self.servers.values():
            server.pause()

    def resume(self) -> None:
        """Resume all, and wait until they are ready."""
        for server in self.servers.values():
            server.resume()
        for host in self.servers:
            _wait_for(f"http://{host}:{self.port}/health/ready")


@contextmanager
def replicas(hosts: list[str], directory: Path) -> Iterator[Group]:
    """Start a replica on each address, and pause all; logs and cache go to `directory`."""
    with socket.socket() as free:
        free.bind((hosts[0], 0))
        port = free.getsockname()[1]
    with ExitStack() as stack:
        servers = {}
        for host in hosts:
            log = stack.enter_context((directory / f"{host}.log").open("wb"))
            settings = {"host": host, "port": port, "cache_dir": directory / "cache", **REPLICA}
            servers[host], _ = start_ours(Path(BUNDLED_MODEL), settings, log.fileno())
            stack.callback(servers[host].stop)
            _wait_for(f"http://{host}:{port}/health/ready")
        group = Group(servers, port)
        group.pause()
        yield group


def configuration(addresses: Sequence[str]) -> str:
    """Return deploy/haproxy.cfg with these replicas instead of those that Docker's DNS names."""
    servers = "\n".join(f"    server replica{number} {address}" for number, address in enumerate(addresses))
    text, found = re.subn(r"^    server-template .*$", servers, _CONFIG.read_text(encoding="utf-8"), flags=re.MULTILINE)
    if found != 1:
        raise ValueError(f"{_CONFIG.name} has {found} lines with a server-template")
    return text


def cpu_s(pid: int) -> float:
    """Return the CPU time of all threads of a process."""
    return sum(int(file.read_text().split()[0]) for file in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


@contextmanager
def haproxy(group: Group, directory: Path) -> Iterator[tuple[int, int]]:
    """Start HAProxy before a group that runs; yield its port and its process."""
    config = directory / "haproxy.cfg"
    config.write_text(configuration([f"{host}:{group.port}" for host in group.servers]), encoding="utf-8")
    with ExitStack() as stack:
        listening = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        binds = {f"PROXY_{name}": f"fd@{each.fileno()}" for name, each in zip(("BIND", "WATCH"), listening, strict=True)}
        log = stack.enter_context((directory / "haproxy.log").open("wb"))
        process = subprocess.Popen(
            ["haproxy", "-db", "-f", config],
            env={**os.environ, **binds},
            pass_fds=[each.fileno() for each in listening],
            stdout=log,
            stderr=log,
        )
        stack.callback(process.wait)
        stack.callback(process.terminate)
        watch = listening[1].getsockname()[1]
        _wait_for(f"http://127.0.0.1:{watch}/ready")
        yield listening[0].getsockname()[1], process.pid


def _wait_for(url: str) -> None:
    """Wait for an answer of 200.

    Raises:
        SystemExit: it takes too long.
    """
    give_up_at = time.monotonic() + _PATIENCE_S
    while time.monotonic() < give_up_at:
        with suppress(httpx.TransportError):
            if httpx.get(url, timeout=5).status_code == 200:
                return
        time.sleep(0.1)
    raise SystemExit(f"{url} is not ready after {_PATIENCE_S:.0f} s")
