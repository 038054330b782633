"""Spans of requests, as a real receiver gets them."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest

from app.pixels import Pixels
from app.serving.runner import ModelRunner
from app.tracing.images import NOT_RECORDED, image_trace
from tests.app.conftest import OpenClient
from tests.support.models import png
from tests.support.otlp import Received, Receiver
from tests.support.predict import Held

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
STEPS = ["decode_wait", "decode", "queue", "inference"]


def traceparent(flags: str = "01") -> dict[str, str]:
    return {"traceparent": f"00-{TRACE}-{CALLER}-{flags}"}


def below(spans: Sequence[Received], parent: Received) -> list[Received]:
    """Return the spans of a parent in the order of their start."""
    return sorted((span for span in spans if span.parent_id == parent.span_id), key=lambda span: (span.start, span.end))


async def until_queued(client: httpx.AsyncClient, count: int) -> None:
    """Wait until images wait for a batch."""
    batcher = client.app.state.vit_serve.service.ready_classifier()._batcher  # type: ignore[attr-defined]
    async with asyncio.timeout(60):
        while batcher.queued != count:  # noqa: ASYNC110 - a queue has no Event
            await asyncio.sleep(0)


async def test_request_has_a_tree_of_spans(open_client: OpenClient, receiver: Receiver) -> None:
    async with open_client() as client:
        assert (await client.post("/predict?top_k=2", content=png(0))).status_code == 200
    server, batch = receiver.one("POST /predict"), receiver.one("batch")
    steps = below(receiver.spans, server)
    assert [span.name for span in steps] == STEPS
    assert {span.trace_id for span in steps} == {server.trace_id} != {batch.trace_id}
    assert (server.parent_id, batch.parent_id) == ("", "")
    assert len({span.span_id for span in receiver.spans}) == len(receiver.spans) == 6
    assert not [span for span in receiver.spans if span.failed]
    assert server.attributes == {
        "http.request.method": "POST",
        "url.scheme": "http",
        "url.path": "/predict",
        "server.address": "test",
        "http.route": "/predict",
        "http.response.status_code": 200,
    }
    assert batch.attributes == {"vit.batch.size": 1, "vit.batch.padded_size": 1}
    assert receiver.paths == ["/v1/traces"]


async def test_times_of_spans_are_true(open_client: OpenClient, receiver: Receiver) -> None:
    async with open_client() as client:
        timing = (await client.post("/predict", content=png(0))).headers["server-timing"]
    server, batch = receiver.one("POST /predict"), receiver.one("batch")
    wait, decode, queue, inference = below(receiver.spans, server)
    assert server.start <= wait.start <= wait.end == decode.start <= decode.end <= queue.start
    assert queue.end == inference.start <= inference.end <= server.end
    assert (inference.start, inference.end) == (batch.start, batch.end)
    header = {name: float(ms) for name, ms in (part.split(";dur=") for part in timing.split(", "))}
    for name, span in (("decode_wait", wait), ("decode", decode)):
        assert (span.end - span.start) / 1e6 == pytest.approx(header[name], abs=0.01)  # the header is rounded


async def test_each_image_has_its_spans(open_client: OpenClient, receiver: Receiver) -> None:
    async with open_client() as client:
        files = [("images", png(seed)) for seed in range(3)]
        assert (await client.post("/predict/batch", files=files)).status_code == 200
    steps = below(receiver.spans, receiver.one("POST /predict/batch"))
    assert sorted(span.name for span in steps) == sorted(STEPS * 3)


@pytest.mark.parametrize("path", ["/predict", "/embed", "/invocations"])
async def test_every_protocol_is_traced(open_client: OpenClient, receiver: Receiver, path: str) -> None:
    async with open_client() as client:
        assert (await client.post(path, content=png(0), headers={"Content-Type": "image/png"})).status_code == 200
    assert [span.name for span in below(receiver.spans, receiver.one(f"POST {path}"))] == STEPS


async def test_pixels_are_not_decoded(open_client: OpenClient, receiver: Receiver) -> None:
    tensor = {"name": "pixels", "shape": [1, 3, 28, 28], "datatype": "UINT8", "data": [0] * (3 * 28 * 28)}
    async with open_client() as client:
        answer = await client.post("/v2/models/tiny-dinov2/infer", json={"inputs": [tensor]})
        assert answer.status_code == 200, answer.text
    (server,) = (span for span in receiver.spans if "http.route" in span.attributes)
    assert [span.name for span in below(receiver.spans, server)] == ["queue", "inference"]


async def test_requests_share_one_batch_span(open_client: OpenClient, receiver: Receiver) -> None:
    held = Held()
    async with open_client(run=held) as client:
        first = asyncio.create_task(client.post("/predict", content=png(0)))
        await held.begun.wait()
        rest = [asyncio.create_task(client.post("/predict", content=png(seed))) for seed in (1, 2, 3)]
        await until_queued(client, 3)
        held.gate.set()
        assert {answer.status_code for answer in await asyncio.gather(first, *rest)} == {200}
    batches = {batch.span_id: batch for batch in receiver.named("batch")}
    assert sorted(batch.attributes["vit.batch.size"] for batch in batches.values()) == [1, 3]
    inferences = receiver.named("inference")
    assert len({span.trace_id for span in inferences}) == 4
    traces = {server.span_id: server.trace_id for server in servers(receiver)}
    for inference in inferences:
        assert inference.trace_id == traces[inference.parent_id]
        (batch_id,) = inference.links
        assert inference.span_id in batches[batch_id].links
    assert sorted(len(batch.links) for batch in batches.values()) == [1, 3]


async def test_batch_links_only_recorded_requests(open_client: OpenClient, receiver: Receiver) -> None:
    held = Held()
    async with open_client(run=held) as client:
        first = asyncio.create_task(client.post("/predict", content=png(0), headers=traceparent("00")))
        await held.begun.wait()
        headers: list[dict[str, str]] = [traceparent("00"), traceparent("01")]
        rest = [asyncio.create_task(client.post("/predict", content=png(1), headers=each)) for each in headers]
        await until_queued(client, 2)
        held.gate.set()
        await asyncio.gather(first, *rest)
    assert receiver.one("batch").links == {receiver.one("inference").span_id}
    assert receiver.one("batch").attributes["vit.batch.size"] == 2


async def test_batch_span_shows_padding(open_client: OpenClient, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.engines.torch_cpu.TorchCpuEngine.batch_sizes", (4,), raising=False)
    async with open_client() as client:
        await client.post("/predict", content=png(0))
    assert receiver.one("batch").attributes == {"vit.batch.size": 1, "vit.batch.padded_size": 4}


async def test_split_batches_are_all_traced(open_client: OpenClient, receiver: Receiver) -> None:
    held = Held()

    async def run(runner: ModelRunner, images: Sequence[Pixels]) -> Any:
        scores = await held(runner, images)
        if len(images) > 1:
            raise RuntimeError("secret text")
        return scores

    async with open_client(run=run) as client:
        first = asyncio.create_task(client.post("/predict", content=png(0)))
        await held.begun.wait()
        rest = [asyncio.create_task(client.post("/predict", content=png(seed))) for seed in (1, 2)]
        await until_queued(client, 2)
        held.gate.set()
        assert {answer.status_code for answer in await asyncio.gather(first, *rest)} == {200}
    sizes = [(batch.attributes["vit.batch.size"], batch.failed) for batch in receiver.named("batch")]
    assert sorted(sizes) == [(1, False), (1, False), (1, False), (2, True)]
    runs = sorted(len([s for s in below(receiver.spans, server) if s.name == "inference"]) for server in servers(receiver))
    assert runs == [1, 2, 2]
    assert len(receiver.named("queue")) == 3
    (failed,) = (batch for batch in receiver.named("batch") if batch.failed)
    assert failed.attributes["error.type"] == "RuntimeError"
    assert b"secret text" not in b"".join(receiver.bodies)


def servers(receiver: Receiver) -> list[Received]:
    return [span for span in receiver.spans if "http.request.method" in span.attributes]


async def _broken(*_: object) -> Any:
    raise RuntimeError("the model fails")


async def _lost(*_: object) -> Any:
    raise MemoryError


@pytest.mark.parametrize("run", [_broken, _lost])
async def test_failed_inference_is_an_error(open_client: OpenClient, receiver: Receiver, run: Any) -> None:
    async with open_client(run=run) as client:
        assert (await client.post("/predict", content=png(0))).status_code == 500
    server = receiver.one("POST /predict")
    assert server.failed
    assert server.attributes["http.response.status_code"] == 500
    assert server.attributes["error.type"] == server.attributes["vit.problem_code"] == "inference_failed"
    assert receiver.one("inference").failed
    assert receiver.one("batch").failed


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [(b"no image", 415, "unsupported_image_format"), (png(0)[:60], 422, "undecodable_image"), (b"", 400, "malformed_request")],
)
async def test_bad_image_is_no_server_error(
    open_client: OpenClient, receiver: Receiver, body: bytes, status: int, code: str
) -> None:
    async with open_client() as client:
        assert (await client.post("/predict", content=body)).status_code == status
    server = receiver.one("POST /predict")
    assert not server.failed
    assert "error.type" not in server.attributes
    assert (server.attributes["http.response.status_code"], server.attributes["vit.problem_code"]) == (status, code)
    steps = below(receiver.spans, server)
    assert [(span.name, span.failed, span.attributes) for span in steps] == (
        [("decode", True, {"error.type": code})] if body else []
    )


async def test_unexpected_error_is_traced(open_client: OpenClient, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_client() as client:
        service = client.app.state.vit_serve.service  # type: ignore[attr-defined]
        monkeypatch.setattr(service, "accept", None)
        assert (await client.post("/predict", content=png(0))).status_code == 500
    server = receiver.one("POST /predict")
    assert (server.failed, server.attributes["error.type"]) == (True, "internal_error")


async def test_deadline_in_the_queue_is_traced(open_client: OpenClient, receiver: Receiver) -> None:
    held = Held()
    async with open_client(run=held) as client:
        first = asyncio.create_task(client.post("/predict", content=png(0)))
        await held.begun.wait()
        late = await client.post("/predict", content=png(1), headers={"X-Request-Timeout-Ms": "300"})
        held.gate.set()
        await first
    assert late.status_code == 504
    (server,) = (span for span in servers(receiver) if span.failed)
    assert server.attributes["error.type"] == "deadline_exceeded"
    queue = below(receiver.spans, server)[-1]
    assert (queue.name, queue.failed, queue.attributes) == ("queue", True, {"error.type": "deadline_exceeded"})
    assert len(receiver.named("inference")) == 1


async def test_inference_outlives_its_request(open_client: OpenClient, receiver: Receiver) -> None:
    held = Held()
    async with open_client(run=held) as client:
        late = await client.post("/predict", content=png(0), headers={"X-Request-Timeout-Ms": "300"})
        assert late.status_code == 504
        held.gate.set()
    server, inference = receiver.one("POST /predict"), receiver.one("inference")
    assert (server.failed, inference.parent_id) == (True, server.span_id)
    assert inference.end >= server.end
    assert inference.links == {receiver.one("batch").span_id}


async def test_client_that_leaves_is_no_error(open_client: OpenClient, receiver: Receiver) -> None:
    held = Held()
    messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    messages.put_nowait({"type": "http.request", "body": png(1), "more_body": False})
    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": [], "scheme": "http"}

    async def send(message: Any) -> None:
        raise AssertionError(message)

    async with open_client(run=held) as client:
        first = asyncio.create_task(client.post("/predict", content=png(0)))
        await held.begun.wait()
        app: Any = client.app  # type: ignore[attr-defined]
        left = asyncio.create_task(app(scope, messages.get, send))
        await until_queued(client, 1)
        messages.put_nowait({"type": "http.disconnect"})
        await left
        held.gate.set()
        await first
    (server,) = (span for span in servers(receiver) if "http.response.status_code" not in span.attributes)
    assert (server.failed, server.attributes["error.type"]) == (False, "client_disconnected")
    queue = below(receiver.spans, server)[-1]
    assert (queue.name, queue.failed, queue.attributes) == ("queue", False, {"error.type": "cancelled"})


async def test_traceparent_is_honoured(open_client: OpenClient, receiver: Receiver) -> None:
    async with open_client() as client:
        await client.post("/predict", content=png(0), headers={**traceparent(), "tracestate": "vendor=1"})
    server = receiver.one("POST /predict")
    assert (server.trace_id, server.parent_id, server.trace_state) == (TRACE, CALLER, "vendor=1")
    assert {(span.trace_id, span.trace_state) for span in below(receiver.spans, server)} == {(TRACE, "vendor=1")}


async def test_lines_of_tracestate_are_joined(open_client: OpenClient, receiver: Receiver) -> None:
    headers = [*traceparent().items(), ("tracestate", "a=1"), ("tracestate", "b=2")]
    async with open_client() as client:
        await client.get("/model", headers=headers)
    assert receiver.one("GET /model").trace_state == "a=1,b=2"


async def test_two_traceparents_are_none(open_client: OpenClient, receiver: Receiver) -> None:
    headers = [("traceparent", f"00-{TRACE}-{CALLER}-01"), ("traceparent", f"00-{TRACE}-{CALLER[::-1]}-01")]
    async with open_client() as client:
        await client.get("/model", headers=headers)
    assert receiver.one("GET /model").parent_id == ""


@pytest.mark.parametrize("bad", ["", "00-zz-1-01", f"00-{'0' * 32}-{CALLER}-01", "x" * 5000])
async def test_bad_traceparent_begins_a_trace(open_client: OpenClient, receiver: Receiver, bad: str) -> None:
    async with open_client() as client:
        assert (await client.get("/model", headers={"traceparent": bad})).status_code == 200
    server = receiver.one("GET /model")
    assert (server.parent_id, server.trace_id != TRACE) == ("", True)


async def test_propagators_are_honoured(open_client: OpenClient, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry import propagate
    from opentelemetry.propagators.composite import CompositePropagator

    monkeypatch.setattr(propagate, "_HTTP_TEXT_FORMAT", CompositePropagator([]))  # as OTEL_PROPAGATORS=none
    async with open_client() as client:
        await client.get("/model", headers=traceparent())
    assert receiver.one("GET /model").parent_id == ""


@pytest.mark.parametrize(
    ("sampler", "flags", "recorded"),
    [
        ("", "00", False),
        ("", "01", True),
        ("always_on", "00", True),
        ("always_off", "01", False),
        ("parentbased_always_off", "01", True),
        ("parentbased_always_off", None, False),
        ("traceidratio", "01", False),
    ],
)
async def test_sampler_decides(
    open_client: OpenClient,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    sampler: str,
    flags: str | None,
    recorded: bool,
) -> None:
    if sampler:
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
        monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
    async with open_client() as client:
        await client.post("/predict", content=png(0), headers=traceparent(flags) if flags else {})
    assert len(receiver.spans) == (6 if recorded else 0)


async def test_probes_and_metrics_are_not_traced(open_client: OpenClient, receiver: Receiver) -> None:
    async with open_client() as client:
        for path in ("/health/live", "/health/ready", "/metrics", "/v2/health/ready", "/ping"):
            assert (await client.get(path)).status_code == 200
        await client.head("/health/live")
        await client.get("/model")
    assert [span.name for span in receiver.spans] == ["GET /model"]


async def test_unmatched_and_odd_requests(open_client: OpenClient, receiver: Receiver) -> None:
    async with open_client() as client:
        await client.get("/nowhere/" + "x" * 2000)
        await client.request("BREW", "/model", headers={"Host": "user:hidden@pots.example:99"})
        await client.get("/model", headers={"Host": "[broken"})
    unmatched, odd, hostless = receiver.spans
    assert (unmatched.name, unmatched.attributes["http.response.status_code"]) == ("GET", 404)
    assert "http.route" not in unmatched.attributes
    assert len(str(unmatched.attributes["url.path"])) < 500
    assert odd.attributes["http.request.method"] == "_OTHER"
    assert (odd.attributes["server.address"], odd.attributes["server.port"]) == ("pots.example", 99)
    assert "server.address" not in hostless.attributes
    assert b"hidden" not in b"".join(receiver.bodies)


async def test_spans_hold_nothing_of_clients(open_client: OpenClient, receiver: Receiver) -> None:
    image = png(0)
    headers = {
        "X-API-Key": "secret-key-of-a-client",
        "Cookie": "secret-cookie",
        "User-Agent": "secret-agent",
        "baggage": "user=secret-name",
        "X-Request-ID": "secret-id",
    }
    async with open_client(api_keys="secret-key-of-a-client", rate_limit_per_key="100/second") as client:
        assert (await client.post("/predict?top_k=3", content=image, headers=headers)).status_code == 200
        await client.post("/predict?top_k=secret-value", content=image, headers=headers)
    sent = b"".join(receiver.bodies)
    assert b"/predict" in sent
    assert b"secret" not in sent
    assert b"top_k" not in sent
    assert b"class " not in sent  # labels
    assert image[:16] not in sent


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "vit-serve"),
        ({"OTEL_SERVICE_NAME": "birds"}, "birds"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=cats,zone=b"}, "cats"),
        ({"OTEL_SERVICE_NAME": "birds", "OTEL_RESOURCE_ATTRIBUTES": "service.name=cats"}, "birds"),
    ],
)
async def test_resource_is_named(
    open_client: OpenClient, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], name: str
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    async with open_client() as client:
        await client.post("/predict", content=png(0))
    resources = [span.resource for span in receiver.spans]
    assert {resource["service.name"] for resource in resources} == {name}
    assert {resource.get("zone") for resource in resources} == {"b" if "zone" in str(variables) else None}


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, Any]]]:
    """Return the lines that structlog wrote so far."""
    caplog.set_level("INFO")
    return lambda: [record.msg for record in caplog.records if isinstance(record.msg, dict)]


Log = Callable[[], list[dict[str, Any]]]


async def test_log_has_the_ids_of_the_spans(
    open_client: OpenClient, receiver: Receiver, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_client() as client:
        await asyncio.gather(*(client.post("/predict", content=png(seed)) for seed in range(3)))
        monkeypatch.setattr(client.app.state.vit_serve.service, "accept", None)  # type: ignore[attr-defined]
        await client.post("/predict", content=png(0))
    lines = [line for line in log() if line["event"] in ("request", "unexpected error")]
    assert len(lines) == 5
    assert all(int(line["trace_flags"], 16) & 1 for line in lines)
    exported = {(span.trace_id, span.span_id) for span in servers(receiver)}
    assert {(line["trace_id"], line["span_id"]) for line in lines} == exported
    assert len(exported) == 4


async def test_log_of_an_unsampled_request(open_client: OpenClient, receiver: Receiver, log: Log) -> None:
    async with open_client() as client:
        await client.get("/model", headers=traceparent("00"))
        await client.get("/model")
    first, second = (line for line in log() if line["event"] == "request")
    assert (first["trace_id"], first["trace_flags"]) == (TRACE, "00")
    assert (second["trace_id"] == TRACE, int(second["trace_flags"], 16) & 1) == (False, 1)


async def test_untraced_log_has_no_ids(open_client: OpenClient, log: Log) -> None:
    async with open_client() as client:
        await client.get("/model", headers=traceparent())
        assert client.app.state.vit_serve.tracer is None  # type: ignore[attr-defined]
    (line,) = (line for line in log() if line["event"] == "request")
    assert not {"trace_id", "span_id", "trace_flags"} & line.keys()


def test_code_outside_requests_records_nothing() -> None:
    assert image_trace() is NOT_RECORDED
