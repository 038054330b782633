"""Pace of peers, on a clock moved by hand."""

from app.http.limits import HttpLimits
from app.http.pace import ReadingPace, SendingPace

LIMITS = HttpLimits(body_grace_s=10, min_body_rate=100, max_answer_stall_s=30)


def test_body_has_a_grace_time() -> None:
    pace = SendingPace(LIMITS, since=5)
    assert not pace.is_body_too_slow(15)
    assert pace.is_body_too_slow(15.1)


def test_body_at_the_minimum_rate_is_fast_enough() -> None:
    pace = SendingPace(LIMITS, since=0)
    pace.body_bytes = 1000
    assert not pace.is_body_too_slow(20)
    assert pace.is_body_too_slow(20.1)


def test_restart_forgets_the_last_body() -> None:
    pace = SendingPace(LIMITS, since=0, body_bytes=10_000)
    pace.restart(100)
    assert (pace.waited_s(103), pace.body_bytes) == (3, 0)


def test_reader_without_progress_is_too_slow() -> None:
    pace = ReadingPace(LIMITS)
    assert not pace.is_too_slow(0, written=10_000, unsent=10_000)
    assert not pace.is_too_slow(29, written=10_000, unsent=10_000)
    assert pace.is_too_slow(30, written=10_000, unsent=10_000)


def test_reader_with_progress_is_measured_anew() -> None:
    pace = ReadingPace(LIMITS)
    assert not pace.is_too_slow(0, written=10_000, unsent=9_000)
    assert not pace.is_too_slow(30, written=10_000, unsent=6_000)  # 3,000 bytes in 30 s
    assert pace.is_too_slow(60, written=10_000, unsent=5_000)


def test_reader_of_everything_is_never_too_slow() -> None:
    pace = ReadingPace(LIMITS)
    assert not pace.is_too_slow(0, written=10_000, unsent=10_000)
    assert not pace.is_too_slow(20, written=10_000, unsent=0)
    assert not pace.is_too_slow(40, written=20_000, unsent=10_000)
