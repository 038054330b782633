"""HttpProtocol in this process, with a test's limits and a stub application."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI

from app.api.middleware import UnhandledErrors
from app.api.native import NATIVE
from app.api.problems import install_problem_handlers
from app.api.wire import Wires
from app.http.connections import Connections
from app.http.limits import HttpLimits
from app.http.protocol import HttpProtocol
from app.http.time_slices import TimeSlices
from app.metrics import Metrics
from app.server import server_error

PATIENCE_S = 30
BIG = 50_000_000
"""Size of a body that exceeds any socket buffer."""

_NATIVE = Wires((NATIVE,))

Peer = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Wire:
    """Server in this process. It answers `/early` before the body, `/held` when the gate opens, `/deserted` never, `/big` with
    a large body, and other paths once the request is read."""

    limits: HttpLimits
    metrics: Metrics = field(default_factory=Metrics)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    held: int = 0
    deserted: int = 0
    """Number of http.disconnect messages."""
    address: tuple[str, int] = ("", 0)
    peers: list[asyncio.StreamWriter] = field(default_factory=list)
    server: uvicorn.Server = field(init=False)

    async def app(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
        while scope["path"] != "/early" and (await receive()).get("more_body"):
            pass
        if scope["path"] == "/held":
            self.held += 1
            await self.gate.wait()
        if scope["path"] == "/deserted":
            self.held += 1
            while (await receive())["type"] != "http.disconnect":
                pass
            self.deserted += 1
            return
        body = bytes(BIG) if scope["path"] == "/big" else b"done"
        length = str(len(body)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": body})

    async def connect(self, sent: bytes = b"") -> Peer:
        reader, writer = await asyncio.open_connection(*self.address)
        self.peers.append(writer)
        writer.write(sent)
        return reader, writer

    async def ask(self, path: str) -> bytes:
        """Return the status line of the answer; the connection stays open."""
        reader, _ = await self.connect(get(path))
        async with asyncio.timeout(PATIENCE_S):
            return (await reader.readline()).strip()

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not true():  # noqa: ASYNC110 - there is no Event to wait for
                await asyncio.sleep(0.01)

    def count(self, reason: str) -> float:
        return self.metrics.registry.get_sample_value("vit_http_refused_total", {"reason": reason}) or 0

    @property
    def connections(self) -> float | None:
        return self.metrics.registry.get_sample_value("vit_http_connections")


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode()


@asynccontextmanager
async def open_wire(limits: HttpLimits, wires: Wires = _NATIVE) -> AsyncIterator[Wire]:
    """Serve, and close all connections that the test left open."""
    wire = Wire(limits)
    app = FastAPI(openapi_url=None)
    app.mount("/", wire.app)
    install_problem_handlers(app, wires)
    app.add_middleware(UnhandledErrors, wires=wires)
    connections = Connections(
        limits,
        wire.metrics,
        health_paths=wires.health_paths,
        server_error=partial(server_error, wires),
        slices=TimeSlices(),
    )
    config = uvicorn.Config(
        app,
        port=0,
        http=partial(HttpProtocol, connections=connections),  # type: ignore[arg-type] # as it is used
        ws="none",
        lifespan="off",
        log_config=None,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
    )
    server = wire.server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    await wire.until(lambda: server.started)
    wire.address = server.servers[0].sockets[0].getsockname()
    try:
        yield wire
    finally:
        wire.gate.set()
        for peer in wire.peers:
            peer.close()
        await asyncio.gather(*(peer.wait_closed() for peer in wire.peers), return_exceptions=True)
        server.should_exit = True
        await serving
