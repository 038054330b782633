"""Pictures and bars of a measurement."""

import io
from array import array
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from app.bench.axis import LogAxis, nice_ceiling, tick_label
from app.bench.chart import draw, write
from app.bench.record import Level, LevelResult, Record, summarize
from app.bench.terminal import bars

_SVG = "{http://www.w3.org/2000/svg}"


def result(level: Level, *latencies_s: float, failed: int = 0) -> LevelResult:
    record = Record(0, 2)
    record.latencies_s, record.answered = array("d", latencies_s), len(latencies_s)
    record.errors["500"] = failed
    record.examples["500"] = b""
    return summarize(level, record, 0.1)


ONE, EIGHT = result(Level(clients=1), 0.011, 0.012, 0.013), result(Level(rate=50), 0.04, 0.05, 0.2, failed=2)
DEAD = result(Level(clients=8), failed=3)


def test_svg_has_a_curve_for_each_level() -> None:
    picture = ElementTree.fromstring(draw("<title> & more", [ONE, DEAD, EIGHT]).svg())
    texts = [text.text or "" for text in picture.iter(f"{_SVG}text")]
    assert texts[0] == "<title> & more"
    assert {"answers a second", "1 client", "50/s", "8 clients", "10 ms", "1.5"} <= set(texts)
    assert "p50 50.0 ms, p99 200 ms, max 200 ms, 2 of 5 requests failed" in texts
    curves = {line.get("stroke") for line in picture.iter(f"{_SVG}polyline") if line.get("stroke-width") == "2"}
    bar_colours = [box.get("fill") for box in picture.iter(f"{_SVG}rect")][1:4]
    assert curves == {bar_colours[0], bar_colours[2]}  # the level without an answer has none, and the others keep their colours


def test_curves_rise_to_the_right() -> None:
    picture = ElementTree.fromstring(draw("", [EIGHT]).svg())
    (curve,) = [line for line in picture.iter(f"{_SVG}polyline") if line.get("stroke-width") == "2"]
    points = [tuple(map(float, point.split(","))) for point in curve.get("points", "").split()]
    assert points == sorted(points, key=lambda point: (point[0], -point[1]))
    assert points[0][0] < points[-1][0]


def test_png_shows_what_the_svg_does(tmp_path: Path) -> None:
    write(tmp_path / "chart.PNG", "title", [ONE, EIGHT])
    drawing = draw("title", [ONE, EIGHT])
    with Image.open(io.BytesIO((tmp_path / "chart.PNG").read_bytes())) as image:
        assert image.size == (2 * drawing.width, 2 * drawing.height)
        colours = {colour for _, colour in image.convert("RGB").getcolors(2**24) or ()}
        assert image.getpixel((0, 0)) == (255, 255, 255)
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours


@pytest.mark.parametrize("results", [[], [DEAD]])
def test_nothing_measured_can_be_drawn(results: list[LevelResult], tmp_path: Path) -> None:
    write(tmp_path / "chart.svg", "title", results)
    ElementTree.parse(tmp_path / "chart.svg")
    assert draw("title", results).png()
    assert bars(results) == []


def test_bars_stand_above_their_latency() -> None:
    slow = result(Level(clients=8), *[0.012] * 50, 0.9)
    first, second, axis = bars([ONE, slow])
    assert first.startswith(" 1 client ")
    assert second.index("█") < axis.index("|20 ms")
    assert second.rindex("▁") > axis.index("|500 ms")  # one slow request among many is seen
    assert not first[axis.index("|20 ms") :].strip()
    assert all(line.isascii() for line in bars([ONE, slow], ascii_only=True))


@pytest.mark.parametrize("values", [[0.01], [0.0], [1e-9, 50.0], [0.02, 0.02], [1.0, 1000.0], [0.0123, 0.0124]])
def test_axis_has_room_for_all(values: list[float]) -> None:
    axis = LogAxis.around(values)
    places = [axis.place(value) for value in values]
    assert all(0 <= place <= 1 for place in places)
    assert places == sorted(places)
    assert [axis.place(tick) for tick in axis.ticks()][:: len(axis.ticks()) - 1] == pytest.approx([0, 1])
    assert axis.low * 0.999 <= max(values[0], 1e-6)


def test_round_values() -> None:
    assert [nice_ceiling(value) for value in (0.3, 1, 49, 50, 51, 10_001)] == [0.5, 1, 50, 50, 100, 20_000]
    assert [tick_label(value) for value in (0.0005, 0.02, 1, 5)] == ["0.5 ms", "20 ms", "1 s", "5 s"]
