"""Versions of a tiny model that can be told apart: each always answers with a class of its own."""

import shutil
from dataclasses import replace
from pathlib import Path

import torch

from model.checkpoints.checkpoint import save_checkpoint
from model.config import ViTConfig
from model.vit import VisionTransformer
from tests.support.models import TINY_DINOV2, TINY_LABELS, TINY_PREPROCESSING


def write_version(directory: Path, index: int, config: ViTConfig = TINY_DINOV2) -> Path:
    """Write a checkpoint whose answer to every image is the class of this index, in place of the one before."""
    model = VisionTransformer(config).eval().requires_grad_(False)
    image_size = config.image_size
    head = model.get_submodule("head")
    torch.nn.init.zeros_(head.get_parameter("weight"))
    head.get_parameter("bias").copy_(torch.eye(len(TINY_LABELS))[index] * 10)
    preprocessing = replace(TINY_PREPROCESSING, resize=image_size + 4, crop=(image_size, image_size))
    shutil.rmtree(directory, ignore_errors=True)
    save_checkpoint(directory, model, preprocessing, TINY_LABELS, torch.float32)
    return directory
