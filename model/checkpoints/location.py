"""Location of a checkpoint: from what a user names to the directory or file that holds it. Needs no torch."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model.checkpoints.files import CheckpointError, readable
from model.checkpoints.folder import refuse_other_folders
from model.checkpoints.hub import download, is_hub_id
from model.checkpoints.tensors.file_kind import SUFFIXES
from model.checkpoints.tensors.regular_file import exists

Step = Literal["reading the configuration", "downloading the model", "reading the weights"]
OnStep = Callable[[Step], None]


@dataclass(frozen=True, slots=True)
class Location:
    """Place of a checkpoint on this machine."""

    named: str
    """Path or hub id, as it was given."""
    path: Path
    """Directory of a model, or a bare state dict."""
    hub_name: str | None = None
    """Name by its hub id, where it has one."""


def locate(model: str | Path, architecture: str | None = None, on_step: OnStep = lambda step: None) -> Location:
    """Find a checkpoint; download it if it is named by a hub id, and not there yet.

    Args:
        model: a directory, a file or a hub id.
        architecture: that of a bare state dict, which no directory may be given.
        on_step: told what is done next.

    Raises:
        CheckpointError: there is none, or a folder is of another kind.
    """
    on_step("reading the configuration")
    path = Path(model)
    with readable(path):
        found = exists(path)
    if found and not path.is_dir():
        return Location(str(model), path)
    if not found and (not is_hub_id(str(model)) or path.suffix.lower() in SUFFIXES or path.parent.is_dir()):
        if path.is_symlink():
            raise CheckpointError(f"{model} is a link to {os.readlink(path)}, which does not exist")
        hub_id = f"hf-hub:{model}" if is_hub_id(f"hf-hub:{model}") else "owner/name"
        raise CheckpointError(f"{model} does not exist; give a directory, a file or a hub id ({hub_id})")
    if found:
        refuse_other_folders(path)
    if architecture is not None:
        raise CheckpointError(f"it is for bare state dicts, and {model} has a configuration: leave it out", "architecture")
    if found:
        return Location(str(model), path)
    on_step("downloading the model")
    directory = download(str(model))
    refuse_other_folders(directory)
    return Location(str(model), directory, str(model).removeprefix("hf-hub:"))
