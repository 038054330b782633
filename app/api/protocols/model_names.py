"""Names of models in protocols whose paths name them, and the one version that each has there."""

from app.errors import ModelNotFound
from app.serving.classifier import Classifier
from app.serving.registry import Registry
from app.serving.served_model import path_name

VERSION = "1"
"""The one version of a model, whichever was loaded last."""


def served_name(classifier: Classifier) -> str:
    """Return the name of a model as paths have it."""
    return path_name(classifier.model.name)


def served_names(models: Registry) -> tuple[str, ...]:
    """Return the names and aliases of all models, the default first."""
    return tuple(name for model in models.models for name in model.names)


def check_version(name: str, version: str | None) -> None:
    """Raise if a version is another than the one that is served; 0 asks for the latest.

    Raises:
        ModelNotFound: the model has no such version.
    """
    if version not in (None, "0", VERSION):
        raise ModelNotFound(f"Model {name[:128]!r} has no version {version[:32]!r}; it has version {VERSION}.")
