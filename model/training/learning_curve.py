"""The learning curve of a training, drawn from its history as an SVG picture."""

import json
from pathlib import Path

_WIDTH, _HEIGHT, _MARGIN = 640, 320, 48
_WINDOW = 25
"""Steps that are averaged into one point: a batch of 64 tells little by itself."""


def draw_learning_curve(history: Path, picture: Path) -> None:
    """Read `history.jsonl` and write `picture`: loss and accuracy on the augmented training batches, by step."""
    rows = [json.loads(line) for line in history.read_text(encoding="utf-8").splitlines()]
    steps = max(len(rows), 1)
    losses = _averages([row["loss"] for row in rows])
    highest = max([1.0, *(loss for _, loss in losses)])
    lines = [
        _axes(steps, highest),
        _curve(losses, steps, highest, "#c2410c"),
        _curve(_averages([row["accuracy"] for row in rows]), steps, 1.0, "#0f766e"),
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">'
    background = f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>'
    picture.write_text("\n".join([head, background, *lines, "</svg>"]) + "\n", encoding="utf-8")


def _averages(values: list[float]) -> list[tuple[float, float]]:
    """Points (step, mean of the window that ends there)."""
    windows = [values[start : start + _WINDOW] for start in range(0, len(values), _WINDOW)]
    return [(start * _WINDOW + len(window), sum(window) / len(window)) for start, window in enumerate(windows)]


def _curve(points: list[tuple[float, float]], steps: int, highest: float, colour: str) -> str:
    places = " ".join(f"{_x(step, steps):.1f},{_y(value / highest):.1f}" for step, value in points)
    return f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2"/>'


def _axes(steps: int, highest: float) -> str:
    left, right, bottom, top = _x(0, 1), _x(1, 1), _y(0), _y(1)
    texts = [
        (left, bottom + 18, "middle", "#444", "0"),
        (right, bottom + 18, "middle", "#444", f"{steps} steps"),
        (left - 6, top + 4, "end", "#c2410c", f"{highest:.1f}"),
        (left - 6, bottom + 4, "end", "#444", "0"),
        (right + 6, top + 4, "start", "#0f766e", "100 %"),
        (left, top - 14, "start", "#c2410c", "loss"),
        (right, top - 14, "end", "#0f766e", "accuracy on augmented training pictures"),
    ]
    labels = [f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{fill}">{text}</text>' for x, y, anchor, fill, text in texts]
    frame = f'<path d="M{left} {top}V{bottom}H{right}V{top}" fill="none" stroke="#999"/>'
    return "\n".join([frame, *labels])


def _x(step: float, steps: float) -> float:
    return _MARGIN + (_WIDTH - 2 * _MARGIN) * step / steps


def _y(share: float) -> float:
    return _HEIGHT - _MARGIN - (_HEIGHT - 2 * _MARGIN) * share
