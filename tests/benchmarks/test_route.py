"""The CPU time of a request, measured with two of them."""

import logging
import re

import pytest

from benchmarks import route


def test_requests_are_answered_and_timed(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = root.handlers, root.level
    try:
        route.main(["--rounds", "1", "--requests", "2", "--log-level", "warning"])
    finally:
        root.handlers, root.level = before
    assert re.fullmatch(r"least \d+\.\d{3} ms, median \d+\.\d{3} ms of CPU a request\n", capsys.readouterr().out)
