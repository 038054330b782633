import json
import logging
from collections.abc import Iterator
from typing import Literal

import pytest
import structlog

from app.process.logs import configure_logging


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    yield
    configure_logging("info", "json")


def test_json_log_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    with structlog.contextvars.bound_contextvars(request_id="abc"):
        structlog.get_logger("a").info("first\nstill first", status=200)
        logging.getLogger("b").warning("second")
        logging.getLogger("b").debug("never")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["event"], line["level"], line["request_id"]) for line in lines] == [
        ("first\nstill first", "info", "abc"),
        ("second", "warning", "abc"),
    ]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_traceback_shows_no_local_variables(capsys: pytest.CaptureFixture[str], log_format: Literal["text", "json"]) -> None:
    configure_logging("info", log_format)
    image_bytes = "a private image"[::-1]
    try:
        raise ValueError
    except ValueError:
        structlog.get_logger("a").exception("unexpected error")
    written = capsys.readouterr().err
    assert "Traceback" in written
    assert image_bytes not in written


def test_lost_collector_is_logged_seldom(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    for attempt in range(5):
        logging.getLogger("opentelemetry.sdk._shared_internal").warning("no room for span %d", attempt)
        logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter").error("attempt %d failed", attempt)
    events = [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]
    assert events == ["no room for span 0", "attempt 0 failed"]
