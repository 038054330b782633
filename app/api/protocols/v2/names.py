"""Names in the protocol: each of a model's own, and the same with `-pixels` behind it, whose input is pixels."""

from app.api.protocols.model_names import served_names
from app.serving.registry import Registry

_PIXELS = "-pixels"


def all_names(models: Registry) -> tuple[str, ...]:
    """Return all names, each followed by the one whose input is pixels."""
    return tuple(dict.fromkeys(each for name in served_names(models) for each in (name, f"{name}{_PIXELS}")))


def parse_name(models: Registry, name: str) -> tuple[str, bool]:
    """Return the model's own name, and whether the input of this name is pixels."""
    if models.has(name) or not name.endswith(_PIXELS):
        return name, False
    return name.removesuffix(_PIXELS), True
