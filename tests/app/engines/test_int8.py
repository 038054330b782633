"""int8: accuracy, size of the cached model, and independence of the images in a batch."""

from pathlib import Path

import numpy as np
import openvino
import pytest
import torch

from app.engines.conversion import openvino_engine
from app.engines.hardware import has_vnni
from app.engines.openvino import OpenVinoEngine, OpenVinoOptions
from app.engines.pixel_model import PixelModel
from app.engines.select import EngineOptions, choose_engine
from app.errors import StartError
from app.pixels import Logits, Pixels
from model.checkpoints.checkpoint import Checkpoint
from model.config import ViTConfig
from model.vit import VisionTransformer
from tests.support.models import TINY_DINOV2, TINY_LABELS, TINY_PREPROCESSING, tiny_model

pytestmark = pytest.mark.skipif(not has_vnni(), reason="int8 is for CPUs with VNNI")

IMAGES: list[Pixels] = list(np.random.default_rng(0).integers(0, 256, (4, 3, 28, 28), dtype=np.uint8))


def pixel_model(**options: object) -> PixelModel:
    """Return a tiny model; its widths cover a whole group, part of a group, and a group and a part."""
    fields = {name: getattr(TINY_DINOV2, name) for name in ViTConfig.__dataclass_fields__}
    model = VisionTransformer(ViTConfig(**{**fields, **options}))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return PixelModel(model, TINY_PREPROCESSING)


def engine_of(cache: Path, model: PixelModel, dtype: str = "int8") -> OpenVinoEngine:
    return openvino_engine(model, OpenVinoOptions(dtype, 4, 2), cache)


def expected_logits(model: PixelModel) -> Logits:
    logits: Logits = model(torch.from_numpy(np.stack(IMAGES))).numpy()
    return logits


@pytest.mark.parametrize(
    "options",
    [
        {"embed_dim": 64, "mlp_dim": 256},
        {"embed_dim": 32},
        {"embed_dim": 80, "mlp_dim": 320},
        {"embed_dim": 64, "mlp_dim": 128, "swiglu": True, "activation": "silu"},
    ],
    ids=str,
)
def test_int8_logits_are_near_float32(tmp_path: Path, options: dict[str, object]) -> None:
    expected = expected_logits(pixel_model(**options))
    logits = engine_of(tmp_path, pixel_model(**options)).run(IMAGES, use_all_cores=False)
    difference = np.abs(logits - expected).max() / np.abs(expected).max()
    assert 1e-3 < difference < 0.05


def test_logits_are_independent_of_the_batch(tmp_path: Path) -> None:
    engine = engine_of(tmp_path, pixel_model(embed_dim=64, mlp_dim=256))
    dark = [image // 16 for image in IMAGES[1:]]  # a scale shared with these would be wrong
    for use_all_cores in (True, False):
        single = engine.run(IMAGES[:1], use_all_cores=use_all_cores)
        np.testing.assert_allclose(engine.run([IMAGES[0], *dark], use_all_cores=False)[:1], single, rtol=0, atol=1e-4)


def test_int8_weights_are_smaller_on_disk(tmp_path: Path) -> None:
    options: dict[str, object] = {"embed_dim": 128, "mlp_dim": 512}
    sizes: dict[Path, int] = {}
    for dtype in ("float32", "int8"):
        engine_of(tmp_path, pixel_model(**options), dtype)
        (new,) = set(tmp_path.glob("*/*.bin")) - set(sizes)
        sizes[new] = new.stat().st_size
    float32, int8 = sizes.values()
    assert int8 < 0.4 * float32  # patch embedding, norms and biases stay float32


def test_cached_int8_gives_same_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, object] = {"embed_dim": 64, "mlp_dim": 256}
    first = engine_of(tmp_path, pixel_model(**options)).run(IMAGES, use_all_cores=False)
    monkeypatch.setattr(openvino, "convert_model", lambda _: pytest.fail("converted again"))
    np.testing.assert_array_equal(engine_of(tmp_path, pixel_model(**options)).run(IMAGES, use_all_cores=False), first)


def test_zero_weights_stay_zero(tmp_path: Path) -> None:
    model = pixel_model()
    model.vit.get_parameter("head.weight")[0] = 0
    logits = engine_of(tmp_path, model).run(IMAGES, use_all_cores=True)
    np.testing.assert_allclose(logits[:, 0], float(model.vit.get_parameter("head.bias")[0]), rtol=0, atol=1e-5)


def test_int8_selects_openvino(tmp_path: Path) -> None:
    engine = choose_engine(tiny_checkpoint(), options(tmp_path))
    assert (engine.name, engine.device, engine.dtype) == ("openvino", "cpu", "int8")


def test_int8_has_no_fallback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: object) -> None:
        raise RuntimeError("Check failed")

    monkeypatch.setattr(openvino, "convert_model", fails)
    with pytest.raises(StartError, match="OpenVINO cannot run this model"):
        choose_engine(tiny_checkpoint(), options(tmp_path))


def tiny_checkpoint() -> Checkpoint:
    return Checkpoint("tiny", "Dinov2ForImageClassification", tiny_model(), TINY_PREPROCESSING, TINY_LABELS)


def options(cache: Path) -> EngineOptions:
    return EngineOptions("auto", "cpu", "int8", compile="auto", max_batch_size=4, threads=2, cache=cache)
