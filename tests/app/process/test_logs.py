import io
import json
import logging
import re
from collections.abc import Iterator
from logging.handlers import BufferingHandler
from typing import Literal

import pytest
import structlog

from app.process.logs import QuickLogger, configure_logging

_TIME = re.compile(r"\d{4}-\d\d-\d\dT[0-9:.]+Z")


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


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_quick_line_is_like_any_other(capsys: pytest.CaptureFixture[str], log_format: Literal["text", "json"]) -> None:
    configure_logging("info", log_format)
    records = list[logging.LogRecord]()

    def count(record: logging.LogRecord) -> bool:
        records.append(record)
        return True

    logging.getLogger("request").addFilter(count)
    with structlog.contextvars.bound_contextvars(request_id="abc"):
        QuickLogger("request").info("request", status=200, total_ms=1.25)
        assert records == []
        structlog.get_logger("request").info("request", status=200, total_ms=1.25)
    logging.getLogger("request").removeFilter(count)
    assert len(records) == 1
    quick, usual = (_TIME.sub("", line) for line in capsys.readouterr().err.splitlines())
    assert quick == usual
    assert "abc" in quick


def test_quick_line_is_a_record_for_other_handlers(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    other = BufferingHandler(10)
    logging.getLogger().addHandler(other)
    QuickLogger("request").info("request", status=200)
    (record,) = other.buffer
    assert (record.name, record.levelname) == ("request", "INFO")
    assert json.loads(capsys.readouterr().err)["status"] == 200


def test_quick_line_below_the_level_is_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("warning", "json")
    QuickLogger("request").info("request", status=200)
    assert capsys.readouterr().err == ""


def test_quick_line_to_a_closed_stream_does_not_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr("sys.stderr", closed)
    configure_logging("info", "json")
    monkeypatch.undo()
    reported = list[logging.LogRecord]()
    monkeypatch.setattr(logging.getLogger().handlers[0], "handleError", reported.append)
    QuickLogger("request").info("request", status=200)
    assert [record.msg for record in reported] == ["request"]
