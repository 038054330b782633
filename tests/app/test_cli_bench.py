"""The command `bench`, against the service over a socket and against servers that answer badly."""

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

from app.cli import cli
from tests.support.fake_service import CERTIFICATE, FakeService, Received, Reply, fake_service
from tests.support.models import png
from tests.support.server import Server, default_signals, metric, running_server

COMMAND = Path(sys.executable).parent / "vit-serve"
KEY = "VIT_SERVE_API_KEY"
SHORT = ("--seconds", 0.5, "--warm-up", 0, "--clients", 2)
BATCHES = b'vit_batch_size_images_count{model="m"} %d\nvit_batch_size_images_sum{model="m"} %d\n'


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path) -> Iterator[Server]:
    with running_server(model=tiny_checkpoint, api_keys="secret-key", inference_threads=1) as server:
        yield server


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["bench", *map(str, arguments)])


def measured(file: Path, *arguments: object, status: int = 0) -> dict[str, Any]:
    """Run the command and return what it wrote to its file."""
    result = run(*arguments, "--json", file)
    assert result.exit_code == status, result.output
    facts: dict[str, Any] = json.loads(file.read_text())
    return facts


def test_bench_of_the_service(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "secret-key")
    before = metric(server, "vit_batch_size_images_sum")
    load = ("--clients", 1, 4, "--rate", 30, "--seconds", 0.7, "--warm-up", 0.2)
    facts = measured(tmp_path / "out.json", server.url, *load, "--chart", tmp_path / "out.svg")
    levels = facts["levels"]
    assert [(level["loop"], level["clients"], level["rate_per_s"]) for level in levels] == [
        ("closed", 1, None),
        ("closed", 4, None),
        ("open", None, 30),
    ]
    for level in levels:
        assert level["succeeded"] == level["requests"] > 0
        assert (level["failed"], level["errors"], level["metrics_missing"]) == (0, [], None)
        times = list(level["latency_s"].values())
        assert times[0] > 0 and times == sorted(times)
        curve = level["latency_at_percent_s"]
        assert ([curve[50], curve[90], curve[95], curve[99], curve[100]], len(curve)) == (times, 101)
        assert set(level["server_timing_mean_ms"]) == {"decode_wait", "decode", "queue", "inference", "total"}
        assert level["server_timing_mean_ms"]["total"] / 1000 < level["latency_s"]["max"]
        assert 1 <= level["mean_batch_images"] <= 4 + 26 * (level["loop"] == "open")
        assert level["generator_share_of_a_core"] > 0
    assert levels[0]["mean_batch_images"] == 1
    assert sum(level["requests"] for level in levels) <= metric(server, "vit_batch_size_images_sum") - before
    assert (facts["url"], facts["path"], facts["interrupted"]) == (server.url, "/predict", False)
    assert facts["images"]["count"] == 16
    assert "secret-key" not in json.dumps(facts)
    ElementTree.parse(tmp_path / "out.svg")


def test_service_without_the_key_refuses(server: Server, tmp_path: Path) -> None:
    result = run(server.url, *SHORT, "--json", tmp_path / "out.json")
    assert result.exit_code == 1
    assert "no request succeeded" in result.stderr
    (level,) = json.loads((tmp_path / "out.json").read_text())["levels"]
    ((error),) = level["errors"]
    assert (error["kind"], error["count"]) == ("401", level["requests"])
    assert error["example"] in result.stdout
    assert "API key" in error["example"]


def test_images_are_sent_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, " the-key ")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "deeper" / "b.jpg").write_bytes(b"not even an image")
    (tmp_path / "notes.txt").write_text("left out")
    with fake_service(lambda _: Reply()) as fake:
        facts = measured(tmp_path / "out.json", f"{fake.url}/vit/", *SHORT, "--images", tmp_path, "--path", "/embed?x=1")
        asked = {(request.path, request.headers["host"]) for request in fake.received}
        host = fake.url.removeprefix("http://")
        assert asked == {("/vit/metrics", host), ("/vit/embed?x=1", host)}
        posted = [request for request in fake.received if request.body]
        assert {request.body for request in posted} == {png(1), b"not even an image"}
        assert {request.headers["authorization"] for request in posted} == {"Bearer the-key"}
    assert facts["images"] == {"source": str(tmp_path), "count": 2, "mean_bytes": round((len(png(1)) + 17) / 2)}


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply(503, b"busy"), "503"),
        (Reply(302, b"busy"), "302"),
        (Reply(raw=b"busy\r\n\r\n"), "not an HTTP answer"),
        (Reply(raw=b""), "connection lost"),
        (Reply(silent=True), "no answer in time"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_errors_are_told_apart(reply: Reply, kind: str, tmp_path: Path) -> None:
    good_images = iter([True] * 3)

    def answer(request: Received) -> Reply:
        return Reply() if request.path == "/metrics" or next(good_images, False) else reply

    with fake_service(answer) as fake:
        (level,) = measured(tmp_path / "out.json", fake.url, *SHORT, "--timeout", 2 if reply.silent else 60)["levels"]
    ((error),) = level["errors"]
    assert (error["kind"], error["example"]) == (kind, "busy" if reply.body == b"busy" else "")
    assert error["count"] == level["failed"] == level["requests"] - 3
    assert level["succeeded"] == 3


def test_missing_metrics_are_no_failure(tmp_path: Path) -> None:
    with fake_service(lambda request: Reply(404 if request.path == "/metrics" else 200)) as fake:
        result = run(fake.url, *SHORT, "--json", tmp_path / "out.json")
    assert result.exit_code == 0
    assert "sizes of batches are unknown: /metrics answered 404" in result.stdout
    (level,) = json.loads((tmp_path / "out.json").read_text())["levels"]
    assert (level["mean_batch_images"], level["metrics_missing"]) == (None, "/metrics answered 404")


def test_batch_size_is_of_the_interval(tmp_path: Path) -> None:
    readings = iter([BATCHES % (10, 100), BATCHES % (14, 130)])
    with fake_service(lambda request: Reply(body=next(readings) if request.path == "/metrics" else b"{}")) as fake:
        (level,) = measured(tmp_path / "out.json", fake.url, *SHORT)["levels"]
    assert level["mean_batch_images"] == 30 / 4


def test_open_loop_waits_for_no_answer(tmp_path: Path) -> None:
    together, five = [], threading.Event()

    def answer(request: Received) -> Reply:
        if request.body:
            together.append(request)
            if len(together) == 5:
                five.set()
            five.wait(30)
        return Reply()

    with fake_service(answer) as fake:
        (level,) = measured(tmp_path / "out.json", fake.url, "--rate", 50, "--seconds", 1, "--warm-up", 0)["levels"]
    assert level["succeeded"] == level["requests"] >= 5


def test_full_connections_are_remarked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.bench.run.most_connections", lambda: 1)
    with fake_service(lambda request: Reply(silent=bool(request.body))) as fake:
        load = ("--rate", 50, "--seconds", 1, "--warm-up", 0, "--timeout", 0.5)
        result = run(fake.url, *load, "--json", tmp_path / "out.json")
    assert "50/s: requests waited for one of 1 connections" in result.stdout
    (level,) = json.loads((tmp_path / "out.json").read_text())["levels"]
    assert (level["connections_full_at"], level["succeeded"]) == (1, 0)
    assert [error["kind"] for error in level["errors"]] == ["no answer in time"]
    assert level["generator_late_p99_s"] >= 0.4


def test_foreign_hosts_are_refused() -> None:
    result = run("http://192.0.2.1:8000", *SHORT)
    assert result.exit_code == 1
    assert "192.0.2.1 (192.0.2.1) is not this machine's loopback" in result.stderr


def test_https_needs_a_trusted_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_service(lambda _: Reply(), tls=True) as fake:
        refused = run(fake.url, *SHORT)
        assert refused.exit_code == 1
        assert "cannot be reached: " in refused.stderr
        assert "certificate" in refused.stderr
        assert fake.received == []
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        for url in (fake.url, fake.url.replace("127.0.0.1", "localhost")):
            (level,) = measured(tmp_path / "out.json", url, *SHORT)["levels"]
            assert level["succeeded"] == level["requests"] > 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--chart", "out.pdf"), "must end with .svg or .png"),
        (("--chart", "nowhere/out.svg"), "there is no folder nowhere"),
        (("--json", "nowhere/out.json"), "there is no folder nowhere"),
        (("--path", "predict"), "is not a path"),
        (("--clients", *range(1, 10)), "at most 8"),
        (("--clients", 10**6), "ulimit -n"),
        (("--images", "tests"), "there are no images"),
    ],
)
def test_wrong_options_are_refused_first(
    arguments: tuple[object, ...], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").mkdir()
    with fake_service(lambda _: Reply()) as fake:
        result = run(fake.url, *arguments)
        assert fake.received == []
    assert result.exit_code == 1
    assert reason in result.stderr


@pytest.mark.parametrize("option", ["--json", "--chart"])
def test_unwritable_files_are_refused_first(option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "out.svg"
    # the tests may run as root, whom no permission stops
    monkeypatch.setattr("app.cli.bench.os.access", lambda path, mode: mode != os.W_OK or path not in (file, tmp_path))
    with fake_service(lambda _: Reply()) as fake:
        for _ in range(2):
            result = run(fake.url, *SHORT, option, file)
            assert (result.exit_code, fake.received) == (1, [])
            assert "cannot be written" in result.stderr
            file.write_text("of an earlier run")
    assert file.read_text() == "of an earlier run"


@pytest.mark.parametrize("output", ["full", "closed"])
def test_files_are_written_without_an_output(output: str, tmp_path: Path) -> None:
    files = ("--json", tmp_path / "out.json", "--chart", tmp_path / "out.svg")
    with ExitStack() as stack:
        fake = stack.enter_context(fake_service(lambda _: Reply()))
        if output == "full":
            stdout = os.open("/dev/full", os.O_WRONLY)
        else:
            reader, stdout = os.pipe()
            os.close(reader)
        process = stack.enter_context(started(fake, *SHORT, *files, stdout=stdout, stderr=subprocess.PIPE))
        stack.callback(process.kill)
        os.close(stdout)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"Traceback" not in errors
    assert json.loads((tmp_path / "out.json").read_text())["levels"][0]["succeeded"] > 0
    ElementTree.parse(tmp_path / "out.svg")


def test_results_are_printed_without_a_file(tmp_path: Path) -> None:
    def answer(_: Received) -> Reply:
        (tmp_path / "out.json").mkdir(exist_ok=True)  # after it was checked
        return Reply()

    with fake_service(answer) as fake:
        result = run(fake.url, *SHORT, "--json", tmp_path / "out.json")
    assert result.exit_code == 1
    assert "2 clients" in result.stdout


def test_key_must_fit_a_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "one two")
    result = run("http://127.0.0.1:1", *SHORT)
    assert (result.exit_code, "VIT_SERVE_API_KEY" in result.stderr, "one two" in result.output) == (1, True, False)


def test_nothing_listening_is_one_sentence() -> None:
    with fake_service(lambda _: Reply()) as fake:
        pass
    result = run(fake.url, *SHORT)
    assert result.exit_code == 1
    assert "cannot be reached: Connection refused" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def started(fake: FakeService, *arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    with default_signals():
        return subprocess.Popen([COMMAND, "bench", fake.url, *map(str, arguments)], **options)


@pytest.mark.parametrize("silent", [False, True], ids=["answers", "hangs"])
def test_interrupt_reports_what_was_measured(silent: bool, tmp_path: Path) -> None:
    answered = iter(range(20))

    def answer(request: Received) -> Reply:
        return Reply(silent=silent and bool(request.body) and next(answered, None) is None)

    long = ("--seconds", 3000, "--timeout", 600, "--warm-up", 0, "--clients", 2, 4, "--json", tmp_path / "out.json")
    with fake_service(answer) as fake, started(fake, *long, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        for _ in range(23):  # twenty answers, two that may hang, and one of /metrics
            assert fake.arrived.acquire(timeout=60)
        process.send_signal(signal.SIGINT)
        try:
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert b"interrupted" in errors
    assert b"2 clients" in output
    facts = json.loads((tmp_path / "out.json").read_text())
    (level,) = facts["levels"]
    assert facts["interrupted"]
    open_requests = {error["kind"]: error["count"] for error in level["errors"]}
    assert set(open_requests) <= {"unanswered when stopped"}
    assert level["failed"] == 2 if silent else level["failed"] <= 2  # each client has at most one under way
    assert level["succeeded"] >= 20
    assert level["measured_s"] < 3000


def test_interrupt_ends_the_first_connection() -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener.settimeout(60)
        arguments = [str(COMMAND), "bench", f"https://127.0.0.1:{listener.getsockname()[1]}"]
        with default_signals():
            process = stack.enter_context(subprocess.Popen(arguments, stderr=subprocess.PIPE))
        stack.callback(process.kill)
        stack.enter_context(listener.accept()[0])  # and TLS does not begin
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"interrupted; nothing was measured" in errors


def test_interrupt_ends_a_reading_of_metrics() -> None:
    def answer(request: Received) -> Reply:
        if request.path == "/metrics":
            asked.set()
            return Reply(silent=True)
        return Reply()

    asked = threading.Event()
    with fake_service(answer) as fake, started(fake, "--warm-up", 0, stdout=subprocess.PIPE) as process:
        assert asked.wait(60)
        process.send_signal(signal.SIGINT)
        try:
            output, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert b"sizes of batches are unknown: they were being read" in output


def test_terminal_shows_what_happens() -> None:
    with ExitStack() as stack:
        screen, file = pty.openpty()
        stack.callback(os.close, screen)
        fake = stack.enter_context(fake_service(lambda _: Reply()))
        arguments = ("--seconds", 1.2, "--warm-up", 0, "--clients", 3, 4)
        process = stack.enter_context(started(fake, *arguments, stdout=file, stderr=file))
        stack.callback(process.kill)
        os.close(file)
        shown = ""
        with suppress(OSError):  # which is how a terminal ends once nobody writes to it
            while select.select([screen], [], [], 60)[0]:
                shown += os.read(screen, 10_000).decode(errors="replace")
        assert process.wait(60) == 0, shown
    at = 0
    for wanted in ("3 clients: ", "s left; now ", "answers/s", "latencies in ms", "4 clients: ", "█"):
        assert wanted in shown[at:], shown
        at = shown.index(wanted, at)
