"""Conditions for the export of traces, and what is said when they are not exported."""

import subprocess
import sys
from typing import Any

import pytest

from app.errors import StartError
from app.tracing.start import check_propagators, start_tracing
from tests.support.otlp import Receiver

NAMED = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_SERVICE_NAME": "birds", "OTEL_TRACES_SAMPLER": "always_on", "OTEL_PROPAGATORS": "tracecontext"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "", "OTEL_TRACES_EXPORTER": ""},
        {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:9"},
        {**NAMED, "OTEL_TRACES_EXPORTER": "none"},
        {**NAMED, "OTEL_SDK_DISABLED": "true"},
        {**NAMED, "OTEL_SDK_DISABLED": "TRUE", "OTEL_TRACES_EXPORTER": "otlp"},
    ],
)
def test_off_unless_asked_for(variables: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    assert start_tracing(variables) is None
    assert not caplog.records


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "{url}"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "{url}/", "OTEL_SDK_DISABLED": "false"},
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "{url}/v1/traces", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
        {"OTEL_TRACES_EXPORTER": "OTLP", "OTEL_EXPORTER_OTLP_ENDPOINT": "{url}"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "{url}", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
    ],
)
async def test_on_when_asked_for(variables: dict[str, str], receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT")
    given = {name: value.format(url=receiver.url) for name, value in variables.items()}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    tracer = start_tracing(given)
    assert tracer is not None
    tracer.request("GET", {}, {}).end("GET /here", {}, failed=False)
    await tracer.close()
    assert [span.name for span in receiver.spans] == ["GET /here"]
    assert receiver.paths == ["/v1/traces"]


async def test_exporter_without_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    tracer = start_tracing({"OTEL_TRACES_EXPORTER": "otlp"})  # to the port that the specification names
    assert tracer is not None
    await tracer.close()


def reason(caplog: pytest.LogCaptureFixture) -> str:
    (record,) = caplog.records
    line: Any = record.msg
    assert (line["event"], line["level"]) == ("traces are not exported", "warning")
    return str(line["reason"])


@pytest.mark.parametrize(
    ("variables", "begins"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER: must be otlp or none"),
        ({"OTEL_TRACES_EXPORTER": "otlp,console"}, "OTEL_TRACES_EXPORTER: "),
        ({**NAMED, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL: must be http/protobuf"),
        ({**NAMED, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"}, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: "),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT: must be an http"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://[x"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: must be an http"),
    ],
)
def test_unsupported_values_are_warned_of(variables: dict[str, str], begins: str, caplog: pytest.LogCaptureFixture) -> None:
    assert start_tracing(variables) is None
    assert reason(caplog).startswith(begins)


def test_missing_extra_is_warned_of(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "app.tracing.spans", None)  # its import fails as that of a missing package
    assert start_tracing(NAMED) is None
    assert "pip install 'vit-serve[otel]'" in reason(caplog)


@pytest.mark.parametrize(
    ("name", "value"),
    [("OTEL_BSP_MAX_QUEUE_SIZE", "-1"), ("OTEL_BSP_MAX_QUEUE_SIZE", "2")],
)
def test_what_the_sdk_refuses_is_warned_of(
    name: str, value: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert start_tracing(NAMED) is None
    assert reason(caplog)


@pytest.mark.parametrize("value", ["", "none", "tracecontext", "tracecontext, baggage"])
def test_known_propagators_pass(value: str) -> None:
    check_propagators({"OTEL_PROPAGATORS": value})


@pytest.mark.parametrize("value", ["no-such", "tracecontext,no-such"])
def test_missing_propagator_stops_the_start(value: str) -> None:
    with pytest.raises(StartError, match="OTEL_PROPAGATORS: no-such is not installed"):
        check_propagators({"OTEL_PROPAGATORS": value})


NOTHING_IMPORTED = """
import sys
import app.server
from app.main import create_app
from app.settings import read_settings
app = create_app(read_settings())
print([type(each.cls).__name__ for each in app.user_middleware if each.cls.__name__ == "TracedRequests"])
print(sorted(name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))))
"""


@pytest.mark.parametrize("variables", [{}, {**NAMED, "OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}])
def test_nothing_is_imported_when_off(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    ended = subprocess.run([sys.executable, "-c", NOTHING_IMPORTED], capture_output=True, text=True, timeout=120, check=True)
    assert ended.stdout.splitlines() == ["[]", "[]"]
