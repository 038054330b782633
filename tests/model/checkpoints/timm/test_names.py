"""Every name of timm that looks like a ViT's: read with timm's own sizes and tensors, or refused by name."""

from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoints.checkpoint import CheckpointError, load_checkpoint
from model.checkpoints.tensors.renaming import rename_tensors
from model.checkpoints.tensors.weights_file import WeightsFile
from model.checkpoints.timm.models import _config, _key_map
from model.checkpoints.timm.names import SIZES, is_supported, parse
from model.library.timm_models import is_served
from model.vit import VisionTransformer
from tests.support.torchvision_operators import declare_missing_operators

declare_missing_operators()

import timm  # noqa: E402

NAMES = timm.list_models(["*vit*", "deit*", "eva*", "beit*"])
SUPPORTED = [name for name in NAMES if is_supported(name)]
ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "SiLU": "silu"}


def on_meta(name: str) -> Any:
    with torch.device("meta"):
        return timm.create_model(name, num_classes=10)


@pytest.mark.parametrize("name", SUPPORTED)
def test_tensors_and_options_are_timms(name: str) -> None:
    theirs = on_meta(name)
    shapes = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    parsed = parse(name)
    key_map = _key_map(parsed)
    file = rename_tensors(WeightsFile(Path("model.safetensors"), shapes, dict.fromkeys(shapes, torch.empty(0))), key_map)
    config = _config(parsed, file, 10, parsed.image_size, {})
    with torch.device("meta"):
        ours = VisionTransformer(config).state_dict()
    wanted: dict[str, tuple[int, ...]] = {}
    for key, value in ours.items():
        sources = key_map.sources(key)
        wanted |= {source: (value.shape[0] // len(sources), *value.shape[1:]) for source in sources}
    zero = {key for key in wanted if key.endswith(key_map.zeros)}
    assert {key: shape for key, shape in wanted.items() if key not in zero} == file.shapes
    block = theirs.blocks[0]
    assert config.image_size == theirs.patch_embed.img_size[0]
    assert config.num_heads == block.attn.num_heads
    assert config.layer_norm_eps == block.norm1.eps
    assert config.pooling == theirs.global_pool
    assert config.activation == ACTIVATIONS[type(block.mlp.act).__name__]


def test_many_names_and_all_sizes_are_supported() -> None:
    assert len(NAMES) > 290
    assert len(SUPPORTED) >= 166
    assert {parse(name).size for name in SUPPORTED} == set(SIZES)


@pytest.mark.parametrize("name", [*sorted({*NAMES} - {*SUPPORTED} - {*filter(is_served, NAMES)}), "resnet50_clip"])
def test_other_names_are_refused(tmp_path: Path, name: str) -> None:
    torch.save({"head.weight": torch.zeros(2, 2)}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=f"timm architecture '{name}' is not supported; supported are vit_<size>"):
        load_checkpoint(tmp_path / "model.pth", f"timm/{name}")
