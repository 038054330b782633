"""OpenVINO engine: its cache on disk, faults of the cache and of OpenVINO, and conversion of every model option."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch

from app.engines import openvino as module
from app.engines.conversion import _convert, _reference, openvino_engine
from app.engines.hardware import has_bfloat16, has_vnni
from app.engines.kept_model import KeptModel
from app.engines.openvino import OpenVinoEngine, OpenVinoOptions
from app.engines.pixel_model import PixelModel
from app.errors import StartError
from model.config import ViTConfig
from model.vit import VisionTransformer
from tests.support.models import ROOT, TINY_DINOV2, TINY_PREPROCESSING, UNPRIVILEGED, tiny_model

needs_vnni = pytest.mark.skipif(not has_vnni(), reason="int8 is for CPUs with VNNI")
needs_bfloat16 = pytest.mark.skipif(not has_bfloat16(), reason="OpenVINO's bfloat16 is for CPUs with AVX512_BF16")
ROUNDED = [pytest.param("bfloat16", marks=needs_bfloat16), pytest.param("int8", marks=needs_vnni)]
"""Dtypes that change logits."""


def engine_of(cache: Path, model: VisionTransformer | None = None, dtype: str = "float32") -> OpenVinoEngine:
    return openvino_engine(pixel_model(model), OpenVinoOptions(dtype, 4, 2), cache)


def pixel_model(model: VisionTransformer | None = None) -> PixelModel:
    return PixelModel(model or tiny_model(), TINY_PREPROCESSING)


def entries(cache: Path) -> list[Path]:
    return sorted(cache.iterdir())


def first_logit(engine: OpenVinoEngine) -> float:
    return float(engine.run([np.zeros((3, 28, 28), np.uint8)], use_all_cores=True)[0, 0])


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the tiny model."""
    directory = tmp_path_factory.mktemp("cache")
    engine_of(directory)
    return directory


@pytest.fixture
def count_conversions(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    count, convert = [0], openvino.convert_model

    def counted(*arguments: object) -> object:
        count[0] += 1
        return convert(*arguments)

    monkeypatch.setattr(openvino, "convert_model", counted)
    return lambda: count[0]


def test_second_start_uses_the_cache(tmp_path: Path, count_conversions: Callable[[], int]) -> None:
    cache = tmp_path / "below" / "cache"
    first = first_logit(engine_of(cache))
    assert len(entries(cache)) == 1
    assert first_logit(engine_of(cache)) == pytest.approx(first, abs=1e-5)
    assert count_conversions() == 1


def test_other_weights_convert_again(tmp_path: Path, count_conversions: Callable[[], int]) -> None:
    engine_of(tmp_path)
    other = tiny_model()
    with torch.no_grad():
        other.get_parameter("head.bias")[0] += 1e-3  # within the tolerance of the comparison
    engine_of(tmp_path, other)
    assert count_conversions() == 2
    assert len(entries(tmp_path)) == 2


def random_bytes(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))


def not_a_number(path: Path) -> None:
    path.write_bytes(np.full(path.stat().st_size // 4, np.nan, np.float32).tobytes())


def pipe(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("name", "damage"),
    [("model.xml", random_bytes), ("model.bin", not_a_number), ("model.bin", pipe), ("sha256", Path.unlink), (".", pipe)],
)
def test_damaged_cache_costs_one_conversion(
    tmp_path: Path,
    cache: Path,
    count_conversions: Callable[[], int],
    caplog: pytest.LogCaptureFixture,
    name: str,
    damage: Callable[[Path], None],
) -> None:
    shutil.copytree(cache, tmp_path, dirs_exist_ok=True)
    (entry,) = entries(tmp_path)
    damage(entry if name == "." else entry / name)
    for _ in range(2):
        assert first_logit(engine_of(tmp_path)) == pytest.approx(first_logit(engine_of(cache)), abs=1e-5)
        assert count_conversions() == 1
        (warning,) = warnings_in(caplog)
        assert "is unusable, converting again" in warning
        assert "\n" not in warning


@pytest.mark.parametrize("bias", [math.nan, 100])
def test_cache_with_wrong_logits_is_replaced(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture, bias: float
) -> None:
    wrong = tiny_model()
    wrong.get_parameter("head.bias")[:] = bias
    (entry,) = entries(cache)
    converted, reference = _convert(pixel_model(wrong), "float32"), _reference(pixel_model(), threads=2)
    KeptModel(tmp_path / entry.name).write(lambda graph: openvino.save_model(converted, graph), reference, {})
    assert first_logit(engine_of(tmp_path)) == pytest.approx(first_logit(engine_of(cache)), abs=1e-5)
    (warning,) = warnings_in(caplog)
    assert "away from torch's" in warning


@pytest.mark.parametrize("place", ["/dev/null", "x" * 300, "pipe"])
def test_unusable_cache_never_stops_the_start(tmp_path: Path, place: str, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert np.isfinite(first_logit(engine_of(tmp_path / place / "openvino")))
    assert "cannot cache the OpenVINO model; every start will convert it again" in warnings_in(caplog)[-1]


START = """
import resource, sys
from pathlib import Path
import app.engines  # before this file imports openvino, whose telemetry would need a home directory
from app.process.logs import configure_logging
from tests.app.engines.test_openvino import engine_of, first_logit

configure_logging("warning", "json")
if sys.argv[2:]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
print(first_logit(engine_of(Path(sys.argv[1]))))
"""


def start(*arguments: str | Path) -> tuple[float, list[dict[str, str]]]:
    """Return the first logit of an engine in an unprivileged process, and its log."""
    command = [*UNPRIVILEGED, sys.executable, "-c", START, *map(str, arguments)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    return float(ended.stdout), [json.loads(line) for line in ended.stderr.splitlines() if line.startswith("{")]


@pytest.mark.parametrize(
    ("mode", "warnings"),
    [(0o000, ["is unusable", "cannot cache"]), (0o500, ["cannot cache"])],
    ids=["not-entered", "read-only"],
)
def test_cache_permissions_cost_a_conversion(tmp_path: Path, cache: Path, mode: int, warnings: list[str]) -> None:
    directory = tmp_path / "openvino"
    directory.mkdir(mode=mode)
    logit, lines = start(directory)
    assert logit == pytest.approx(first_logit(engine_of(cache)), abs=1e-5)
    for line, warning in zip(lines, warnings, strict=True):
        assert warning in line["event"]
        assert "Permission denied" in line["reason"]


def test_full_disk_costs_one_conversion(tmp_path: Path, cache: Path) -> None:
    logit, (line,) = start(tmp_path, "65536")
    assert logit == pytest.approx(first_logit(engine_of(cache)), abs=1e-5)
    assert "cannot cache" in line["event"]
    assert entries(tmp_path) == []


@pytest.mark.parametrize("dtype", ["float32", *ROUNDED])
def test_wrong_conversion_stops_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    def wrong(_: object) -> openvino.Model:
        other = pixel_model()
        with torch.no_grad():
            other.vit.get_parameter("head.bias")[:] = 100
            images = torch.zeros(2, 3, 28, 28, dtype=torch.uint8)
            return convert(torch.export.export(other, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},)))

    convert = openvino.convert_model
    monkeypatch.setattr(openvino, "convert_model", wrong)
    setting = "VIT_ENGINE" if dtype == "float32" else "VIT_DTYPE"
    with pytest.raises(StartError, match=rf"^{setting}: logits of OpenVINO in {dtype} are .* away from torch's"):
        engine_of(tmp_path, dtype=dtype)


@pytest.mark.parametrize("wrong", ["for batches", "for one image"])
def test_either_wrong_model_stops_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    def compiled(dtype: str, threads: int, model: openvino.Model, streams: int) -> openvino.CompiledModel:
        if wrong == ("for one image" if model.inputs[0].get_partial_shape().is_static else "for batches"):
            output = model.outputs[0].get_node().input_value(0)  # what the node of the result takes
            doubled = openvino.opset13.add(output, output)
            model = openvino.Model([doubled], model.get_parameters())
        return compile_model(dtype, threads, model, streams)

    compile_model = module._compiled
    monkeypatch.setattr(module, "_compiled", compiled)
    with pytest.raises(StartError, match=r"^VIT_ENGINE: logits of OpenVINO in float32 are .* away from torch's"):
        engine_of(tmp_path)


@pytest.mark.parametrize("lone_on_all_cores", [True, False])
def test_only_an_image_alone_has_a_fixed_shape(tmp_path: Path, lone_on_all_cores: bool) -> None:
    options = OpenVinoOptions("float32", 4, 2, lone_on_all_cores=lone_on_all_cores)
    engine = openvino_engine(pixel_model(), options, tmp_path)
    images = [np.full((3, 28, 28), value, np.uint8) for value in (0, 90)]
    fixed = [model.inputs[0].get_partial_shape().is_static for model in (engine._lone, engine._batches)]
    assert fixed == [lone_on_all_cores, False]
    both = engine.run(images, use_all_cores=True)
    alone = np.concatenate([engine.run([image], use_all_cores=True) for image in images])
    np.testing.assert_allclose(alone, both, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", *ROUNDED])
def test_single_logit_near_zero_is_accepted(tmp_path: Path, dtype: str) -> None:
    model = VisionTransformer(replace(TINY_DINOV2, num_classes=1)).eval().requires_grad_(False)
    model.load_state_dict({key: value for key, value in tiny_model().state_dict().items() if "head" not in key}, strict=False)
    pixels = _reference(pixel_model(model), threads=2).pixels
    vit = pixel_model(model).vit
    features = vit.pool(vit.forward_features(torch.from_numpy(pixels).float()))
    away = torch.randn(features.shape[1], generator=torch.Generator().manual_seed(0))
    model.get_parameter("head.weight")[:] = away - features.T @ torch.linalg.lstsq(features.T, away).solution
    model.get_parameter("head.bias")[:] = 0
    reference = _reference(pixel_model(model), threads=2)
    assert abs(reference.output).max() < 1e-3 * reference.sizes
    assert math.isfinite(first_logit(engine_of(tmp_path, model, dtype)))


def test_failed_conversion_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: object) -> None:
        raise RuntimeError("Check failed\nfor reasons of its own")

    monkeypatch.setattr(openvino, "convert_model", fails)
    with pytest.raises(StartError, match=r"^VIT_ENGINE: OpenVINO cannot run this model: Check failed$"):
        engine_of(tmp_path)


def test_failed_inference_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no primitive descriptor")

    monkeypatch.setattr(OpenVinoEngine, "run", fails)
    with pytest.raises(StartError, match=r"^VIT_ENGINE: OpenVINO cannot run this model: no primitive descriptor$"):
        engine_of(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "token", "layer_scale": False},
        {"swiglu": True, "mlp_dim": 64, "activation": "silu"},
        {"reg_tokens": 2, "pos_embed_coverage": "class+patches"},
        {"pooling": "avg", "class_token": False, "fc_norm": True},
        {"pre_norm": True, "activation": "quick_gelu"},
        {"dist_token": True, "head_dist": True, "pooling": "token"},
        {"qkv_bias": False, "activation": "gelu_tanh"},
    ],
    ids=str,
)
def test_every_model_option_converts(tmp_path: Path, options: dict[str, object]) -> None:
    fields = {name: getattr(TINY_DINOV2, name) for name in ViTConfig.__dataclass_fields__}
    model = VisionTransformer(ViTConfig(**{**fields, **options}))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    reference = pixel_model(model)
    images = np.random.default_rng(3).integers(0, 256, (3, 3, 28, 28), dtype=np.uint8)
    expected = reference(torch.from_numpy(images)).numpy()
    engine = openvino_engine(reference, OpenVinoOptions("float32", 4, 2), tmp_path)
    np.testing.assert_allclose(
        engine.run(list(images), use_all_cores=False), expected, rtol=0, atol=1e-4 * np.abs(expected).max()
    )


def test_telemetry_is_off() -> None:
    code = "import app.engines.openvino, openvino, sys; print([m for m in sys.modules if m.startswith('openvino_telemetry.')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
