"""Question: what is asked of the process that explains, beside the pixels."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

Method = Literal["relevance", "rollout"]
METHODS: tuple[Method, ...] = get_args(Method)

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""


@dataclass(frozen=True, slots=True)
class Overlay:
    """A picture to draw over a photograph."""

    size: tuple[int, int]
    """(width, height) of the photograph."""
    box: Box
    """Part of it that the patches cover."""
    opacity: float
    """Of the colours, between 0 and 1."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question about an image."""

    method: Method
    class_index: int | None
    """Class to explain; None for the one with the largest logit, and for encoders."""
    overlay: Overlay | None

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Self:
        """Read the fields of `as_fields`."""
        overlay = fields["overlay"]
        return cls(fields["method"], fields["class_index"], None if overlay is None else Overlay(**overlay))

    def as_fields(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them."""
        return asdict(self)
