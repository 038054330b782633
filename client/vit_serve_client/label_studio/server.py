"""HTTP server of the backend, with bounds on connections, bodies and time."""

import base64
import hmac
import json
import logging
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from vit_serve_client.label_studio.backend import Backend

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 10 * 2**20
MAX_CONNECTIONS = 64
READ_TIMEOUT_S = 30.0
DISCARD_S = 2.0


class BackendServer(ThreadingHTTPServer):
    """Server with a thread for each connection, up to `MAX_CONNECTIONS`; others are closed at once."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], backend: Backend, credentials: tuple[str, str] | None = None) -> None:
        self.backend = backend
        self.authorization = None if credentials is None else _basic(*credentials)
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind without looking up the host's name, which may take as long as its name server does."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    @property
    def url(self) -> str:
        """URL that the server listens on."""
        host, port = self.server_address[:2]
        name = host.decode() if isinstance(host, bytes | bytearray) else host
        return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.exception("a request failed")


class _Refusal(Exception):
    """The request is answered with an error."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    timeout = READ_TIMEOUT_S  # of each read
    server: BackendServer

    def do_GET(self) -> None:
        self._answer_with(self._get)

    def do_POST(self) -> None:
        self._answer_with(self._post)

    def _answer_with(self, route: Any) -> None:
        try:
            self._answer(*route(self.path.partition("?")[0]))
        except _Refusal as refusal:
            self._answer(refusal.status, {"detail": str(refusal)})
            self._discard_input()
        except (TimeoutError, ConnectionError):
            log.info("a client left, or sent nothing more")

    def _get(self, path: str) -> tuple[int, dict[str, Any]]:
        if path in ("/", "/health"):
            return 200, {"status": "UP", "model_class": "vit-serve"}
        self._authorize()
        if path == "/versions":
            return 200, {"versions": [self.server.backend.version()]}
        raise _Refusal(404, "There is nothing at this path.")

    def _post(self, path: str) -> tuple[int, dict[str, Any]]:
        self._authorize()
        request = self._json()
        match path:
            case "/predict":
                try:
                    return 200, self.server.backend.predict(request)
                except ValueError as error:
                    raise _Refusal(400, str(error)) from None
            case "/setup":
                return 200, {"model_version": self.server.backend.version()}
            case "/webhook":
                return 201, {}
            case "/validate" | "/delete" | "/job_status":
                return 200, {"status": "ok"}
        raise _Refusal(404, "There is nothing at this path.")

    def _authorize(self) -> None:
        wanted = self.server.authorization
        if wanted is not None and not hmac.compare_digest(self.headers.get("Authorization", "").encode(), wanted):
            raise _Refusal(401, "The user name or the password is wrong.")

    def _json(self) -> dict[str, Any]:
        try:
            body = json.loads(self._body() or b"{}")
        except (ValueError, RecursionError):
            raise _Refusal(400, "The body is not JSON.") from None
        if not isinstance(body, dict):
            raise _Refusal(400, "The body must be a JSON object.")
        return body

    def _body(self) -> bytes:
        if "Transfer-Encoding" in self.headers:
            raise _Refusal(411, "The body must come with its length.")
        length = self.headers.get("Content-Length", "0")
        if not (length.isascii() and length.isdigit() and len(length) < 20):
            raise _Refusal(400, "The length of the body is not a number.")
        if int(length) > MAX_BODY_BYTES:
            raise _Refusal(413, f"The body has more than {MAX_BODY_BYTES} bytes.")
        body = bytearray()
        end = time.monotonic() + READ_TIMEOUT_S
        while len(body) < int(length) and time.monotonic() < end:
            part = self.rfile.read1(int(length) - len(body))
            if not part:
                break
            body += part
        if len(body) < int(length):
            raise _Refusal(408, "The body is not complete.")
        return bytes(body)

    def _discard_input(self) -> None:
        """Read what is still to come, for a while: closing before would reset the connection, and the answer be lost."""
        end = time.monotonic() + DISCARD_S
        self.connection.settimeout(DISCARD_S)
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            while time.monotonic() < end and self.connection.recv(2**16):
                pass

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if status == 401:
            self.send_header("WWW-Authenticate", 'Basic realm="vit-serve-client"')
        self.end_headers()
        self.wfile.write(data)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        path = getattr(self, "path", "").partition("?")[0]  # none where the request could not be parsed
        log.info("%s %r %d", self.command, path, int(code))

    def log_message(self, format: str, *args: Any) -> None:
        log.info("a request was refused")  # the standard library's message holds what was sent


def _basic(user: str, password: str) -> bytes:
    return b"Basic " + base64.b64encode(f"{user}:{password}".encode())
