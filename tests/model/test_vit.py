from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import TINY, Pooling, Resampling, ViTConfig
from model.vit import VisionTransformer, resample_position_embedding


def model_of(config: ViTConfig) -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def images_of(config: ViTConfig, batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(1))


def test_shapes() -> None:
    model, images = model_of(TINY), images_of(TINY)
    tokens = model.forward_features(images)
    assert tokens.shape == (3, TINY.num_tokens, TINY.embed_dim) == (3, 17, 32)
    assert model.forward_head(tokens).shape == model(images).shape == (3, TINY.num_classes)


def test_parameters_have_timm_names() -> None:
    names = set(VisionTransformer(replace(TINY, layer_scale=True, depth=1)).state_dict())
    block = {f"blocks.0.{module}.{kind}" for module in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
             for kind in ("weight", "bias")}  # fmt: skip
    outside = {f"{module}.{kind}" for module in ("patch_embed.proj", "norm", "head") for kind in ("weight", "bias")}
    assert names == {"cls_token", "pos_embed", "blocks.0.ls1.gamma", "blocks.0.ls2.gamma"} | block | outside


def test_logits_match_formulas_in_float64() -> None:
    config = replace(TINY, layer_scale=True, layer_norm_eps=1e-3)
    model, images = model_of(config).double(), images_of(config).double()
    weights = model.state_dict()

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + config.layer_norm_eps)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def attention(x: Tensor, name: str) -> Tensor:
        q, k, v = linear(x, f"{name}.qkv").split(config.embed_dim, dim=-1)
        width = config.embed_dim // config.num_heads
        heads = []
        for head in range(config.num_heads):
            part = slice(head * width, (head + 1) * width)
            scores = q[..., part] @ k[..., part].mT / width**0.5
            heads.append(torch.softmax(scores, -1) @ v[..., part])
        return linear(torch.cat(heads, -1), f"{name}.proj")

    def mlp(x: Tensor, name: str) -> Tensor:
        hidden = linear(x, f"{name}.fc1")
        return linear(hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)), f"{name}.fc2")

    patches = F.unfold(images, config.patch_size, stride=config.patch_size).mT
    x = patches @ weights["patch_embed.proj.weight"].flatten(1).T + weights["patch_embed.proj.bias"]
    x = torch.cat((weights["cls_token"].expand(len(x), -1, -1), x), dim=1) + weights["pos_embed"]
    for block in (f"blocks.{number}" for number in range(config.depth)):
        x = x + weights[f"{block}.ls1.gamma"] * attention(norm(x, f"{block}.norm1"), f"{block}.attn")
        x = x + weights[f"{block}.ls2.gamma"] * mlp(norm(x, f"{block}.norm2"), f"{block}.mlp")
    expected = linear(norm(x, "norm")[:, 0], "head")

    with torch.no_grad():
        torch.testing.assert_close(model(images), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("pooling", ["token", "avg", "token+avg"])
def test_pooling_selects_head_input(pooling: Pooling) -> None:
    model = model_of(replace(TINY, pooling=pooling))
    tokens = torch.randn(2, TINY.num_tokens, TINY.embed_dim)
    expected = {
        "token": tokens[:, 0],
        "avg": tokens[:, 1:].mean(1),
        "token+avg": torch.cat((tokens[:, 0], tokens[:, 1:].mean(1)), 1),
    }[pooling]
    torch.testing.assert_close(model.pool(tokens), expected)
    assert model.forward_head(tokens).shape == (2, TINY.num_classes)


def test_head_reads_encoder_output() -> None:
    model = model_of(TINY)
    first, second = images_of(TINY, batch=2)
    with torch.no_grad():
        assert not torch.allclose(model(first[None]), model(second[None]), atol=1e-3)


def test_logits_are_independent_of_the_batch() -> None:
    model, images = model_of(TINY), images_of(TINY, batch=7)
    with torch.no_grad():
        batched, single = model(images), torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(batched, single, rtol=0, atol=1e-5)


def test_flops_match_papers() -> None:
    base = ViTConfig(num_classes=1000)
    assert base.flops == pytest.approx(2 * 17.56e9, rel=0.002)  # multiply-adds of ViT-B/16 at 224 pixels
    swiglu = replace(base, swiglu=True)
    assert swiglu.flops - base.flops == 2 * base.depth * base.num_tokens * base.embed_dim * base.mlp_dim


def test_resampling_to_same_grid_is_identity() -> None:
    pos_embed = torch.randn(1, 1 + 16, 8)
    assert resample_position_embedding(pos_embed, 4) is pos_embed


@pytest.mark.parametrize("resampling", ["bicubic", "antialias"])
def test_resampling_keeps_class_token_and_ramp(resampling: Resampling) -> None:
    ramp = torch.arange(8.0).view(1, 8, 1, 1).expand(1, 8, 8, 2)  # rises downwards
    pos_embed = torch.cat((torch.full((1, 1, 2), 9.0), ramp.reshape(1, 64, 2)), dim=1)

    resampled = resample_position_embedding(pos_embed, 4, resampling=resampling)

    assert resampled.shape == (1, 17, 2)
    assert resampled[0, 0].tolist() == [9.0, 9.0]
    rows = resampled[0, 1:].view(4, 4, 2)
    torch.testing.assert_close(rows[1:3, :, 0], torch.tensor([2.5, 4.5]).view(2, 1).expand(2, 4), rtol=0, atol=0.05)


def test_resampling_refuses_non_square_grid() -> None:
    with pytest.raises(ValueError, match="15 patches"):
        resample_position_embedding(torch.zeros(1, 16, 8), 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "embed_dim 32 is not a multiple of num_heads 5"),
        ({"depth": 0}, "depth must be between 1 and 1000000, not 0"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps must be between 0 and 1, not nan"),
        ({"pooling": "token", "class_token": False}, "pooling 'token' needs a class token"),
        ({"image_size": 4}, "image_size 4 is smaller than patch_size 8"),
    ],
)
def test_contradicting_sizes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)
