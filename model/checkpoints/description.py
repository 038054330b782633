"""Description of a checkpoint: all that is known of it beside its weights, as data that can be kept. Needs no torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from model.head import HeadActivation
from model.preprocessing import Preprocessing

OWN = "vit-serve"
"""`served_by` of a model that no library runs."""


@dataclass(frozen=True, slots=True)
class Description:
    """Name, labels, sizes and preprocessing of a checkpoint, and the meaning of its outputs."""

    name: str
    architecture: str
    labels: tuple[str, ...]
    """Labels in class order."""
    labels_source: str
    """`config.json`, `labels.txt`, the library's own list of classes, or `none` if they are numbers."""
    activation: HeadActivation
    preprocessing: Preprocessing
    parameters: int
    """Numbers that were trained."""
    served_by: str
    """`vit-serve`, or the library that runs the model, with its version."""
    num_channels: int
    image_size: int
    """Side of the square input, in pixels."""
    patch_size: int | None
    """Side of a patch, in pixels; None if a library runs the model."""
    num_classes: int
    output_dim: int
    """Logits, or features of an encoder."""
    features: Mapping[str, int]
    """Features that the model can give, by name, with their sizes; the first is the usual one."""
    why_no_features: str
    """Reason if there are none."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the input."""
        return (self.num_channels, self.image_size, self.image_size)

    @property
    def is_own(self) -> bool:
        """True for a Vision Transformer of the project's own."""
        return self.served_by == OWN

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)

    @classmethod
    def of_json(cls, fields: Mapping[str, Any]) -> Self:
        """Return the description that `as_json` gave.

        Raises:
            KeyError, TypeError, ValueError: the fields are others.
        """
        preprocessing = {name: _tuple(value) for name, value in fields["preprocessing"].items()}
        own = {"labels": tuple(fields["labels"]), "preprocessing": Preprocessing(**preprocessing)}
        return cls(**{**fields, **own})


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
