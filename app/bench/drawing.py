"""Drawings of lines, boxes and text, as SVG or PNG."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

_SCALE = 4
"""Pillow draws lines with hard edges: it draws at this scale, and the picture is reduced to half of it."""

_FONT = "font-family=\"system-ui, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif\""
_ANCHORS = {"start": "l", "middle": "m", "end": "r"}

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """Line through points."""

    points: Sequence[Point]
    colour: str
    width: float = 1.0


@dataclass(frozen=True, slots=True)
class Box:
    """Filled rectangle between two corners."""

    left: float
    top: float
    right: float
    bottom: float
    colour: str


@dataclass(frozen=True, slots=True)
class Text:
    """Line of text, placed by the middle of its height."""

    at: Point
    text: str
    size: float = 12.0
    colour: str = "#333333"
    anchor: Literal["start", "middle", "end"] = "start"


@dataclass(frozen=True, slots=True)
class Drawing:
    """Shapes, the later ones above the earlier ones, on a white ground. Sizes in pixels."""

    width: int
    height: int
    shapes: Sequence[Line | Box | Text]

    def svg(self) -> str:
        """Return the drawing as an SVG document."""
        size = f'width="{self.width}" height="{self.height}" viewBox="0 0 {self.width} {self.height}"'
        ground = f'<rect width="{self.width}" height="{self.height}" fill="#ffffff"/>'
        shapes = "\n".join(map(_svg_shape, self.shapes))
        return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {_FONT}>\n{ground}\n{shapes}\n</svg>\n'

    def png(self) -> bytes:
        """Return the drawing as a PNG of twice its size."""
        image = Image.new("RGB", (self.width * _SCALE, self.height * _SCALE), "#ffffff")
        pen = ImageDraw.Draw(image)
        for shape in self.shapes:
            _draw(pen, shape)
        encoded = io.BytesIO()
        image.resize((self.width * 2, self.height * 2), Image.Resampling.LANCZOS).save(encoded, "PNG", optimize=True)
        return encoded.getvalue()


def _svg_shape(shape: Line | Box | Text) -> str:
    match shape:
        case Line():
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in shape.points)
            stroke = f'stroke="{shape.colour}" stroke-width="{shape.width:g}" stroke-linejoin="round"'
            return f'<polyline points="{points}" fill="none" {stroke}/>'
        case Box():
            width, height = shape.right - shape.left, shape.bottom - shape.top
            place = f'x="{shape.left:.1f}" y="{shape.top:.1f}" width="{width:.1f}" height="{height:.1f}"'
            return f'<rect {place} fill="{shape.colour}"/>'
        case Text():
            x, y = shape.at[0], shape.at[1] + 0.35 * shape.size
            style = f'font-size="{shape.size:g}" fill="{shape.colour}" text-anchor="{shape.anchor}"'
            return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(shape.text)}</text>'


def _draw(pen: ImageDraw.ImageDraw, shape: Line | Box | Text) -> None:
    match shape:
        case Line():
            points = [(x * _SCALE, y * _SCALE) for x, y in shape.points]
            pen.line(points, shape.colour, round(shape.width * _SCALE), joint="curve")
        case Box():
            corners = (shape.left, shape.top, shape.right, shape.bottom)
            pen.rectangle([corner * _SCALE for corner in corners], shape.colour)
        case Text():
            font = ImageFont.load_default(shape.size * _SCALE)
            place = (shape.at[0] * _SCALE, shape.at[1] * _SCALE)
            pen.text(place, shape.text, shape.colour, font, anchor=f"{_ANCHORS[shape.anchor]}m")
