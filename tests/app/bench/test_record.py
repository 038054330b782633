"""Counts at one level of load, and their summary."""

import json

import numpy as np
import pytest

from app.bench.load import Exchange
from app.bench.record import PERCENTILES, Level, LevelResult, Record, percentiles, summarize


def summary(*exchanges: Exchange, since: float = 10, end: float = 20) -> LevelResult:
    record = Record(since, end)
    for exchange in exchanges:
        record.add(exchange)
    return summarize(Level(clients=2), record, 1.0)


def test_requests_count_by_their_due_time() -> None:
    early, inside, late, after = (9.0, 11.0), (12.0, 13.5), (19.0, 29.0), (20.0, 21.0)
    result = summary(*(Exchange(due, ended, "200") for due, ended in (early, inside, late, after)))
    assert list(result.latencies_s) == [1.5, 10.0]  # a slow answer is not lost because it came after the end
    assert result.throughput == 2 / 10  # of `early` and `inside`, which came in the measured time
    assert result.generator_share == 0.1


def test_errors_are_counted_by_kind() -> None:
    problem = json.dumps({"detail": "Wait\x1b[2J a little."}).encode()
    refused = [Exchange(11, 12, "429", refusal=problem), Exchange(11, 12, "429", refusal=b"another")]
    lost = [Exchange(11, 12, name) for name in ("ConnectionResetError", "BrokenPipeError", "TimeoutError", "Odd")]
    result = summary(*refused, *lost, Exchange(11, 12, "204"), Exchange(9, 12, "500"))
    assert result.errors == {"429": 2, "connection lost": 2, "no answer in time": 1, "Odd": 1}
    assert result.examples["429"] == "Wait [2J a little."
    assert (result.failed, len(result.latencies_s)) == (6, 1)


@pytest.mark.parametrize("text", [b"\xff<html>\n", b"[]", b'{"detail"', b"[" * 2000, b"1"])
def test_any_answer_can_be_an_error(text: bytes) -> None:
    (example,) = summary(Exchange(11, 12, "502", refusal=text)).examples.values()
    assert example.isprintable()
    assert 0 < len(example) <= 200


def test_lateness_is_of_the_measured_requests() -> None:
    exchanges = [Exchange(due, 30, "200", lateness_s=lateness_s) for due, lateness_s in ((9, 5.0), (11, 0.5), (12, 0.25))]
    record = Record(10, 20)
    for exchange in exchanges:
        record.add(exchange)
    assert summarize(Level(rate=2), record, 1.0).lateness_p99_s == 0.5
    assert summarize(Level(clients=2), record, 1.0).lateness_p99_s is None


def test_server_timing_is_averaged() -> None:
    first = b"decode_wait;dur=1.5, decode;dur=2.5, queue;dur=1, inference;dur=30, total;dur=35.25"
    fields = (first, b"decode_wait;dur=0.5, decode;dur=3.5, total;dur=e9, x;dur=7", b"")
    result = summary(*(Exchange(11, 12, "200", server_timing=field) for field in fields))
    assert result.timings_ms == {"decode_wait": 1.0, "decode": 3.0, "queue": 0.5, "inference": 15.0, "total": 17.625}


@pytest.mark.parametrize("count", [1, 2, 3, 10, 99, 100, 101, 1000])
def test_percentiles_are_numpys(count: int) -> None:
    values = np.sort(np.random.default_rng(count).exponential(size=count))
    shares = list(PERCENTILES.values())
    assert list(percentiles(values.tolist()).values()) == np.quantile(values, shares, method="inverted_cdf").tolist()


def test_nothing_measured_is_valid_json() -> None:
    facts = json.loads(json.dumps(summary(Exchange(11, 12, "500")).as_json(), allow_nan=False))
    assert facts["latency_s"] == dict.fromkeys(PERCENTILES)
    assert facts["latency_at_percent_s"] == []
    assert (facts["requests"], facts["succeeded"], facts["failed"]) == (1, 0, 1)
