"""EngineModel: the module that engines run, from raw pixels to logits and features; one of our own models, or a library's."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Self, TypeVar

import torch
from torch import Tensor, nn

from model.checkpoints.checkpoint import Checkpoint
from model.config import ViTConfig
from model.features import compute_features, feature_sizes
from model.library.library_model import LibraryModel
from model.preprocessing import Preprocessing
from model.vit import VisionTransformer

_TOKENS_PER_BATCH = 256
"""Tokens per batch on one core: larger GEMMs gain no throughput (benchmarks/README.md) and only add latency."""

_LIBRARY_BATCH = 4
"""Images per batch on one core of a library's model."""


Model = TypeVar("Model", bound=nn.Module)


class EngineModel(nn.Module, ABC):
    """Raw pixels (B, 3, H, W) uint8 -> logits and, behind them, features (B, K + F) float32, in the dtype of the weights."""

    features: Mapping[str, int]
    """Names of the features with their sizes, in their order; empty if there are none."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return next(self.parameters()).dtype

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """K, the count of logits; 0 for an encoder without a classifier."""

    @property
    def output_dim(self) -> int:
        """K + F, the numbers that the model gives for an image."""
        return self.num_classes + sum(self.features.values())

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """All that the output depends on beside the weights."""

    @property
    @abstractmethod
    def cpu_batch_size(self) -> int:
        """Images in a batch on a CPU by default."""

    @abstractmethod
    def reference(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return an output to compare an engine with (B, K + F), and the sizes that differences are relative to (K + F)."""


class PixelModel(EngineModel):
    """The Vision Transformer on raw pixels.

    Normalisation is folded into a copy of the patch embedding, so no normalised image is ever made: uint8 pixels need only a
    cast, which is exact in every dtype, bfloat16 included.

    All other weights share the memory of `model`, which stays as it is: a conversion to another dtype or device allocates new
    memory for this module alone.
    """

    def __init__(self, model: VisionTransformer, preprocessing: Preprocessing, *, with_features: bool = False) -> None:
        super().__init__()
        self.features = feature_sizes(model.config) if with_features or not model.config.num_classes else {}
        self.vit = _sharing_weights(model)
        if model.config.attention_pool and not self.features:
            self.vit.attn_pool = None  # its weights would take memory for nothing
        folded = model.patch_embed.fold_normalization(preprocessing.scale, preprocessing.mean, preprocessing.std)
        if preprocessing.bgr:
            folded.proj.weight = nn.Parameter(folded.proj.weight.detach().flip(1))
        self.vit.patch_embed = folded
        self.eval().requires_grad_(False)

    @property
    def config(self) -> ViTConfig:
        return self.vit.config

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.config.num_channels, self.config.image_size, self.config.image_size)

    @property
    def num_classes(self) -> int:
        return self.config.num_classes

    @property
    def fingerprint(self) -> str:
        return f"{self.config} {list(self.features)}"

    @property
    def cpu_batch_size(self) -> int:
        return math.ceil(_TOKENS_PER_BATCH / self.config.num_tokens)

    def forward(self, pixels: Tensor) -> Tensor:
        return self._output(self.vit.forward_features(pixels.to(self.dtype)))

    def _output(self, tokens: Tensor) -> Tensor:
        pooled = self.vit.fc_norm(self.vit.pool(tokens))
        logits = [self.vit.classify(pooled, tokens)] if self.num_classes else []
        features = [compute_features(self.vit, tokens, pooled)] if self.features else []
        return torch.cat((*logits, *features), dim=1).float()

    def reference(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return an output to compare an engine with, and the sizes that differences are relative to.

        The size of a feature is the largest number of its kind, and that of a logit the largest logit. But the logits of a
        few classes can all be near 0 by chance; then it is the size of the head's output for random features of the same norm.
        """
        tokens = self.vit.forward_features(pixels.to(self.dtype))
        output = self._output(tokens)
        sizes = _largest(output, [width for width in (self.num_classes, *self.features.values()) if width])
        if self.num_classes and isinstance(self.vit.head, nn.Linear):
            features = self.vit.fc_norm(self.vit.pool(tokens)).float()
            size = self.vit.head.weight.float().norm(dim=1).max() * features.square().mean().sqrt()
            sizes[0] = torch.maximum(sizes[0], size)
        return output, torch.cat(sizes)


class LibraryPixelModel(EngineModel):
    """A library's model on raw pixels, with its features if they are asked for.

    Its first layer may pad, and zero is not black, so normalisation is a step of its own, in float32 whatever the dtype.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, model: LibraryModel, preprocessing: Preprocessing, *, with_features: bool = False) -> None:
        super().__init__()
        self.features = model.features if with_features else {}
        self.config = model.config
        self.model = _sharing_weights(model)
        if with_features:
            self.model.give_features()
        self.preprocessing = preprocessing
        std = torch.tensor(preprocessing.std, dtype=torch.float64).view(1, 3, 1, 1)
        mean = torch.tensor(preprocessing.mean, dtype=torch.float64).view(1, 3, 1, 1)
        self.register_buffer("scale", (preprocessing.scale / std).float())
        self.register_buffer("offset", (mean / std).float())
        self.eval().requires_grad_(False)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.config.num_channels, self.config.image_size, self.config.image_size)

    @property
    def num_classes(self) -> int:
        return self.config.num_classes

    @property
    def fingerprint(self) -> str:
        return f"{self.config} {self.preprocessing.bgr} {list(self.features)}"

    @property
    def cpu_batch_size(self) -> int:
        return _LIBRARY_BATCH

    def forward(self, pixels: Tensor) -> Tensor:
        channels = pixels.flip(1) if self.preprocessing.bgr else pixels
        images = channels.float() * self.scale - self.offset
        output: Tensor = self.model(images.to(self.dtype))
        return output.float()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert all but the two buffers, which only move."""
        exact = (self.scale, self.offset)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        self.scale, self.offset = (value.to(self.scale.device) for value in exact)
        return self

    def reference(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        output: Tensor = self(pixels)
        return output, torch.cat(_largest(output, [self.num_classes, *self.features.values()]))


def engine_model(checkpoint: Checkpoint, *, with_features: bool = False) -> EngineModel:
    """Return the module that runs a checkpoint on raw pixels."""
    if isinstance(checkpoint.model, LibraryModel):
        return LibraryPixelModel(checkpoint.model, checkpoint.preprocessing, with_features=with_features)
    return PixelModel(checkpoint.model, checkpoint.preprocessing, with_features=with_features)


def _largest(output: Tensor, widths: list[int]) -> list[Tensor]:
    """Return for each part of an output, (B, width), its largest number, once for each of its columns."""
    return [part.abs().max().expand(part.shape[1]) for part in torch.split(output, widths, dim=1)]


def _sharing_weights(model: Model) -> Model:
    """Copy the modules, with new parameters over the same memory."""
    shared = {id(parameter): nn.Parameter(parameter.detach(), requires_grad=False) for parameter in model.parameters()}
    return copy.deepcopy(model, shared)


def parse_dtype(name: str) -> torch.dtype:
    """Return torch's `float32`, `bfloat16` or `float16`."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype
