"""Choice of the library that runs a model which is not of the project's own architecture."""

import re
from pathlib import Path
from typing import Any

from model.checkpoints.blueprint import Blueprint
from model.checkpoints.files import CheckpointError
from model.checkpoints.hugging_face.families import ARCHITECTURES, ENCODERS
from model.checkpoints.timm.names import is_supported
from model.library.installed import LibraryChoice
from model.library.timm_models import is_served, read_timm_library_directory, read_timm_library_file
from model.library.transformers_models import PROCESSORS, family_of, read_transformers


def read_library_directory(folder: Path, raw: dict[str, Any], choice: LibraryChoice) -> Blueprint | None:
    """Read the blueprint of a directory whose model a library runs; None if the service's own reader has to look at it.

    Args:
        folder: the directory.
        raw: content of its config.json.
        choice: the libraries that may be asked.

    Raises:
        CheckpointError: the library is not there or not allowed, or does not take the model.
    """
    if "architecture" in raw:
        name = str(raw["architecture"])
        return None if is_supported(name) or not is_served(name) else read_timm_library_directory(folder, raw, choice)
    named = raw.get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and len(named) == 1 else ""
    if architecture in ARCHITECTURES or architecture in ENCODERS:
        return None
    file = folder / "config.json"
    if raw.get("auto_map"):
        raise CheckpointError(f"{file}: its code is on the hub (auto_map); vit-serve runs no code of a checkpoint")
    if family_of(architecture):
        return read_transformers(folder, raw, architecture, choice)
    family = re.sub(r"(Model|Backbone|For\w+)$", "", architecture)
    if family in PROCESSORS:
        raise CheckpointError(
            f"{file}: {architecture} has no classifier of images; serve a fine-tune ({family}ForImageClassification)"
        )
    return None


def read_library_file(path: Path, architecture: str, choice: LibraryChoice) -> Blueprint | None:
    """Read the blueprint of a bare state dict of timm that timm runs; None if the service's own reader has to look at it.

    Raises:
        CheckpointError: timm is not there or not allowed, or does not take the file.
    """
    if is_supported(architecture) or not is_served(architecture):
        return None
    return read_timm_library_file(path, architecture, choice)
