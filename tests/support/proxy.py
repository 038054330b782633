"""Real HAProxy for tests: the configuration of deploy/, which asks a DNS of the test instead of Docker's."""

import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from benchmarks.watch import metrics_of
from tests.support.models import ROOT
from tests.support.server import Server

CONFIG = ROOT / "deploy" / "haproxy.cfg"
_TIMEOUT_S = 60
_A, _IN = 1, 1

needs_haproxy = pytest.mark.skipif(
    shutil.which("haproxy") is None, reason="haproxy is not installed (Debian: apt-get install haproxy)"
)


class Dns:
    """DNS that has the same addresses for every name, and whose addresses may change."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self.addresses = list(addresses)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._socket.getsockname())
        self._thread = threading.Thread(target=self._answer_all)
        self._thread.start()

    def _answer_all(self) -> None:
        while True:
            query, client = self._socket.recvfrom(4096)
            if not query:
                return
            self._socket.sendto(self._answer(query), client)

    def _answer(self, query: bytes) -> bytes:
        """Return an answer as in RFC 1035, 4.1: header, question, and an A record for each address."""
        end = query.index(0, 12) + 5  # the name ends with an empty label; type and class follow
        kind, _ = struct.unpack("!HH", query[end - 4 : end])
        addresses = self.addresses if kind == _A else []
        header = query[:2] + struct.pack("!HHHHH", 0x8180, 1, len(addresses), 0, 0)
        records = [struct.pack("!HHHIH", 0xC00C, _A, _IN, 0, 4) + socket.inet_aton(address) for address in addresses]
        return header + query[12:end] + b"".join(records)

    def close(self) -> None:
        host, port = self.address.split(":")
        self._socket.sendto(b"", (host, int(port)))
        self._thread.join()
        self._socket.close()


class Proxy:
    """Running HAProxy."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, watch: str, dns: Dns) -> None:
        self.process = process
        self.url = url
        self.watch = watch
        self.dns = dns

    def replicas(self) -> float:
        """Return the number of replicas in the balance."""
        text = httpx.get(f"{self.watch}/metrics", timeout=30).content
        return metrics_of(text)['haproxy_backend_active_servers{proxy="replicas"}']

    def wait_for_replicas(self, number: int) -> None:
        """Poll until so many replicas are in the balance."""
        end = time.monotonic() + _TIMEOUT_S
        while (found := self.replicas()) != number:
            assert self.process.poll() is None and time.monotonic() < end, f"{found} replicas instead of {number}"
            time.sleep(0.02)


@contextmanager
def running_proxy(replicas: Sequence[Server], **variables: object) -> Iterator[Proxy]:
    """Start HAProxy before replicas, which have one port and an address each, and wait until all are in the balance."""
    addresses, ports = zip(*(replica.url.removeprefix("http://").split(":") for replica in replicas), strict=True)
    (port,) = set(ports)
    with ExitStack() as stack:
        listening = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        dns = Dns(addresses)
        stack.callback(dns.close)
        binds = {f"PROXY_{name}": f"fd@{each.fileno()}" for name, each in zip(("BIND", "WATCH"), listening, strict=True)}
        given = {f"PROXY_{name.upper()}": str(value) for name, value in variables.items()}
        environment = {**os.environ, **binds, "PROXY_DNS": dns.address, "PROXY_REPLICAS": f"vit-serve:{port}", **given}
        process = subprocess.Popen(
            ["haproxy", "-db", "-f", CONFIG], env=environment, pass_fds=[each.fileno() for each in listening]
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        hosts = [f"127.0.0.1:{each.getsockname()[1]}" for each in listening]
        proxy = Proxy(process, f"http{'s' if 'tls' in variables else ''}://{hosts[0]}", f"http://{hosts[1]}", dns)
        proxy.wait_for_replicas(len(replicas))
        yield proxy


def check_config(config: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Have HAProxy check a configuration; warnings count as errors."""
    environment = {**os.environ, **variables}
    command = ["haproxy", "-c", "-dW", "-f", str(config)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
