"""Slots, reserved bytes, and the measured Retry-After."""

import time
from contextlib import ExitStack

import pytest

from app.errors import QueueFull
from app.serving.admission import Admission


def test_full_admission_refuses() -> None:
    admission = Admission(max_images=2)
    with admission.slot(), admission.slot():
        with pytest.raises(QueueFull) as refused, admission.slot():
            pytest.fail("there is no third slot")
        assert refused.value.retry_after_s == 1.0  # nothing was measured yet
        with pytest.raises(QueueFull):
            admission.check_room()
    assert admission.images == 0
    admission.check_room()


def test_slot_is_freed_after_an_error() -> None:
    admission = Admission(max_images=1)
    with pytest.raises(KeyError), admission.slot():
        raise KeyError
    assert admission.images == 0


def test_retry_after_is_the_measured_drain_time() -> None:
    admission = Admission(max_images=10)
    began = time.perf_counter()
    with ExitStack() as others:
        for _ in range(6):
            others.enter_context(admission.slot())
        first = time.perf_counter()
        with admission.slot(), admission.slot(), admission.slot(), admission.slot():
            time.sleep(0.02)
        freed = time.perf_counter()
        for _ in range(100):
            admission.check_room()  # asking frees nothing
        for _ in range(4):
            others.enter_context(admission.slot())
        with pytest.raises(QueueFull) as refused, admission.slot():
            pytest.fail("there is no slot")
    # ten in flight, and four freed since the service is busy
    assert 10 / 4 * (freed - first) <= refused.value.retry_after_s <= 10 / 4 * (time.perf_counter() - began)


def test_bytes_are_bounded_over_all_requests() -> None:
    admission = Admission(max_images=1, max_bytes=100)
    with admission.reserve_bytes() as first:
        first(60)
        with admission.reserve_bytes() as second:
            second(40)
            with pytest.raises(QueueFull):
                first(1)
        assert admission.bytes == 60
        first(40)
    assert admission.bytes == 0
