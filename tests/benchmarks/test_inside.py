"""Rates of threads: each is warm before it is measured, all at once, and the threads stay."""

import threading
import time

from benchmarks.inside import rate_case


def test_threads_are_warm_and_stay() -> None:
    calls: list[int] = []

    def one() -> int:
        calls.append(threading.get_ident())
        time.sleep(0.002)
        return 3

    measure = rate_case(one, threads=2, slice_s=0.02)
    assert measure() > 0
    assert measure() > 0
    assert len(set(calls)) == 2


def test_threads_run_at_once() -> None:
    """Even when one is done before another has begun."""
    running = threading.Barrier(3)

    def one() -> int:
        running.wait(timeout=30)  # fails unless three threads are in here together
        return 1

    measure = rate_case(one, threads=3, slice_s=0.0)
    assert measure() > 0
