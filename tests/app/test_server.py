"""The real server process: start, stop, signals and failures."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from app.server import browser_address
from benchmarks.watch import metrics_of
from tests.support.models import png
from tests.support.server import Server, children, metric, running_server, wait_for_metric

LIMITS = httpx.Limits(max_connections=200)

_GONE = 'vit_http_requests_total{method="POST",protocol="predict",route="/predict",status="499"}'


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path) -> Iterator[Server]:
    with running_server(model=tiny_checkpoint, max_image_bytes=10_000) as server:
        yield server


async def test_sigterm_under_load_loses_nothing(tiny_checkpoint: Path) -> None:
    # the open batch keeps all requests in flight until well after the signal
    with running_server(model=tiny_checkpoint, max_batch_size=64, max_queue_delay_ms=6000) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=LIMITS) as client:
            requests = [asyncio.create_task(client.post("/predict", content=png(seed))) for seed in range(32)]
            await wait_for_metric(server, "vit_queued_images", 32)
            server.stop()
            server.wait_for_log("draining")
            late = await client.post("/predict", content=png(0))
            ready = await client.get("/health/ready")
            responses = await asyncio.gather(*requests)
        assert (late.status_code, late.json()["code"]) == (503, "draining")
        assert (ready.status_code, ready.json()["code"]) == (503, "draining")
        assert [response.status_code for response in responses] == [200] * 32
        assert len({tuple(response.json()["logits"]) for response in responses}) == 32
        assert server.wait() == 0


async def test_sigterm_amid_new_requests_loses_nothing(tiny_checkpoint: Path) -> None:
    outcomes: list[str] = []

    async def call_until_refused(client: httpx.AsyncClient, seed: int) -> None:
        while True:
            try:
                response = await client.post("/predict", content=png(seed), headers={"Connection": "close"})
            except (httpx.TransportError, AttributeError):  # anyio raises the latter for a socket that closed at once
                return  # not accepted any more
            outcomes.append(response.json().get("code", "ok"))

    with running_server(model=tiny_checkpoint, max_batch_size=4) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=LIMITS) as client:
            clients = [asyncio.create_task(call_until_refused(client, seed)) for seed in range(16)]
            async with asyncio.timeout(60):
                while len(outcomes) < 50:  # noqa: ASYNC110 - any of sixteen clients may be the one
                    await asyncio.sleep(0.01)
            server.stop()
            await asyncio.gather(*clients)
        assert server.wait() == 0
        accepted = sum(record.get("status") == 200 for record in drained_log(server) if record.get("route") == "/predict")
    assert set(outcomes) <= {"ok", "draining"}
    assert outcomes.count("ok") == accepted


async def test_leaving_server_accepts_and_is_not_ready(tiny_checkpoint: Path) -> None:
    with running_server(model=tiny_checkpoint, drain_delay_s=3600) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            server.stop()
            server.wait_for_log("leaving")
            probes = [await client.get(path) for path in ("/health/ready", "/v2/health/ready", "/ping", "/health")]
            answer = await client.post("/predict", content=png(0))
            assert await asyncio.to_thread(metric, server, "vit_ready") == 0
            server.stop()  # a second signal ends the delay
            assert await asyncio.to_thread(server.wait) == 0
        assert {probe.status_code for probe in probes} == {503}
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")


async def test_delay_of_the_drain_ends(tiny_checkpoint: Path) -> None:
    with running_server(model=tiny_checkpoint, drain_delay_s=0.01) as server:
        server.stop()
        assert await asyncio.to_thread(server.wait) == 0
        events = [record["event"] for record in drained_log(server)]
    assert events.index("leaving") < events.index("draining")


def drained_log(server: Server) -> list[dict[str, object]]:
    server.wait_for_log("Finished server process")
    return server.log


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
async def test_idle_server_exits_with_0(tiny_checkpoint: Path, sig: int) -> None:
    with running_server(model=tiny_checkpoint) as server:
        async with httpx.AsyncClient(base_url=server.url) as client:
            await client.get("/health/ready")  # the connection stays open
            server.stop(sig)
            assert await asyncio.to_thread(server.wait) == 0


async def test_second_signal_does_not_wait(tiny_checkpoint: Path) -> None:
    with running_server(model=tiny_checkpoint, max_batch_size=64, max_queue_delay_ms=10_000) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            request = asyncio.create_task(client.post("/predict", content=png(0)))
            await wait_for_metric(server, "vit_queued_images", 1)
            server.stop()
            server.wait_for_log("draining")
            server.stop()
            refused = await request
            assert await asyncio.to_thread(server.wait) == 0
        assert (refused.status_code, refused.json()["code"]) == (503, "draining")


async def test_drain_timeout_refuses_the_rest(tiny_checkpoint: Path) -> None:
    with running_server(model=tiny_checkpoint, max_batch_size=64, max_queue_delay_ms=10_000, drain_timeout_s=0.1) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            request = asyncio.create_task(client.post("/predict", content=png(0)))
            await wait_for_metric(server, "vit_queued_images", 1)
            server.stop()
            refused = await request
            assert await asyncio.to_thread(server.wait) == 0
        assert (refused.status_code, refused.json()["code"]) == (503, "draining")


def test_load_failure_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    server = Server(model=tmp_path)
    assert "architecture 'BertModel' is not supported" in server.wait_for_log("cannot start")["reason"]
    assert server.wait() == 1


def test_pipe_as_weights_ends_the_process(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "piped")
    (tmp_path / "piped" / "model.safetensors").unlink()
    os.mkfifo(tmp_path / "piped" / "model.safetensors")
    server = Server(model=tmp_path / "piped")
    try:
        assert "model.safetensors cannot be read: it is no regular file" in server.wait_for_log("cannot start")["reason"]
        assert server.wait() == 1
    finally:
        server.process.kill()


def test_debug_log_shows_where_a_start_failed(tmp_path: Path) -> None:
    server = Server(model=tmp_path, log_level="debug")
    assert "exception" not in server.wait_for_log("cannot start")
    assert "CheckpointError" in server.wait_for_log("cannot start")["exception"]
    assert server.wait() == 1


def test_compile_failure_ends_the_process(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no compiler there
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    server = Server(model=tiny_checkpoint, compile=True, max_batch_size=1)
    assert server.wait_for_log("cannot start")["reason"].startswith("VIT_COMPILE: the model cannot be compiled here")
    assert server.wait() == 1


def test_taken_port_ends_the_process(server: Server, tiny_checkpoint: Path) -> None:
    second = Server(model=tiny_checkpoint, port=urlsplit(server.url).port)
    assert "address already in use" in second.wait_for_log("[Errno")["event"]
    assert second.wait() == 1


def test_metrics_port_lives_until_the_end(tiny_checkpoint: Path) -> None:
    with running_server(model=tiny_checkpoint, metrics_port=0) as server:
        record = next(record for record in server.log if record["event"] == "serving metrics")
        url = f"http://127.0.0.1:{record['port']}/metrics"
        assert (record["host"], httpx.get(f"{server.url}/metrics").status_code) == ("127.0.0.1", 404)
        httpx.post(f"{server.url}/predict", content=png(0)).raise_for_status()
        assert metrics_of(httpx.get(url).content)['vit_images_total{outcome="ok"}'] == 1
        taken = Server(model=tiny_checkpoint, metrics_port=record["port"])
        told = taken.wait_for_log("vit-serve: VIT_METRICS_PORT: cannot listen on 127.0.0.1")["event"]
        assert told.strip().endswith(f"port {record['port']}: Address already in use")
        assert taken.wait() == 1
        server.stop()
        assert server.wait() == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


async def test_disconnect_removes_the_queued_image(tiny_checkpoint: Path) -> None:
    with running_server(model=tiny_checkpoint, max_batch_size=64, max_queue_delay_ms=10_000) as server:
        reader, writer = await connect(server)
        writer.write(head("POST /predict", len(png(0))) + png(0))
        await wait_for_metric(server, "vit_queued_images", 1)
        writer.close()
        await wait_for_metric(server, "vit_queued_images", 0)
        await wait_for_metric(server, 'vit_images_total{outcome="cancelled"}', 1)
        await wait_for_metric(server, _GONE, 1)
        assert metric(server, "vit_inflight_requests") == 0
        assert reader.at_eof() or not await reader.read()


async def test_declared_size_is_refused_before_the_body(server: Server) -> None:
    reader, writer = await connect(server)
    writer.write(head("POST /predict", 10_000_000_000, "Expect: 100-continue"))
    async with asyncio.timeout(30):
        status = await reader.readline()
    writer.close()
    assert status.split()[1] == b"413"


async def test_aborted_upload_is_forgotten(server: Server) -> None:
    before = metric(server, _GONE)
    _, writer = await connect(server)
    writer.write(head("POST /predict", 5000) + b"half")
    await wait_for_metric(server, "vit_inflight_requests", 1)
    writer.close()
    await wait_for_metric(server, "vit_inflight_requests", 0)
    assert metric(server, _GONE) == before + 1


async def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    reader, writer = await connect(server)
    for seed in range(5):
        writer.write(head("POST /predict?vectors=false", len(png(seed)), f"X-Request-ID: n{seed}") + png(seed))
    ids: list[str] = []
    async with asyncio.timeout(60):
        while len(ids) < 5:
            line = await reader.readline()
            if line.lower().startswith(b"x-request-id"):
                ids.append(line.split()[1].decode())
    writer.close()
    assert ids == ["n0", "n1", "n2", "n3", "n4"]


def test_what_computes_gives_way_to_what_answers(server: Server) -> None:
    def niceness(directory: str) -> list[int]:
        return [os.getpriority(os.PRIO_PROCESS, int(task.name)) for task in Path(directory).iterdir()]

    pid, ours = server.process.pid, os.getpriority(os.PRIO_PROCESS, 0)
    less = min(ours + 10, 19)
    assert os.getpriority(os.PRIO_PROCESS, pid) == ours  # the event loop's thread
    assert niceness(f"/proc/{pid}/task").count(less) >= 2  # runs
    (zygote,) = children(pid)
    assert {os.getpriority(os.PRIO_PROCESS, process) for process in (zygote, *children(zygote))} == {less}


async def test_sigterm_lets_uploads_finish(tiny_checkpoint: Path) -> None:
    with running_server(model=tiny_checkpoint) as server:
        reader, writer = await half_an_upload(server)
        server.stop()
        server.wait_for_log("draining")
        writer.write(png(0)[10:])
        assert b" 200 " in await reader.readline()
        writer.close()
        assert await asyncio.to_thread(server.wait) == 0


async def test_endless_upload_ends_with_the_drain(tiny_checkpoint: Path) -> None:
    with running_server(model=tiny_checkpoint, drain_timeout_s=0.1) as server:
        reader, writer = await half_an_upload(server)
        server.stop()
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"code":"draining"' in answer
        assert await asyncio.to_thread(server.wait) == 0


async def half_an_upload(server: Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await connect(server)
    writer.write(head("POST /predict", len(png(0))) + png(0)[:10])
    await wait_for_metric(server, "vit_inflight_bytes", 10)
    return reader, writer


@pytest.mark.parametrize("fault", ["hang", "poisoned"])
async def test_lost_device_answers_all_then_exits(tiny_checkpoint: Path, fault: str) -> None:
    command = [sys.executable, "-m", "tests.support.faulty_server", fault]
    server = Server(
        command, model=tiny_checkpoint, engine="torch", max_batch_size=1, inference_threads=1, inference_timeout_s=1
    )
    try:
        server.wait_until_ready()
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=LIMITS) as client:
            responses = await asyncio.gather(*(client.post("/predict", content=png(seed)) for seed in range(16)))
        assert [response.status_code for response in responses].count(200) == 2
        assert {response.json()["code"] for response in responses if response.status_code != 200} == {"not_ready"}
        assert "the inference worker died" in server.wait_for_log("the inference worker died")["event"]
        assert server.wait_for_log("ended")["reason"] == "the engine died"
        assert server.wait() == 1
    finally:
        server.process.kill()


async def connect(server: Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    url = urlsplit(server.url)
    return await asyncio.open_connection(url.hostname, url.port, family=socket.AF_INET)


def head(request: str, length: int, *headers: str) -> bytes:
    lines = (f"{request} HTTP/1.1", "Host: test", f"Content-Length: {length}", *headers)
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


async def test_hung_decoder_costs_one_image(tiny_checkpoint: Path) -> None:
    with running_server(model=tiny_checkpoint, decode_workers=1, decode_timeout_s=2) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            expected = (await client.post("/predict", content=png(1))).json()
            (zygote,) = children(server.process.pid)
            (decoder,) = children(zygote)
            os.kill(decoder, signal.SIGSTOP)
            outcomes = await asyncio.gather(*(client.post("/predict", content=png(1)) for _ in range(2)))
            good, hung = sorted(outcomes, key=lambda response: response.status_code)
            assert (hung.status_code, hung.json()["code"]) == (422, "undecodable_image")
            assert good.json() == expected
            assert (await client.post("/predict", content=png(1))).json() == expected
            assert (await client.get("/health/ready")).status_code == 200
        assert metric(server, 'vit_decoder_restarts_total{reason="timeout"}') == 1


def test_sigterm_before_listening_exits(tiny_checkpoint: Path) -> None:
    server = Server(model=tiny_checkpoint)
    server.wait_for_log("Started server process")
    server.stop()
    assert server.wait() == 0


def test_sigterm_during_warm_up_exits() -> None:
    server = Server(max_batch_size=1024)  # slow for the bundled model
    server.wait_for_log("loading")
    server.stop()
    assert server.wait() == 0
    with pytest.raises(AssertionError, match="the server ended with 0 before 'ready'"):
        server.wait_for_log("ready")


LIMIT_FILES = (
    "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))",
    "from app.http.limits import HttpLimits",
    "from app.server import allow_open_files",
    "allow_open_files(HttpLimits(max_connections=200), decode_workers={workers})",
    "print(*resource.getrlimit(resource.RLIMIT_NOFILE))",
)


def allow_open_files(soft: int, hard: int, workers: int = 0) -> subprocess.CompletedProcess[str]:
    code = "; ".join(LIMIT_FILES).format(soft=soft, hard=hard, workers=workers)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(("workers", "needed"), [(0, 488), (1, 490), (50, 588)])
def test_limit_of_open_files_is_raised(workers: int, needed: int) -> None:
    assert allow_open_files(soft=300, hard=600, workers=workers).stdout.split() == [str(needed), "600"]


def test_low_limit_of_open_files_stops_the_start() -> None:
    ended = allow_open_files(soft=300, hard=400)
    assert "VIT_MAX_CONNECTIONS: 200 connections need 488 open files, and only 400 are allowed" in ended.stderr


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000/"),
        ("0.0.0.0", "http://localhost:8000/"),
        ("::", "http://localhost:8000/"),
        ("::1", "http://[::1]:8000/"),
    ],
)
def test_address_for_a_browser(host: str, address: str) -> None:
    assert browser_address(host, 8000) == address


def test_start_says_where_the_page_is(tiny_checkpoint: Path) -> None:
    with running_server(model=tiny_checkpoint) as server:
        (line,) = (line for line in server.log if line["event"] == "open the page in a browser")
        assert line["address"] == f"{server.url}/"
