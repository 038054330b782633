"""The process: standard error, signals, and the address to listen on."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest

from benchmarks.watch import metrics_of
from tests.support.models import ROOT, png
from tests.support.server import Server, running_server

VIT_SERVE = Path(sys.executable).parent / "vit-serve"
TIMEOUT_S = 60


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        return int(listening.getsockname()[1])


@contextmanager
def serving(command: Sequence[object], checkpoint: Path, stderr: int) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run a ready server whose log goes to `stderr`; gives the process and its URL."""
    port = free_port()
    variables = {"VIT_PORT": str(port), "VIT_MODEL": str(checkpoint), "VIT_DECODE_ISOLATION": "thread"}
    process = subprocess.Popen([str(part) for part in command], env={**os.environ, **variables}, stderr=stderr)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(process, url)
        yield process, url
    finally:
        process.kill()
        process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"the server is not ready: {process.poll()}")


def dropped_lines(url: str) -> float:
    metrics = httpx.get(f"{url}/metrics").text.splitlines()
    (value,) = (line.split()[1] for line in metrics if line.startswith("vit_log_lines_dropped_total "))
    return float(value)


def test_unread_log_blocks_no_request(tiny_checkpoint: Path) -> None:
    with running_server(model=tiny_checkpoint, log_level="debug") as server, server.unread_log():
        with httpx.Client(base_url=server.url, timeout=TIMEOUT_S) as client:
            assert {client.get("/health/live").status_code for _ in range(600)} == {200}
            assert client.post("/predict", content=png(0)).status_code == 200
        server.stop()
        assert server.process.wait(TIMEOUT_S) == 0


def test_paused_log_reader_gets_every_line(tiny_checkpoint: Path) -> None:
    with running_server(model=tiny_checkpoint) as server:
        with httpx.Client(base_url=server.url, timeout=TIMEOUT_S) as client, server.unread_log():
            for number in range(200):
                client.get("/model", headers={"X-Request-ID": f"n{number}"})
        server.stop()
        server.wait_for_log("Finished server process")
        assert server.wait() == 0
    ids = [record["request_id"] for record in server.log if record["event"] == "request"]
    assert ids == [f"n{number}" for number in range(200)]


def test_log_on_full_disk_blocks_no_request(tiny_checkpoint: Path) -> None:
    with Path("/dev/full").open("wb") as full, serving([VIT_SERVE, "serve"], tiny_checkpoint, full.fileno()) as (process, url):
        assert httpx.post(f"{url}/predict", content=png(0)).status_code == 200
        assert dropped_lines(url) > 0
        process.terminate()
        assert process.wait(TIMEOUT_S) == 0


def test_closed_log_pipe_blocks_no_request(tiny_checkpoint: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with serving([VIT_SERVE, "serve"], tiny_checkpoint, writing) as (process, url):
        os.close(writing)
        assert httpx.post(f"{url}/predict", content=png(0)).status_code == 200
        assert dropped_lines(url) > 0
        process.terminate()
        assert process.wait(TIMEOUT_S) == 0


def test_closed_stderr_blocks_no_request(tiny_checkpoint: Path) -> None:
    shell = ["sh", "-c", 'exec "$0" serve <&- >&- 2>&-', VIT_SERVE]
    with serving(shell, tiny_checkpoint, subprocess.DEVNULL) as (process, url):
        assert httpx.post(f"{url}/predict", content=png(0)).status_code == 200
        process.terminate()
        assert process.wait(TIMEOUT_S) == 0


def test_stop_logs_every_refusal(tiny_checkpoint: Path) -> None:
    with running_server(model=tiny_checkpoint, api_keys="secret", decode_isolation="thread") as server:
        with httpx.Client(base_url=server.url) as client:
            assert {client.get("/model").status_code for _ in range(300)} == {401}
        server.stop()
        server.wait_for_log("Finished server process")
    lines = [record for record in server.log if record.get("code") == "unauthorized"]
    assert sum(line.get("requests", 1) for line in lines) == 300
    assert len(lines) < 150


@pytest.fixture
def full_pipe() -> Iterator[int]:
    """A full pipe without a reader."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, bytes(65_536))
    except BlockingIOError:
        os.set_blocking(writing, True)
    yield writing
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("variables", [{"VIT_PORT": "many"}, {"VIT_MODEL": "/nowhere/at/all"}], ids=["setting", "model"])
def test_failed_start_ends_with_unread_stderr(full_pipe: int, variables: dict[str, str]) -> None:
    environment = {**os.environ, "VIT_PORT": "0", **variables}
    ended = subprocess.run([VIT_SERVE, "serve"], env=environment, stderr=full_pipe, timeout=TIMEOUT_S, check=False)
    assert ended.returncode == 1


def test_command_ends_with_unread_stderr(full_pipe: int, tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    (tmp_path / "b.png").write_bytes(b"no image")
    command: list[str | Path] = [VIT_SERVE, "classify", "--json", "--model", tiny_checkpoint, tmp_path]
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=full_pipe, timeout=TIMEOUT_S, check=False)
    assert (ended.returncode, ended.stdout.count(b"\n")) == (1, 2)


def test_decoders_start_with_unread_stderr(full_pipe: int) -> None:
    code = "; ".join(
        (
            "import os, app.process.stderr, app.decoding.pool.zygote, tests.app.decoding.pool.test_processes as tests",
            "app.process.stderr.queue_stderr()",
            "zygote = app.decoding.pool.zygote.Zygote('tests.app.decoding.pool.noisy')",
            "zygote.warm_up(tests.JOB)",
            "zygote.close()",
            "os._exit(0)",
        )
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=full_pipe, timeout=TIMEOUT_S, check=False)
    assert ended.returncode == 0


async def held_request(server: Server, client: httpx.AsyncClient) -> "asyncio.Task[httpx.Response]":
    """Send a request, and wait until it is in a batch that is held open."""
    request = asyncio.create_task(client.post("/predict", content=png(0)))
    async with asyncio.timeout(TIMEOUT_S):
        while metrics_of((await client.get("/metrics")).content)["vit_queued_images"] != 1:  # noqa: ASYNC110 - in another process
            await asyncio.sleep(0.01)
    return request


@pytest.mark.parametrize("sig", [signal.SIGHUP, signal.SIGQUIT, signal.SIGXCPU], ids=["SIGHUP", "SIGQUIT", "SIGXCPU"])
async def test_other_stop_signals_drain(tiny_checkpoint: Path, sig: signal.Signals) -> None:
    with running_server(model=tiny_checkpoint, max_batch_size=64, max_queue_delay_ms=5000) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT_S) as client:
            request = await held_request(server, client)
            if sig is signal.SIGXCPU:
                server.stop(sig)  # sent to each process by itself
            else:
                os.killpg(server.process.pid, sig)  # as a terminal does
            server.wait_for_log("draining")
            ready = await client.get("/health/ready")
            assert (await request).status_code == 200
            assert await asyncio.to_thread(server.wait) == 0
    assert ready.json()["code"] == "draining"
    assert not [record for record in server.log if record["event"] == "decoder restarted"]


def test_other_signals_are_ignored(tiny_checkpoint: Path) -> None:
    with running_server(model=tiny_checkpoint) as server:
        for sig in (signal.SIGPIPE, signal.SIGWINCH, signal.SIGCONT, signal.SIGUSR1, signal.SIGUSR2):
            os.killpg(server.process.pid, sig)
        assert server.wait_for_log("ignored a signal")["signal"] == "SIGUSR1"
        assert server.wait_for_log("ignored a signal")["signal"] == "SIGUSR2"
        assert httpx.post(f"{server.url}/predict", content=png(0)).status_code == 200
        server.stop()
        assert server.wait() == 0
    assert not [record for record in server.log if record["event"] == "decoder restarted"]


async def test_drain_closes_idle_connections(tiny_checkpoint: Path) -> None:
    with running_server(model=tiny_checkpoint, max_batch_size=64, max_queue_delay_ms=5000) as server:
        port = int(server.url.rpartition(":")[2])
        idle, asking = await asyncio.open_connection("127.0.0.1", port)
        asking.write(b"GET /health/live HTTP/1.1\r\nHost: test\r\n\r\n")
        await idle.readuntil(b"}")
        silent, about_to_ask = await asyncio.open_connection("127.0.0.1", port)
        async with httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT_S) as client:
            request = await held_request(server, client)
            server.stop()
            async with asyncio.timeout(TIMEOUT_S):
                assert await idle.read() == b""
            assert not request.done()
            about_to_ask.write(b"GET /model HTTP/1.1\r\nHost: test\r\n\r\n")
            assert (await silent.read()).startswith(b"HTTP/1.1 503 ")
            assert (await request).status_code == 200
        for writer in (asking, about_to_ask):
            writer.close()
        assert await asyncio.to_thread(server.wait) == 0


def test_nohup_ignores_sighup(tiny_checkpoint: Path) -> None:
    shell = ["sh", "-c", 'trap "" HUP; exec "$0" serve', VIT_SERVE]
    with serving(shell, tiny_checkpoint, subprocess.DEVNULL) as (process, url):
        process.send_signal(signal.SIGHUP)
        assert httpx.post(f"{url}/predict", content=png(0)).status_code == 200
        process.terminate()
        assert process.wait(TIMEOUT_S) == 0


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not (has_ipv6() and socket.has_dualstack_ipv6()), reason="this machine has no IPv6")


@needs_ipv6
def test_ipv6_wildcard_serves_ipv4(tiny_checkpoint: Path) -> None:
    limits = {"rate_limit_per_address": "2/hour", "trusted_proxies": "127.0.0.0/8"}
    with running_server(model=tiny_checkpoint, host="::", decode_isolation="thread", **limits) as server:
        port = server.url.rpartition(":")[2]
        for address, client, status in [
            ("127.0.0.1", "192.0.2.1", 200),
            ("127.0.0.1", "192.0.2.2", 200),
            ("127.0.0.1", "192.0.2.1", 200),
            ("127.0.0.1", "192.0.2.1", 429),  # clients behind a proxy count one by one
            ("[::1]", "192.0.2.1", 200),  # not a trusted proxy over IPv6
        ]:
            url = f"http://{address}:{port}/predict"
            answer = httpx.post(url, content=png(0), headers={"X-Forwarded-For": client})
            assert answer.status_code == status
        server.stop()
        assert server.wait() == 0


@needs_ipv6
def test_ipv6_wildcard_with_a_port_in_use(tiny_checkpoint: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        server = Server(model=tiny_checkpoint, host="::", port=taken.getsockname()[1])
        told = server.wait_for_log("vit-serve: VIT_HOST: cannot listen on ::, port")["event"]
        assert "Address already in use" in told
        assert server.wait() == 1
