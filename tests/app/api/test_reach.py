"""Side effects of requests: no file is written, no connection opened, no process started."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.support.models import encode, png, random_image
from tests.support.predict import IMAGE, base64_of, multipart

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_REACHES = (
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "subprocess.Popen",
    "os.exec",
    "os.system",
    "os.fork",
)

_watches: list[list[str]] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _watches and (event.startswith(_REACHES) or (event == "open" and arguments[2] & _WRITES)):
        _watches[-1].append(f"{event} {arguments}")


sys.addaudithook(_watch)  # PEP 578: sees all threads, and cannot be removed


@contextmanager
def watched() -> Iterator[list[str]]:
    """Record what this process does to files, sockets and processes meanwhile."""
    _watches.append([])
    try:
        yield _watches[-1]
    finally:
        _watches.pop()


URL = "http://127.0.0.1:1/picture.png"
LARGE = encode(random_image(0, 1200, 1200))  # large enough for a framework's temporary file

BODIES: list[dict[str, Any]] = [
    {"content": LARGE},
    {"files": {"image": ("../../tmp/name.png", LARGE)}},
    multipart((f"{IMAGE}; filename=\"/tmp/name.png\"; filename*=UTF-8''%2ftmp%2fname.png", LARGE)),
    multipart((IMAGE, URL.encode())),
    {"json": {"image": base64_of(LARGE)}},
    {"json": {"image": URL}},
    {"json": {"image": "file:///etc/passwd"}},
    {"json": {"url": URL}},
    {"content": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{URL}"/></svg>'.encode()},
    {"content": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"},
    {"content": b"%PDF-1.7\n"},
]


async def test_images_open_no_files_or_connections(client: httpx.AsyncClient) -> None:
    await client.post("/predict", content=png(0))  # one-time setup is done
    statuses = []
    with watched() as seen:
        for body in BODIES:
            statuses.append((await client.post("/predict", **body)).status_code)
    assert seen == []
    assert statuses == [200, 200, 200, 415, 200, 400, 400, 400, 415, 415, 415]


def test_watch_sees_files_connections_processes(tmp_path: Path) -> None:
    with watched() as seen:
        (tmp_path / "file").write_text("")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outgoing:
            outgoing.connect(("127.0.0.1", 9))  # UDP: nothing is sent
        subprocess.run([sys.executable, "-c", ""], check=True)
        (tmp_path / "file").read_text()
    assert [line.split()[0] for line in seen] == ["open", "socket.connect", "subprocess.Popen"]
