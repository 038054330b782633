"""Server that answers each request with the next of a list of answers, well or badly."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """One answer."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    """Close the connection in the middle of the body."""
    silent: bool = False
    """Answer only when the test has ended."""
    dripping: bool = False
    """Send a header without end, byte by byte, until the test has ended."""


@dataclass(frozen=True)
class Received:
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class ScriptedServer:
    """Server on a free port. The last answer is repeated."""

    def __init__(self, *replies: Reply) -> None:
        self._replies = list(replies)
        self._lock = threading.Lock()
        self.received: list[Received] = []
        self.arrived = threading.Semaphore(0)
        """Released once for each request."""
        self.ended = threading.Event()
        self._http = _Http(("127.0.0.1", 0), _Handler)
        self._http.script = self
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.ended.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def take(self, request: Received) -> Reply:
        with self._lock:
            self.received.append(request)
            self.arrived.release()
            return self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]


@contextmanager
def answering(*replies: Reply) -> Iterator[ScriptedServer]:
    """Start a server, and stop it at the end."""
    server = ScriptedServer(*replies)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def as_json(value: Any, status: int = 200, **headers: str) -> Reply:
    """Return an answer of JSON; `_` in the name of a header stands for `-`."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Reply(status, json.dumps(value).encode(), {"Content-Type": "application/json", **named})


def problem(status: int, code: str, **headers: str) -> Reply:
    """Return an error as vit-serve answers it."""
    body = {"type": f"urn:vit-serve:problem:{code}", "title": code, "status": status, "detail": f"It is {code}.", "code": code}
    return as_json(body, status, X_Request_ID="abc", **headers)


RESULT: dict[str, Any] = {
    "model": "tiny",
    "activation": "softmax",
    "predictions": [{"label": "cat", "class_index": 3, "probability": 0.9, "logit": 2.5, "rank": 1}],
    "notes": "a key of a later version",
}
OK = as_json(RESULT)


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    script: ScriptedServer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Http

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        reply = self.server.script.take(Received(self.command, self.path, dict(self.headers), body))
        if reply.silent:
            self.server.script.ended.wait()
            self.close_connection = True
            return
        self.close_connection = reply.cut or reply.dripping
        self.send_response(reply.status)
        if reply.dripping:
            self.flush_headers()
            self.wfile.write(b"X-Drip: ")
            while not self.server.script.ended.wait(0.02):
                self.wfile.write(b"a")
            return
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body) + 100 * reply.cut))
        self.end_headers()
        self.wfile.write(reply.body)

    do_POST = do_GET

    def handle(self) -> None:
        with suppress(ConnectionError):  # the client has left
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:
        """Stay quiet."""
