"""Folder that is not a model's: what it is instead, and which one to name."""

import re
from pathlib import Path

from model.checkpoints.files import PICKLE, PICKLED_SHARDS, SAFETENSORS, SHARDS, CheckpointError, readable
from model.checkpoints.tensors.file_kind import foreign_format

_WEIGHTS = frozenset({SAFETENSORS, SHARDS, PICKLE, PICKLED_SHARDS})
_BARE = frozenset({".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar"})
_BESIDE = frozenset({"training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scheduler.bin", "scaler.pt"})
"""Files that trainers write beside a model."""


def refuse_other_folders(directory: Path) -> None:
    """Say what a folder is that has no model, as far as its files tell; leave to others what may be one.

    Raises:
        CheckpointError: it is another folder, or its weights are of a format that is not read here.
    """
    with readable(directory):
        names = _names(directory)
    if "adapter_config.json" in names:  # also beside a whole model, which it changes
        raise CheckpointError(
            f"{directory} holds an adapter (adapter_config.json, as LoRA has it), which changes another model: "
            "merge the two with the library that wrote it, and name the folder of the merged model"
        )
    if names & _WEIGHTS:
        if "config.json" not in names:
            raise CheckpointError(f"{directory / 'config.json'} is missing{_advice_for_bare(directory, names)}")
        return
    reason = _training_folder(directory, names) or _foreign(names)
    if reason is not None:
        raise CheckpointError(f"{directory} {reason}")
    if "config.json" not in names:
        raise CheckpointError(f"{directory / 'config.json'} is missing{_advice_for_bare(directory, names)}")


def _names(directory: Path) -> set[str]:
    try:
        return {path.name for path in directory.iterdir()}
    except OSError as error:
        raise CheckpointError(f"{directory} cannot be read: {error.strerror}") from error


def _training_folder(directory: Path, names: set[str]) -> str | None:
    """Say what training left there, if it is no model yet."""
    if "zero_to_fp32.py" in names or any(re.fullmatch(r"global_step\d+", name) for name in names):
        return "holds DeepSpeed's parts of a model: put them together by the zero_to_fp32.py that is in it, and name the result"
    if any(name.startswith("pytorch_model_fsdp") or name.endswith(".distcp") for name in names):
        return "holds FSDP's parts of a model: put them together by accelerate merge-weights, and name the result"
    checkpoints = sorted((name for name in names if re.fullmatch(r"checkpoint-\d+", name)), key=lambda name: int(name[11:]))
    if checkpoints:
        return f"holds no model, but checkpoints of training: name one of them, such as {directory / checkpoints[-1]}"
    return None


def _foreign(names: set[str]) -> str | None:
    for name in sorted(names):
        format_ = foreign_format(Path(name))
        if format_ is not None:
            return f"has no {SAFETENSORS}, but {name}, a file of {format_}: save the model by torch, as safetensors"
    return None


def _advice_for_bare(directory: Path, names: set[str]) -> str:
    bare = sorted(name for name in names - _BESIDE if Path(name).suffix.lower() in _BARE)
    if not bare:
        return ""
    return f": if {bare[0]} is a state dict of timm or torchvision, name {directory / bare[0]} itself, and its architecture"
