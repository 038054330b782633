"""Real services whose collector of traces is slow, fails, or is away."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.models import png
from tests.support.otlp import Receiver
from tests.support.server import Server, decoders, running_server

STEPS = {"decode_wait", "decode", "queue", "inference"}


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Export after a moment instead of five seconds."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    yield port


def predict(server: Server, count: int = 1) -> None:
    with httpx.Client(timeout=60) as client:
        for seed in range(count):
            assert client.post(f"{server.url}/predict", content=png(seed)).status_code == 200


def stop(server: Server) -> list[dict[str, Any]]:
    """Stop a server, and return the lines of its log."""
    server.stop()
    assert server.wait() == 0
    with pytest.raises(AssertionError, match="the server ended with 0"):
        server.wait_for_log("no such line")
    return server.log


def events(log: list[dict[str, Any]]) -> list[str]:
    return [line["event"] for line in log]


def test_spans_are_flushed_at_a_stop(receiver: Receiver, tiny_checkpoint: Path) -> None:
    with running_server(model=tiny_checkpoint) as server:
        predict(server, 3)
        log = stop(server)
    assert len(receiver.named("POST /predict")) == 3
    assert {span.name for span in receiver.spans} == {"POST /predict", "batch", *STEPS}
    lines = {line["trace_id"] for line in log if line["event"] == "request"}
    assert lines == {span.trace_id for span in receiver.named("POST /predict")}


def test_decoders_load_no_telemetry(receiver: Receiver, tiny_checkpoint: Path, soon: None) -> None:
    with running_server(model=tiny_checkpoint, decode_workers=2) as server:
        predict(server)
        assert _maps_telemetry(server.process.pid)
        workers = decoders(server)
        assert len(workers) == 2
        assert not any(_maps_telemetry(pid) for pid in workers)
        stop(server)
    assert len(receiver.spans) == 6


def _maps_telemetry(pid: int) -> bool:
    """Return whether a process has loaded protobuf, which nothing but the exporter imports."""
    return "/google/_upb/" in Path(f"/proc/{pid}/maps").read_text()


def test_dead_collector_disturbs_no_request(
    closed_port: int, tiny_checkpoint: Path, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{closed_port}")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "20")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10")
    with running_server(model=tiny_checkpoint) as server:
        predict(server, 30)
        log = events(stop(server))
    exporter = [event for event in log if "exporting spans" in event or "Failed to export" in event]
    queue = [event for event in log if "Queue full" in event]
    assert 0 < len(exporter) < 4  # one a minute, however slow the machine is
    assert 0 < len(queue) < 4


def test_hanging_collector_disturbs_no_request(
    receiver: Receiver, tiny_checkpoint: Path, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1000")
    receiver.open.clear()
    with running_server(model=tiny_checkpoint) as server:
        predict(server)
        assert receiver.arrived.wait(60)
        predict(server, 20)  # while the exporter waits
        assert httpx.get(f"{server.url}/health/ready").status_code == 200
        log = stop(server)
    assert "the last spans could not be exported in time" in events(log)
    assert len(receiver.bodies) == 1


def test_failing_collector_loses_only_spans(receiver: Receiver, tiny_checkpoint: Path, soon: None) -> None:
    receiver.status = 400
    with running_server(model=tiny_checkpoint) as server:
        predict(server)
        receiver.wait_for(lambda received: received.bodies)
        receiver.status = 200
        receiver.bodies.clear()
        predict(server)
        receiver.wait_for(lambda received: received.named("batch"))
        stop(server)
    assert len(receiver.named("POST /predict")) == 1


def test_collector_that_hangs_first_recovers(receiver: Receiver, tiny_checkpoint: Path, soon: None) -> None:
    receiver.open.clear()
    with running_server(model=tiny_checkpoint) as server:
        predict(server, 2)
        assert receiver.arrived.wait(60)
        receiver.open.set()
        stop(server)
    assert len(receiver.named("POST /predict")) == 2


def test_telemetry_of_fastapi_is_off(receiver: Receiver, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    with running_server(model=tiny_checkpoint) as server:
        predict(server)
        stop(server)
    assert set(receiver.paths) == {"/v1/traces"}  # neither metrics nor logs
    assert len(receiver.spans) == 6


@pytest.mark.parametrize("sent", [b"BAD\r\n\r\n", b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n"])
def test_refused_by_the_parser_is_traced(receiver: Receiver, tiny_checkpoint: Path, sent: bytes) -> None:
    with running_server(model=tiny_checkpoint) as server:
        with socket.create_connection(_address(server), timeout=60) as client:
            client.sendall(sent)
            assert client.recv(65_536).startswith(b"HTTP/1.1 400")
        log = stop(server)
    span = receiver.one("HTTP")
    assert (span.failed, span.attributes["http.response.status_code"]) == (False, 400)
    assert span.attributes["http.request.method"] == "_OTHER"
    assert span.trace_id in {line.get("trace_id") for line in log}


def _address(server: Server) -> tuple[str, int]:
    host, port = server.url.removeprefix("http://").split(":")
    return host, int(port)


def test_drain_finishes_before_the_flush(receiver: Receiver, tiny_checkpoint: Path) -> None:
    with running_server(model=tiny_checkpoint) as server:
        with socket.create_connection(_address(server), timeout=60) as slow:
            body = png(0)
            slow.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:10])
            while "vit_inflight_requests 1.0" not in httpx.get(f"{server.url}/metrics").text:
                time.sleep(0.01)
            server.stop()
            server.wait_for_log("draining")
            slow.sendall(body[10:])
            assert slow.recv(65_536).startswith(b"HTTP/1.1 200")
        assert server.wait() == 0
    assert len(receiver.named("POST /predict")) == 1


def test_hurried_stop_waits_a_bounded_time(receiver: Receiver, tiny_checkpoint: Path) -> None:
    receiver.open.clear()
    with running_server(model=tiny_checkpoint) as server:
        predict(server)
        for _ in range(3):
            server.stop(signal.SIGINT)
        assert server.wait() == 0
    assert not receiver.open.is_set()  # nothing was answered


def test_bad_propagator_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_PROPAGATORS", "no-such")
    command = [sys.executable, "-m", "app.cli", "serve"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert "OTEL_PROPAGATORS: no-such is not installed" in ended.stderr
    assert "Traceback" not in ended.stderr
