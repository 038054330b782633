"""Server that answers as a test tells it to, well or badly."""

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CERTIFICATE = Path(__file__).parent / "localhost.pem"
"""Certificate of localhost and 127.0.0.1, signed by itself, with its key."""


@dataclass(frozen=True)
class Received:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """One answer: its bytes after the status line, or something else."""

    status: int = 200
    body: bytes = b"{}"
    headers: tuple[tuple[str, str], ...] = ()
    raw: bytes | None = None
    """Bytes that are sent instead of an answer, before the connection is closed."""
    silent: bool = False
    """Answer only when the test has ended."""


class FakeService:
    """Server on a free port, whose answers are computed from the requests."""

    def __init__(self, answer: Callable[[Received], Reply], *, tls: bool = False) -> None:
        self.answer = answer
        self.received: list[Received] = []
        self.arrived = threading.Semaphore(0)
        """Released once for each request."""
        self.ended = threading.Event()
        self.server = _Server(("127.0.0.1", 0), _Handler)
        self.server.service = self
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(CERTIFICATE)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.server.server_address[1]}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    service: FakeService

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: clients of these tests come and go."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        service = self.server.service
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = Received(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
        service.received.append(request)
        service.arrived.release()
        reply = service.answer(request)
        if reply.silent:
            service.ended.wait()
        if reply.raw is not None:
            self.wfile.write(reply.raw)
            self.close_connection = True
            return
        self.send_response(reply.status)
        for name, value in (*reply.headers, ("Content-Length", str(len(reply.body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def fake_service(answer: Callable[[Received], Reply], *, tls: bool = False) -> Iterator[FakeService]:
    """Start a server, and stop it at the end."""
    service = FakeService(answer, tls=tls)
    thread = threading.Thread(target=service.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield service
    finally:
        service.ended.set()
        service.server.shutdown()
        thread.join()
        service.server.server_close()
