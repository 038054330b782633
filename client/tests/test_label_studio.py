"""The backend of Label Studio: which images it fetches, and what it answers."""

import base64
import json
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from client.tests.conftest import KEY
from client.tests.scripted_server import OK, Reply, ScriptedServer, answering
from client.tests.test_command import COMMAND
from tests.support.models import png
from tests.support.server import Server, default_signals
from vit_serve_client import VitClient
from vit_serve_client.label_studio.backend import Backend, Names
from vit_serve_client.label_studio.command import credentials_of
from vit_serve_client.label_studio.label_config import choices
from vit_serve_client.label_studio.origin import Origin, Refused
from vit_serve_client.label_studio.server import MAX_BODY_BYTES, MAX_CONNECTIONS, BackendServer

CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <Choices name="class" toName="image"><Choice value="cat"/><Choice value="Dog" alias="dog"/></Choices>
  <Choices name="other" toName="image"><Choice value="bird"/></Choices>
</View>
"""
IMAGE = Reply(200, b"image")


@contextmanager
def backend(
    service_url: str, origin: Origin, *, key: str | None = None, credentials: tuple[str, str] | None = None
) -> Iterator[str]:
    """Run the backend in this process. Gives its URL."""
    with VitClient(service_url, key, max_retries=0) as client:
        tasks = Backend(client, origin, Names("class", "image", "image"), top_k=10)
        with BackendServer(("127.0.0.1", 0), tasks, credentials) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield server.url
            finally:
                server.shutdown()
                thread.join()
                tasks.close()
                origin.close()


def predict(url: str, *images: object, config: str = CONFIG) -> list[dict[str, Any]]:
    tasks = [{"id": index, "data": {"image": image}} for index, image in enumerate(images)]
    answer = httpx2.post(f"{url}/predict", json={"tasks": tasks, "label_config": config}, timeout=60)
    assert answer.status_code == 200
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


def connected(url: str) -> socket.socket:
    """Return a connection to a server."""
    parsed = httpx2.URL(url)
    assert parsed.port is not None
    return socket.create_connection((parsed.host, parsed.port), timeout=60)


@pytest.fixture
def label_studio() -> Iterator[ScriptedServer]:
    with answering(IMAGE) as server:
        yield server


def test_choices_are_those_of_one_control() -> None:
    assert choices(CONFIG, "class") == {"cat": "cat", "Dog": "dog", "dog": "dog"}
    assert choices(CONFIG, "other") == {"bird": "bird"}
    assert choices(CONFIG, "image") == {}


@pytest.mark.parametrize(
    "config",
    [
        '<!DOCTYPE View [<!ENTITY a SYSTEM "file:///etc/passwd">]><View>&a;</View>',
        "<!doctype View><View/>",
        '<! ENTITY a "b"><View/>',
        "<View>",
        "<View>&a;</View>",
        "no XML",
        "<View>\ud800</View>",
    ],
    ids=ascii,
)
def test_other_configurations_are_refused(config: str) -> None:
    with pytest.raises(ValueError, match="labelling configuration"):
        choices(config, "class")


@pytest.mark.parametrize(
    ("reference", "url"),
    [
        ("/data/upload/1/a.png", "https://studio.example/data/upload/1/a.png"),
        ("/data/local-files/?d=cats/a.png", "https://studio.example/data/local-files/?d=cats/a.png"),
        ("https://studio.example/a.png", "https://studio.example/a.png"),
        ("https://STUDIO.example:443/a.png", "https://studio.example/a.png"),
        ("//studio.example/a.png", "https://studio.example/a.png"),
        ("https:a.png", "https://studio.example/a.png"),
    ],
)
def test_references_of_the_origin_resolve(reference: str, url: str) -> None:
    assert str(Origin("https://studio.example").resolve(reference)) == url


@pytest.mark.parametrize(
    "reference",
    [
        "http://studio.example/a.png",
        "https://studio.example:444/a.png",
        "https://studio.example.evil.example/a.png",
        "https://evil.example/studio.example",
        "https://studio.example@evil.example/a.png",
        "https://user:password@studio.example/a.png",
        "//evil.example/a.png",
        "///evil.example/a.png\\@studio.example",
        "/\\evil.example/a.png",
        "\thttps://evil.example/",
        "https://studio.example\n.evil.example/",
        "https://169.254.169.254/latest",
        "file:///etc/passwd",
        "s3://bucket/a.png",
        "data:image/png;base64,AAAA",
        "https://[::1/a.png",
        "https://studio.example:port/",
        "",
        "/" + "a" * 9000,
        None,
        5,
        ["/a.png"],
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_other_references_are_refused(reference: object) -> None:
    with pytest.raises(Refused):
        Origin("https://studio.example").resolve(reference)


@pytest.mark.parametrize(
    "url", ["studio.example", "ftp://a", "http://a/path", "http://u@a", "http://a?b", "http://a:b", "http://"]
)
def test_origin_is_scheme_host_and_port(url: str) -> None:
    with pytest.raises(ValueError, match="origin"):
        Origin(url)


@pytest.mark.parametrize("token", ["", "two words", "a\nb", "\u00fc"])
def test_tokens_that_fit_no_header_are_refused(token: str) -> None:
    with pytest.raises(ValueError, match="token"):
        Origin("http://studio.example", token)


def test_image_is_fetched_with_the_token(label_studio: ScriptedServer) -> None:
    origin = Origin(label_studio.url, "abc")
    assert origin.fetch("/data/upload/a.png?x=1") == b"image"
    origin.close()
    (request,) = label_studio.received
    assert (request.path, request.headers["Authorization"]) == ("/data/upload/a.png?x=1", "Token abc")


@pytest.mark.parametrize(
    "reply",
    [
        Reply(404),
        Reply(204),
        Reply(200, b"image", {"Content-Encoding": "gzip"}),
        Reply(200, bytes(101)),
        Reply(200, b"image", cut=True),
        Reply(silent=True),
    ],
    ids=["missing", "empty", "compressed", "large", "cut", "silent"],
)
def test_fetching_is_bounded(reply: Reply) -> None:
    with answering(reply) as server:
        origin = Origin(server.url, max_bytes=100, timeout_s=0.2)
        with pytest.raises(Refused):
            origin.fetch("/a.png")
        origin.close()


def test_proxies_of_variables_are_not_asked(label_studio: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(IMAGE) as proxy:
        for name in ("http_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.setenv("no_proxy", "")
        origin = Origin(label_studio.url)
        assert origin.fetch("/a.png") == b"image"
        origin.close()
    assert (len(label_studio.received), proxy.received) == (1, [])


def test_slow_image_is_given_up(label_studio: ScriptedServer) -> None:
    moments = iter([0.0, 19.0, 21.0])
    origin = Origin(label_studio.url, clock=lambda: next(moments))
    assert origin.fetch("/a.png") == b"image"
    moments = iter([0.0, 21.0])
    with pytest.raises(Refused, match="longer than 20 s"):
        origin.fetch("/a.png")
    origin.close()


def test_redirect_of_an_image_is_not_followed(label_studio: ScriptedServer) -> None:
    with answering(Reply(302, headers={"Location": f"{label_studio.url}/b.png"})) as server:
        origin = Origin(server.url, "abc")
        with pytest.raises(Refused, match="status 302"):
            origin.fetch("/a.png")
        origin.close()
    assert label_studio.received == []


def test_tasks_are_predicted_in_order(label_studio: ScriptedServer) -> None:
    with answering(OK) as vit, answering(IMAGE) as elsewhere, backend(vit.url, Origin(label_studio.url)) as url:
        results = predict(url, "/a.png", f"{elsewhere.url}/b.png", f"{label_studio.url}/c.png", None)
    choice = {"from_name": "class", "to_name": "image", "type": "choices", "value": {"choices": ["cat"]}}
    done = {"result": [choice], "score": 0.9, "model_version": "tiny"}
    empty = {"result": [], "score": 0.0, "model_version": "tiny"}
    assert results == [done, empty, done, empty]
    assert sorted(request.path for request in label_studio.received) == ["/a.png", "/c.png"]
    assert elsewhere.received == []


@pytest.mark.parametrize("config", ["", "<View/>", CONFIG.replace("cat", "bat")], ids=["none", "empty", "others"])
def test_labels_of_other_projects_are_dropped(label_studio: ScriptedServer, config: str) -> None:
    with answering(OK) as vit, backend(vit.url, Origin(label_studio.url)) as url:
        assert predict(url, "/a.png", config=config) == [{"result": [], "score": 0.0, "model_version": "tiny"}]


def test_missing_service_gives_empty_results(label_studio: ScriptedServer) -> None:
    with backend("http://127.0.0.1:1", Origin(label_studio.url)) as url:
        assert predict(url, "/a.png") == [{"result": [], "score": 0.0, "model_version": "unknown"}]
        assert httpx2.get(f"{url}/health").status_code == 200


def test_real_service_labels_a_task(service: Server) -> None:
    config = CONFIG.replace("cat", "class 3")
    with answering(Reply(200, png(1))) as studio, backend(service.url, Origin(studio.url), key=KEY) as url:
        (result,) = predict(url, "/a.png", config=config)
        version = httpx2.post(f"{url}/setup", json={"project": "1", "schema": CONFIG}).json()["model_version"]
    assert result["result"][0]["value"] == {"choices": ["class 3"]}
    assert 0 < result["score"] <= 1
    assert result["model_version"] == version == "tiny-dinov2"


def test_other_routes_answer(label_studio: ScriptedServer) -> None:
    with answering(OK) as vit, backend(vit.url, Origin(label_studio.url)) as url:
        for path in ("/", "/health", "/versions"):
            assert httpx2.get(url + path).status_code == 200
        for path, status in (("/validate", 200), ("/delete", 200), ("/job_status", 200), ("/webhook", 201), ("/other", 404)):
            assert httpx2.post(url + path, json={}).status_code == status
        assert httpx2.get(f"{url}/other").status_code == 404


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"no JSON", {}, 400),
        (b"[" * 100_000, {}, 400),
        (b"[]", {}, 400),
        (b"{}", {}, 400),
        (b'{"tasks": {}}', {}, 400),
        (b'{"tasks": [], "label_config": 5}', {}, 400),
        (b'{"tasks": [], "label_config": "<!DOCTYPE a>"}', {}, 400),
        (json.dumps({"tasks": [1] * 1001}).encode(), {}, 400),
        (b"", {"Content-Length": str(MAX_BODY_BYTES + 1)}, 413),
        (b"", {"Content-Length": "-1"}, 400),
        (b"", {"Transfer-Encoding": "chunked"}, 411),
        (b'{"tasks": [5, {}, {"data": 5}]}', {}, 200),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_bodies_are_bounded(label_studio: ScriptedServer, body: bytes, headers: dict[str, str], status: int) -> None:
    with answering(OK) as vit, backend(vit.url, Origin(label_studio.url)) as url:
        head = {"Host": "a", "Content-Length": str(len(body)), **headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        with connected(url) as peer:
            peer.sendall(f"POST /predict HTTP/1.1\r\n{lines}\r\n".encode() + body)
            assert peer.makefile("rb").readline().split()[1] == str(status).encode()
    assert label_studio.received == []


def test_refusals_reach_who_is_still_sending(label_studio: ScriptedServer) -> None:
    with answering(OK) as vit, backend(vit.url, Origin(label_studio.url), credentials=("studio", "secret")) as url:
        with connected(url) as peer:
            peer.sendall(f"POST /predict HTTP/1.1\r\nContent-Length: {MAX_BODY_BYTES}\r\n\r\n".encode() + bytes(MAX_BODY_BYTES))
            assert b"401" in peer.makefile("rb").readline()
        too_much = httpx2.post(f"{url}/predict", content=bytes(MAX_BODY_BYTES + 1), auth=("studio", "secret"))
        assert too_much.status_code == 413


def test_other_protocols_are_refused(label_studio: ScriptedServer) -> None:
    with answering(OK) as vit, backend(vit.url, Origin(label_studio.url)) as url:
        with connected(url) as peer:
            peer.sendall(b"GET / HTTP/x\r\n\r\n")
            assert b"400" in peer.makefile("rb").read()
        assert httpx2.put(url).status_code == 501


def test_connections_are_bounded(label_studio: ScriptedServer) -> None:
    with answering(OK) as vit, backend(vit.url, Origin(label_studio.url)) as url, ExitStack() as held:
        for _ in range(MAX_CONNECTIONS):
            held.enter_context(connected(url))
        with connected(url) as one_more:
            assert one_more.recv(1) == b""


def test_connections_are_freed(label_studio: ScriptedServer) -> None:
    with answering(OK) as vit, backend(vit.url, Origin(label_studio.url)) as url, httpx2.Client() as client:
        assert {client.get(url).status_code for _ in range(2 * MAX_CONNECTIONS)} == {200}


def test_password_is_asked_for(label_studio: ScriptedServer) -> None:
    with answering(OK) as vit, backend(vit.url, Origin(label_studio.url), credentials=("studio", "secret")) as url:
        assert httpx2.get(f"{url}/health").status_code == 200
        refused = httpx2.post(f"{url}/setup", json={})
        assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, 'Basic realm="vit-serve-client"')
        assert httpx2.post(f"{url}/setup", json={}, auth=("studio", "wrong")).status_code == 401
        assert httpx2.get(f"{url}/versions").status_code == 401
        header = {"Authorization": "Basic " + base64.b64encode(b"studio:secret").decode()}
        assert httpx2.post(f"{url}/webhook", json={}, headers=header).status_code == 201


def test_credentials_come_in_pairs() -> None:
    user, password = {"VIT_SERVE_BACKEND_USER": "a"}, {"VIT_SERVE_BACKEND_PASSWORD": "b"}
    assert credentials_of({}) is None
    assert credentials_of(user | password) == ("a", "b")
    for half in (user, password):
        with pytest.raises(ValueError, match="both"):
            credentials_of(half)


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_command_serves_until_a_signal(label_studio: ScriptedServer, tmp_path: Path, sig: signal.Signals) -> None:
    (tmp_path / "token").write_text("abc\n")
    names = ["--from-name", "class", "--to-name", "image"]
    with answering(OK) as vit:
        place = ["--origin", label_studio.url, "--token-file", str(tmp_path / "token"), "--port", "0", "--url", vit.url]
        command = [str(COMMAND), "label-studio", *place, *names]
        with default_signals(), subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            url = process.stderr.readline().split()[-1]
            (result,) = predict(url, "/a.png")
            process.send_signal(sig)
            assert "abc" not in process.stderr.read()
            assert process.wait(60) == 0
    assert result["result"][0]["value"] == {"choices": ["cat"]}
    assert label_studio.received[0].headers["Authorization"] == "Token abc"
