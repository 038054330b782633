"""Requests and answers as bytes, over plain sockets."""

import json
import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.support.server import Server

TIMEOUT_S = 30


@dataclass(frozen=True)
class Answer:
    """One HTTP response, parsed from its bytes."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> dict[str, Any]:
        assert self.headers["content-type"] == "application/problem+json"
        problem: dict[str, Any] = json.loads(self.body)
        assert set(problem) - {"error"} == {"type", "title", "status", "detail", "code"}
        assert problem["status"] == self.status
        return problem


def connect(server: Server) -> socket.socket:
    url = urlsplit(server.url)
    return socket.create_connection((url.hostname, url.port), timeout=TIMEOUT_S)


def read_to_end(peer: socket.socket) -> bytes:
    """Return all that the server sends until it closes. Fails the test on a timeout."""
    received = b""
    try:
        while data := peer.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    return received


def answers_in(received: bytes) -> list[Answer]:
    answers = []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        status, *fields = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, value in (field.split(": ", 1) for field in fields)}
        length = int(headers.get("content-length", 0))
        answers.append(Answer(int(status.split()[1]), headers, received[:length]))
        received = received[length:]
    return answers


def request(line: str = "POST /predict?vectors=false", *fields: str, body: bytes = b"", host: str = "Host: test") -> bytes:
    """Return a request with a matching Content-Length."""
    lines = [f"{line} HTTP/1.1", host, *([f"Content-Length: {len(body)}"] if body else []), *fields]
    return "\r\n".join(filter(None, lines)).encode("latin-1") + b"\r\n\r\n" + body
