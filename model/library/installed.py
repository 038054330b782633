"""Libraries that may be asked to run a model: which of them is allowed, is installed, and can be imported."""

import importlib
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from model.checkpoints.files import CheckpointError
from model.library.library_model import Library

LibraryChoice = Literal["auto", "none", "transformers", "timm"]
"""Libraries that may run a model which is not of the project's own architecture; `auto`: whichever is installed."""

OWN_MODELS = "ViT, DeiT, DINOv2, SigLIP, CLIP, BEiT"

_INSTALL = {
    "transformers": "pip install 'vit-serve[transformers]'",
    "timm": "pip install 'vit-serve[timm]', with torchvision from the index that torch is from",
}


def require(library: Library, choice: LibraryChoice, model: str, file: Path) -> None:
    """Refuse a model whose library may not run it, or is not there.

    Args:
        library: the library that has the model.
        choice: the libraries that may be asked.
        model: name of the model, for the message.
        file: file that names it.

    Raises:
        CheckpointError: the message says what to install or to set.
    """
    what = f"{file}: {model} is not one of vit-serve's own models ({OWN_MODELS}); {library} can run it"
    if choice not in ("auto", library):
        raise CheckpointError(f"{what}, but {choice} was chosen: choose auto or {library}", "library")
    if find_spec(library) is None:
        raise CheckpointError(f"{what}: {_INSTALL[library]}")


def import_from(library: Library, name: str | None = None) -> Any:
    """Import a library, or a class of it.

    Raises:
        CheckpointError: it cannot be imported; most often torchvision is one for another torch.
    """
    try:
        module = importlib.import_module(library)
        return module if name is None else getattr(module, name)
    except (ImportError, RuntimeError, AttributeError) as error:
        raise CheckpointError(_why_not(library, name, error), "library") from error


def installed_version(package: str) -> str:
    """Return the version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "of an unknown version"


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _why_not(library: Library, name: str | None, error: Exception) -> str:
    if find_spec("torchvision") is not None:
        try:
            importlib.import_module("torchvision")
        except (ImportError, RuntimeError) as cause:
            return (
                f"torchvision {installed_version('torchvision')} does not load with torch {torch.__version__} "
                f"({first_line(cause)}): install torchvision from the index that torch is from"
            )
    if library == "timm" and find_spec("torchvision") is None:
        return "timm needs torchvision, which is not installed: install it from the index that torch is from"
    what = library if name is None else f"{name} of {library}"
    return f"{what} {installed_version(library)} cannot be imported: {first_line(error)}"
