"""Receiver of traces: a real OTLP/HTTP server in a thread, which keeps the spans it is sent."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

_TIMEOUT_S = 60


@dataclass(frozen=True)
class Received:
    """One span as it arrived."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start: int
    end: int
    attributes: Mapping[str, str | int]
    links: frozenset[str]
    """Ids of linked spans."""
    failed: bool
    trace_state: str
    resource: Mapping[str, str | int]


class Receiver:
    """Collector that keeps what it received."""

    def __init__(self) -> None:
        self.url = ""
        self.bodies: list[bytes] = []
        self.paths: list[str] = []
        self.open = threading.Event()
        """Cleared, requests arrive and are not answered."""
        self.open.set()
        self.arrived = threading.Event()
        self.status = 200
        self._changed = threading.Condition()

    def take(self, path: str, body: bytes) -> int:
        with self._changed:
            self.bodies.append(body)
            self.paths.append(path)
            self._changed.notify_all()
        self.arrived.set()
        self.open.wait(_TIMEOUT_S)
        return self.status

    @property
    def spans(self) -> list[Received]:
        return [span for body in list(self.bodies) for span in _parsed(body)]

    def named(self, name: str) -> list[Received]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> Received:
        (span,) = self.named(name)
        return span

    def wait_for(self, true: Callable[["Receiver"], object]) -> None:
        """Wait until something is true of what was received."""
        with self._changed:
            assert self._changed.wait_for(lambda: true(self), _TIMEOUT_S), self.spans


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Run a receiver."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                self.send_response(receiver.take(self.path, body))
                self.send_header("Content-Length", "0")
                self.end_headers()
            except OSError:  # the exporter has given up
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Write nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    receiver.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.open.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _parsed(body: bytes) -> Iterator[Received]:
    for group in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = _values(group.resource.attributes)
        for scope in group.scope_spans:
            for span in scope.spans:
                yield Received(
                    span.name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    _values(span.attributes),
                    frozenset(link.span_id.hex() for link in span.links),
                    span.status.code == 2,
                    span.trace_state,
                    resource,
                )


def _values(attributes: Any) -> dict[str, str | int]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
