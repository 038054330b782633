"""View of a measurement in a terminal."""

import io
import time
from array import array

import pytest
from rich.console import Console

from app.bench.load import Exchange
from app.bench.record import Level, Record, summarize
from app.bench.terminal import TerminalView, remarks


def test_answers_may_come_before_the_first_look() -> None:
    now = time.perf_counter()
    record = Record(now - 1, now + 1000)
    record.add(Exchange(now - 0.5, now, "200"))
    record.add(Exchange(now - 0.5, now, "503"))
    screen = io.StringIO()
    view = TerminalView(Console(file=screen, force_terminal=True, width=100))
    with view.shown():
        view.look(Level(clients=2), record)
        view.look(Level(clients=2), record)
    assert "2 clients: 1000 s left; 1 failed" in screen.getvalue()
    assert "now" not in screen.getvalue()  # no throughput of an instant


@pytest.mark.parametrize(("count", "remarked"), [(0, False), (1, True), (99, True), (100, False)])
def test_few_answers_are_remarked(count: int, remarked: bool) -> None:
    record = Record(10, 20)
    record.latencies_s = array("d", [0.5] * count)
    said = list(remarks([summarize(Level(clients=2), record, 1.0)]))
    assert any(f"2 clients: only {count} answers were measured" in line for line in said) == remarked
