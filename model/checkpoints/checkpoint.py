"""Checkpoints: a directory, a file or a hub id -> (model, Preprocessing, labels), strict about names and shapes.

Only JSON and tensors are read: nothing in a checkpoint is ever run. The model is a VisionTransformer, or a library's.
"""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor, nn

from model.checkpoints.blueprint import Blueprint, config_errors, input_size
from model.checkpoints.description import OWN, Description
from model.checkpoints.files import LABELS, SAFETENSORS, CheckpointError, find_weights, read_json, readable
from model.checkpoints.hugging_face.directory import read_hugging_face
from model.checkpoints.hugging_face.families import DINOV2
from model.checkpoints.hugging_face.key_maps import dinov2_key_map
from model.checkpoints.labels import check_labels, name_classes
from model.checkpoints.location import Location, OnStep, locate
from model.checkpoints.tensors.key_map import KeyMap, build, has_module, read_state
from model.checkpoints.tensors.regular_file import exists
from model.checkpoints.tensors.renaming import how_to_serve, rename_tensors
from model.checkpoints.tensors.weights_file import WeightsFile, open_weights
from model.checkpoints.timm.models import read_timm_directory, read_timm_file
from model.checkpoints.torchvision import read_torchvision_file
from model.config import Resampling, ViTConfig
from model.features import feature_sizes
from model.head import HeadActivation, head_activation
from model.library.installed import LibraryChoice
from model.library.library_model import LibraryConfig, LibraryModel, load_library_model
from model.library.select import read_library_directory, read_library_file
from model.preprocessing import Preprocessing, to_hugging_face
from model.vit import VisionTransformer, resample_position_embedding

__all__ = ["Checkpoint", "CheckpointError", "load_backbone", "load_checkpoint", "save_checkpoint"]

_log = logging.getLogger(__name__)

_QUICKLY_BUILT = 64
"""Blocks."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A trained Vision Transformer, or a library's model, with all that is needed to classify an image."""

    name: str
    architecture: str
    model: VisionTransformer | LibraryModel
    """Model in evaluation mode, float32, on the CPU; takes normalised images."""
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    """Labels in class order."""
    labels_source: str = "none"
    """`config.json`, `labels.txt`, the library's own list of classes, or `none` if they are numbers."""
    activation: HeadActivation = "softmax"
    """Function from logits to probabilities."""

    @property
    def parameters(self) -> int:
        """Numbers that were trained."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def features(self) -> Mapping[str, int]:
        """Features that the model can give, by name, with their sizes; the first is the usual one."""
        return self.model.features if isinstance(self.model, LibraryModel) else feature_sizes(self.model.config)

    @property
    def why_no_features(self) -> str:
        """Reason if there are none."""
        return self.model.why_no_features if isinstance(self.model, LibraryModel) else ""

    @property
    def served_by(self) -> str:
        """`vit-serve`, or the library that runs the model, with its version."""
        return self.model.config.served_by if isinstance(self.model, LibraryModel) else OWN

    def describe(self) -> Description:
        """Return all but the weights, for processes that never load them."""
        config = self.model.config
        return Description(
            name=self.name,
            architecture=self.architecture,
            labels=self.labels,
            labels_source=self.labels_source,
            activation=self.activation,
            preprocessing=self.preprocessing,
            parameters=self.parameters,
            served_by=self.served_by,
            num_channels=config.num_channels,
            image_size=config.image_size,
            patch_size=None if isinstance(config, LibraryConfig) else config.patch_size,
            num_classes=config.num_classes,
            output_dim=config.output_dim,
            features=dict(self.features),
            why_no_features=self.why_no_features,
        )


def load_checkpoint(
    model: str | Path | Location,
    architecture: str | None = None,
    image_size: int | None = None,
    on_step: OnStep = lambda step: None,
    activation: HeadActivation | Literal["auto"] = "auto",
    library: LibraryChoice = "auto",
) -> Checkpoint:
    """Load a model of Hugging Face, timm or torchvision.

    Args:
        model: a directory with a config.json of Hugging Face's or timm's, the id of one on a hub (`owner/name@revision`), or
            a bare state dict (`.safetensors`, `.pth`). Or where `locate` has found one of these.
        architecture: of a bare state dict: `timm/<name>` or `torchvision/<name>`, and `.<weights>` if it is published ones.
        image_size: side of the images, in pixels, if it shall be another than the checkpoint's; the position embedding is
            then interpolated as the checkpoint's library does.
        on_step: told what is done next, each of which can take long.
        activation: what makes probabilities of logits; `auto` follows transformers' pipeline.
        library: the libraries that may run a model of another architecture than the service's own.

    Raises:
        CheckpointError: a file that is missing or broken, an architecture that is not supported, a tensor that is missing,
            unknown or of another shape than the configuration asks for.
    """
    location = model if isinstance(model, Location) else locate(model, architecture, on_step)
    on_step("reading the configuration")
    blueprint = _blueprint(location, architecture, library)
    if len(blueprint.labels) != blueprint.config.num_classes:
        count, file = len(blueprint.labels), blueprint.weights.parent / LABELS  # those of a configuration always fit
        raise CheckpointError(f"{file}: {count} labels do not fit {blueprint.config.num_classes} classes")
    with config_errors(Path(location.named)):
        check_labels(blueprint.labels)
    if not blueprint.config.num_classes:
        activation = "none"
    elif activation == "auto":
        with config_errors(Path(location.named), "activation"):
            activation = head_activation(blueprint.problem_type, blueprint.config.num_classes)
    on_step("reading the weights")
    preprocessing = blueprint.preprocessing if image_size is None else blueprint.preprocessing.at_size(image_size)
    built = _build(blueprint, input_size(preprocessing), may_resize=image_size is not None or blueprint.interpolates)
    name = os.fsencode(blueprint.name).decode(errors="replace")  # that of a directory can be any bytes
    labels, source = blueprint.labels, blueprint.labels_source
    return Checkpoint(name, blueprint.architecture, built, preprocessing, labels, source, activation)


def _build(blueprint: Blueprint, image_size: int, *, may_resize: bool) -> VisionTransformer | LibraryModel:
    """Read the weights, and make the model for images of this size, in pixels."""
    config = blueprint.config
    if isinstance(config, LibraryConfig):
        return _build_in_library(blueprint, config, image_size)
    weights = rename_tensors(open_weights(blueprint.weights), blueprint.key_map)
    if weights.note is not None:
        _log.warning("%s: %s", weights.path, weights.note)
    if config.pooling != "map" and has_module(weights, blueprint.key_map, "attn_pool"):
        config = replace(config, attention_pool=True)
    state = _read_state(weights, blueprint.key_map, config)
    if image_size != config.image_size:
        if not may_resize:
            raise CheckpointError(
                f"the preprocessing of {blueprint.name} makes images of {image_size} pixels, but the model takes "
                f"{config.image_size}: choose {config.image_size} or {image_size}",
                "image_size",
            )
        with config_errors(blueprint.weights):
            config = _resize(state, config, image_size, blueprint.resampling)
    return build(config, state)


def _build_in_library(blueprint: Blueprint, config: LibraryConfig, image_size: int) -> LibraryModel:
    if image_size != config.image_size:
        raise CheckpointError(
            f"{blueprint.architecture} is run by {config.served_by}, at the {config.image_size} pixels of its preprocessing "
            f"alone, not at {image_size}: leave it out",
            "image_size",
        )
    return load_library_model(config, open_weights(blueprint.weights))


def load_backbone(directory: Path, num_classes: int, image_size: int) -> VisionTransformer:
    """Load a DINOv2 encoder without its head, as a start for training: a new head, the position embedding made to fit.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    raw = read_json(directory / "config.json")
    prefixes = {"Dinov2Model": "", "Dinov2ForImageClassification": "dinov2."}
    architecture = str((raw.get("architectures") or [None])[0])
    if architecture not in prefixes:
        raise CheckpointError(f"{directory}: training starts from {' or '.join(prefixes)}, not from {architecture}")
    prefix = prefixes[architecture]
    with config_errors(directory / "config.json"):
        config = DINOV2.config(raw, num_classes)
    key_map = dinov2_key_map(prefix, swiglu=config.swiglu)
    state = _read_state(rename_tensors(open_weights(find_weights(directory)), key_map), key_map, config, headless=True)
    model = VisionTransformer(_resize(state, config, image_size, "antialias"))
    head = nn.Linear(config.head_dim, num_classes)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    model.load_state_dict(state | {f"head.{name}": value for name, value in head.state_dict().items()})
    return model


def save_checkpoint(
    directory: Path, model: VisionTransformer, preprocessing: Preprocessing, labels: tuple[str, ...], dtype: torch.dtype
) -> None:
    """Write a `Dinov2ForImageClassification` directory that `load_checkpoint` and transformers read."""
    config = model.config
    key_map = dinov2_key_map("dinov2.", swiglu=config.swiglu)
    tensors: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        sources = key_map.sources(key)
        for name, part in zip(sources, value.chunk(len(sources)), strict=True):
            tensors[name] = part.to("cpu", dtype).contiguous()
    tensors["dinov2.embeddings.mask_token"] = torch.zeros(1, config.embed_dim, dtype=dtype)
    directory.mkdir(parents=True, exist_ok=True)
    # written as any file is, and so readable for whom the umask allows it: safetensors' own save_file lets only the owner
    (directory / SAFETENSORS).write_bytes(save(tensors, metadata={"format": "pt"}))
    _write_json(directory / "config.json", _hugging_face_config(config, labels, str(dtype).removeprefix("torch.")))
    _write_json(directory / "preprocessor_config.json", to_hugging_face(preprocessing))


def _blueprint(location: Location, architecture: str | None, library: LibraryChoice) -> Blueprint:
    """Tell from what is there which library wrote it."""
    if not location.path.is_dir():
        return _file(location.path, architecture, library)
    blueprint = _directory(location.path, library)
    return blueprint if location.hub_name is None else replace(blueprint, name=location.hub_name)


def _directory(path: Path, library: LibraryChoice) -> Blueprint:
    raw = read_json(path / "config.json")
    if (blueprint := read_library_directory(path, raw, library)) is not None:
        return name_classes(blueprint, path)
    timm = "architecture" in raw
    return name_classes(read_timm_directory(path) if timm else read_hugging_face(path), path)


def _file(path: Path, architecture: str | None, library: LibraryChoice) -> Blueprint:
    match (architecture or "").split("/", maxsplit=1):
        case ["timm", name]:
            return name_classes(read_library_file(path, name, library) or read_timm_file(path, name), path.parent)
        case ["torchvision", name]:
            return name_classes(read_torchvision_file(path, name), path.parent)
        case [name] if name:
            raise CheckpointError(f"{name!r} must begin with timm/ or torchvision/, the library that has it", "architecture")
    with readable(path):
        if exists(path.parent / "config.json"):
            raise CheckpointError(
                f"{path} stands beside a config.json, which says what it is of: name the folder, {path.parent}"
            )
    advice, field = how_to_serve(open_weights(path))
    raise CheckpointError(f"{path} is a bare state dict: {advice}", field)


def _read_state(weights: WeightsFile, key_map: KeyMap, config: ViTConfig, *, headless: bool = False) -> dict[str, Tensor]:
    """Call `read_state`, which builds the model to know all names and shapes: seconds, for blocks that may be missing."""
    last = key_map.sources(f"blocks.{config.depth - 1}.norm1.weight")[0]
    if config.depth > _QUICKLY_BUILT and last not in weights.shapes:
        raise CheckpointError(f"{weights.path} has no {last}, but the configuration asks for {config.depth} blocks")
    return read_state(weights, key_map, config, headless=headless)


def _resize(state: dict[str, Tensor], config: ViTConfig, image_size: int, resampling: Resampling) -> ViTConfig:
    """Make the position embedding in `state` fit another image size; returns the configuration that fits it.

    Raises:
        ValueError: it cannot be interpolated.
    """
    resized = replace(config, image_size=image_size)
    if config.relative_positions:
        raise ValueError(f"its relative positions are for images of {config.image_size} pixels, and are not interpolated")
    if config.pos_embed_coverage == "none":  # rotary positions are computed for any size
        return resized
    state["pos_embed"] = resample_position_embedding(
        state["pos_embed"], resized.grid_size, num_prefix=config.num_pos_embed_prefix_tokens, resampling=resampling
    )
    return resized


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _hugging_face_config(config: ViTConfig, labels: tuple[str, ...], dtype: str) -> dict[str, Any]:
    mlp_ratio = config.mlp_dim / config.embed_dim * (1.5 if config.swiglu else 1.0)  # transformers cuts a gated MLP by a third
    return {
        "architectures": ["Dinov2ForImageClassification"],
        "model_type": "dinov2",
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "mlp_ratio": int(mlp_ratio) if mlp_ratio.is_integer() else mlp_ratio,
        "hidden_act": "gelu",
        "layer_norm_eps": config.layer_norm_eps,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": config.num_channels,
        "qkv_bias": config.qkv_bias,
        "layerscale_value": 1.0,
        "use_swiglu_ffn": config.swiglu,
        "use_mask_token": True,
        "torch_dtype": dtype,
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }
