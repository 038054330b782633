"""The modules that replace those of the model on a GPU compute the same; here on a CPU, where a GPU's would be too slow."""

import copy
from dataclasses import replace

import pytest
import torch

from app.engines.cuda_modules import GemmPatchEmbed, replace_modules
from model.config import TINY, Activation, ViTConfig
from model.patch_embedding import PatchEmbed
from model.vit import VisionTransformer
from tests.support.models import TINY_DINOV2

_TOLERANCE = 1e-5


def random_model(config: ViTConfig) -> VisionTransformer:
    model = VisionTransformer(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "quick_gelu", "silu"])
def test_replaced_modules_give_the_same_logits(activation: Activation) -> None:
    model = random_model(replace(TINY, activation=activation))
    images = torch.rand(3, 3, model.config.image_size, model.config.image_size)
    replaced = copy.deepcopy(model)
    replace_modules(replaced)
    expected = model(images)
    # a CPU's epilogue has the exact GELU, so the tanh approximation differs as it does from the exact one on a GPU
    tolerance = 2e-3 if activation == "gelu_tanh" else _TOLERANCE
    torch.testing.assert_close(replaced(images), expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def test_swiglu_is_left_as_it_is() -> None:
    model = random_model(replace(TINY_DINOV2, swiglu=True))
    block = model.blocks[0]
    before = block.mlp
    replace_modules(model)
    assert block.mlp is before


@pytest.mark.parametrize(("patch_size", "height", "width"), [(14, 84, 84), (16, 64, 32), (16, 70, 47), (7, 21, 21)])
def test_patch_embedding_by_gemm(patch_size: int, height: int, width: int) -> None:
    embed = PatchEmbed(3, patch_size, 24).requires_grad_(False)
    images = torch.rand(2, 3, height, width)
    torch.testing.assert_close(GemmPatchEmbed(embed)(images), embed(images), rtol=0, atol=_TOLERANCE)


def test_rows_of_the_gemm_are_aligned() -> None:
    for patch_size in (7, 14, 16):
        assert GemmPatchEmbed(PatchEmbed(3, patch_size, 8)).weight.shape[1] % 8 == 0
