"""LibraryModel: a classifier that is a library's own module, and the configuration that it was built from."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from model.checkpoints.files import CheckpointError
from model.checkpoints.tensors.key_map import read_floats
from model.checkpoints.tensors.weights_file import WeightsFile
from model.library.classifier_input import POOLED, Watch, find_classifier, give_input

_log = logging.getLogger(__name__)

Library = Literal["transformers", "timm"]

MAX_IMAGE_SIZE = 4096
"""Maximum side of an image, in pixels, as of the service's own models."""

_COUNTED = "num_batches_tracked"
"""Counter of BatchNorm's training: without effect on answers, and missing in old files."""

_MAX_DEPTH = 256
_MAX_WINDOW = 64
_MAX_RATIO = 64
_MAX_SIZE = 65_536
"""Maximum of each number of a configuration, several times what any published model has: more would take minutes, or all
memory, before the checkpoint's tensors show the mistake."""

_DEPTHS = ("depths", "layers", "num_block_repeats", "num_encoder_blocks", "num_hidden_layers", "num_layers", "num_stages")


@dataclass(frozen=True, slots=True)
class LibraryConfig:
    """A model that its library builds and runs."""

    library: Library
    version: str
    architecture: str
    arguments: str
    """All that the library is told, in one form."""
    num_classes: int
    image_size: int
    """Side of the square input, in pixels."""
    load: Callable[[WeightsFile], nn.Module] = field(repr=False, compare=False)
    """Function that makes the module with these weights, and refuses those that do not fit."""
    num_channels: int = 3

    @property
    def output_dim(self) -> int:
        """Numbers that the model gives for an image."""
        return self.num_classes

    @property
    def served_by(self) -> str:
        """Name of the library with its version."""
        return f"{self.library} {self.version}"


class LibraryModel(nn.Module):
    """Normalised images (B, 3, H, W) -> logits (B, K), by a library's own module.

    Args:
        config: what it was built from.
        module: the library's module.
    """

    features: Mapping[str, int]
    """Features that it can give behind its logits, by name, with their sizes."""
    why_no_features: str
    """Reason if there are none."""

    def __init__(self, config: LibraryConfig, module: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.module = module
        self.features = {}
        self.why_no_features = "it was not tried"
        self._classifier = ""
        self.eval().requires_grad_(False)  # libraries build in training mode, where BatchNorm mixes the images of a batch

    def forward(self, images: Tensor) -> Tensor:
        output = self.module(images)
        logits: Tensor = output if isinstance(output, Tensor) else output.logits
        return logits

    def find_features(self, images: Tensor) -> Tensor:
        """Run the model, return its logits (B, K), and learn whether its classifier is one layer with features before it."""
        try:
            name = find_classifier(self.module)
        except ValueError as error:
            self.why_no_features = str(error)
            return self(images)
        with Watch(self.module, name) as watch:
            logits: Tensor = self(images)
        try:
            self.features = {POOLED: watch.check(logits)}
            self._classifier, self.why_no_features = name, ""
        except ValueError as error:
            self.why_no_features = str(error)
        return logits

    def give_features(self) -> None:
        """Give features behind the logits from now on, (B, K + F), if there are any."""
        if self.features:
            give_input(self.module, self._classifier)


def load_library_model(config: LibraryConfig, weights: WeightsFile) -> LibraryModel:
    """Build the model with its weights, and try it on one image.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of another shape; or the module does not take such images.
    """
    model = LibraryModel(config, config.load(weights))
    image = torch.zeros(1, config.num_channels, config.image_size, config.image_size)
    try:
        with torch.inference_mode():
            logits = model.find_features(image)
    except Exception as error:  # whatever a library's module raises on a size that it does not take
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{weights.path}: {config.served_by} does not run {config.architecture} on images of {config.image_size} pixels, "
            f"which the preprocessing makes: {reason}"
        ) from error
    if logits.shape != (1, config.num_classes):
        raise CheckpointError(
            f"{weights.path}: {config.architecture} answers {tuple(logits.shape)}, expected {(1, config.num_classes)}"
        )
    if not model.features:
        _log.warning("%s: %s gives no features of images: %s", weights.path, config.architecture, model.why_no_features)
    return model


def check_numbers(values: Mapping[str, Any]) -> None:
    """Refuse numbers of a configuration that no model has.

    Raises:
        ValueError: one of them; the message names its key.
    """
    for key, value in values.items():
        numbers = list(_numbers(value))
        if "window" in key:
            limit = _MAX_WINDOW
        elif key in ("image_size", "img_size"):
            limit = MAX_IMAGE_SIZE
        else:
            limit = _MAX_SIZE
        if any(not -limit <= number <= (limit if isinstance(number, int) else _MAX_RATIO) for number in numbers):
            raise ValueError(f"{key} {str(value)[:80]} is more than any model has")
        if key in _DEPTHS and sum(numbers) > _MAX_DEPTH:
            raise ValueError(f"{key} {str(value)[:80]} is more than any model has; up to {_MAX_DEPTH} layers are supported")


def _numbers(value: Any) -> Iterator[int | float]:
    match value:
        case bool():
            return
        case int() | float():
            yield value
        case list() | tuple():
            for part in value:
                yield from _numbers(part)
        case dict():
            for part in value.values():
                yield from _numbers(part)


def read_tensors(weights: WeightsFile) -> dict[str, Tensor]:
    """Read every tensor: whole numbers as they are, all others in float32.

    Raises:
        CheckpointError: one is quantized, or has values that are not finite.
    """
    tensors = {}
    for key in weights.shapes:
        stored = weights.read(key)
        tensors[key] = stored if stored.dtype == torch.int64 else read_floats(weights, key)
    return tensors


def check_total(weights: WeightsFile, module: nn.Module) -> None:
    """Refuse a configuration that asks for much more numbers than the file has, before memory is taken for them.

    Args:
        weights: the file.
        module: the model on the meta device.

    Raises:
        CheckpointError: they do not fit each other.
    """
    wanted = sum(value.numel() for value in module.state_dict().values())
    found = sum(prod(shape) for shape in weights.shapes.values())
    if wanted > 2 * found + _MAX_SIZE:
        raise CheckpointError(f"{weights.path} has {found} numbers, but the configuration asks for {wanted}")


def refuse_misfits(weights: WeightsFile, missing: list[str], wrong: list[str], unexpected: list[str]) -> None:
    """Refuse weights with any tensor too few, too many, or of another shape: the library would invent or ignore it.

    Raises:
        CheckpointError: the message names up to five of them.
    """
    lacking = [key for key in missing if not key.endswith(_COUNTED)]
    problems = [f"{key} is missing, and the library would invent it" for key in sorted(lacking)]
    problems += [*sorted(wrong), *(f"{key} is not expected" for key in sorted(unexpected))]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(f"{weights.path} does not fit the architecture: {'; '.join(problems[:5])}{more}")


def fill(module: nn.Module, weights: WeightsFile, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Copy tensors into a module that has all of them and no others.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of another shape.
    """
    own = module.state_dict()
    both = own.keys() & tensors.keys()
    wrong = [
        f"{key} has shape {tuple(tensors[key].shape)}, expected {tuple(own[key].shape)}"
        for key in both
        if tensors[key].shape != own[key].shape
    ]
    refuse_misfits(weights, list(own.keys() - both), wrong, list(tensors.keys() - both))
    module.load_state_dict({**own, **tensors}, assign=False)
    return module
