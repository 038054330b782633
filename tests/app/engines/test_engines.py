"""Logits of every engine, also with batches in flight at once, and the choice of an engine."""

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.engines import Engine, hardware
from app.engines.hardware import has_bfloat16, has_vnni
from app.engines.pixel_model import PixelModel
from app.engines.select import EngineOptions, choose_engine
from app.engines.torch_cuda import TorchCudaEngine, padded_sizes
from app.errors import StartError
from app.pixels import Logits, Pixels
from model.checkpoints.checkpoint import Checkpoint
from model.vit import VisionTransformer
from tests.support.models import TINY_LABELS, TINY_PREPROCESSING, tiny_model

needs_vnni = pytest.mark.skipif(not has_vnni(), reason="int8 is for CPUs with VNNI")
needs_bfloat16 = pytest.mark.skipif(not has_bfloat16(), reason="OpenVINO's bfloat16 is for CPUs with AVX512_BF16")

DEFAULTS = EngineOptions("auto", "cpu", "auto", compile="auto", max_batch_size=4, threads=2, cache=Path("/nowhere"))


def engine_of(cache: Path, model: VisionTransformer | None = None, **options: Any) -> Engine:
    checkpoint = Checkpoint("tiny", "Dinov2ForImageClassification", model or tiny_model(), TINY_PREPROCESSING, TINY_LABELS)
    return choose_engine(checkpoint, replace(DEFAULTS, cache=cache, **options))


def random_pixels(count: int, seed: int = 0) -> list[Pixels]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, 3, 28, 28), dtype=np.uint8))


def expected_logits(images: list[Pixels]) -> Logits:
    """Return the plain model's logits for images that are normalised explicitly."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (TINY_PREPROCESSING.mean, TINY_PREPROCESSING.std))
    with torch.no_grad():
        logits: Logits = tiny_model()((torch.from_numpy(np.stack(images)) / 255 - mean) / std).numpy()
    return logits


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # raised by torch at import
@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"engine": "torch"}, "torch"),
        ({"engine": "torch", "threads": 1}, "torch"),
        ({"engine": "openvino"}, "openvino"),
        ({"engine": "openvino", "threads": 1}, "openvino"),
        ({"compile": True}, "torch"),
        ({"max_batch_size": None}, "openvino"),
    ],
)
def test_every_engine_matches_plain_model(cache: Path, options: dict[str, Any], name: str) -> None:
    engine = engine_of(cache, **options)
    assert (engine.name, engine.device, engine.dtype) == (name, "cpu", "float32")
    for count in (1, 3, engine.max_batch_size):
        for use_all_cores in (True, False):
            images = random_pixels(count)
            np.testing.assert_allclose(
                engine.run(images, use_all_cores=use_all_cores), expected_logits(images), rtol=0, atol=1e-4
            )


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize(
    "options",
    [
        {"engine": "torch"},
        {"engine": "torch", "dtype": "bfloat16"},
        {"engine": "openvino"},
        pytest.param({"dtype": "int8"}, marks=needs_vnni),
        pytest.param({"dtype": "bfloat16"}, marks=needs_bfloat16),
        {"compile": True},
        {"compile": True, "dtype": "bfloat16"},
    ],
    ids=str,
)
def test_engine_leaves_checkpoint_unchanged(cache: Path, options: dict[str, Any]) -> None:
    model, images = tiny_model(), torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    weights, logits = copy.deepcopy(model.state_dict()), model(images)
    engine_of(cache, model, **options)
    torch.testing.assert_close(model.state_dict(), weights, rtol=0, atol=0)
    assert torch.equal(model(images), logits)


def test_pixel_model_shares_weights() -> None:
    model = tiny_model()
    memory = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    copied = {
        name
        for name, parameter in PixelModel(model, TINY_PREPROCESSING).vit.named_parameters()
        if parameter.data_ptr() != memory[name]
    }
    assert copied == {"patch_embed.proj.weight", "patch_embed.proj.bias"}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize("options", [{"engine": "torch"}, {"engine": "openvino"}, {"compile": True}])
def test_concurrent_batches_do_not_mix(cache: Path, options: dict[str, Any]) -> None:
    engine = engine_of(cache, **options)
    batches = [random_pixels(1 + seed % 4, seed) for seed in range(24)]
    with ThreadPoolExecutor(engine.max_concurrent_batches) as threads:
        results = list(threads.map(lambda batch: engine.run(batch, use_all_cores=False), batches))
    for batch, logits in zip(batches, results, strict=True):
        np.testing.assert_allclose(logits, expected_logits(batch), rtol=0, atol=1e-4)


@pytest.mark.parametrize("options", [{"engine": "torch", "dtype": "bfloat16"}, {"dtype": "float16"}], ids=str)
def test_half_precision_by_torch(cache: Path, options: dict[str, Any]) -> None:
    engine = engine_of(cache, **options)
    assert (engine.name, engine.dtype) == ("torch", options["dtype"])
    images = random_pixels(3)
    reference = expected_logits(images)
    np.testing.assert_allclose(engine.run(images, use_all_cores=True), reference, rtol=0, atol=0.05 * np.abs(reference).max())


def test_default_batch_size_on_cpu(cache: Path) -> None:
    assert engine_of(cache, engine="torch", max_batch_size=None).max_batch_size == 16  # of 17 tokens each
    assert engine_of(cache, engine="torch", max_batch_size=3).max_batch_size == 3


def test_padded_sizes() -> None:
    assert padded_sizes(1) == (1,)
    assert padded_sizes(8) == (1, 2, 4, 8)
    assert padded_sizes(12) == (1, 2, 4, 8, 12)


def test_batch_runs_at_next_prepared_size(cache: Path) -> None:
    engine = engine_of(cache, compile=True, max_batch_size=3)
    assert isinstance(engine, TorchCudaEngine)
    assert engine.batch_sizes == (1, 2, 3)
    sizes: list[int] = []
    forward = engine._forward
    engine._forward = lambda pixels: (sizes.append(len(pixels)), forward(pixels))[1]  # type: ignore[func-returns-value,method-assign]
    for count in (1, 2, 3):
        engine.run(random_pixels(count), use_all_cores=False)
    assert sizes == [1, 2, 3]


def test_auto_engine_by_device(cache: Path) -> None:
    engine = engine_of(cache, device="auto")
    expected = ("torch", "bfloat16") if torch.cuda.is_available() else ("openvino", "float32")
    assert (engine.name, engine.dtype) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:63"}, r"VIT_DEVICE: cuda:63 does not exist; CUDA devices found: \d+"),
        (
            {"engine": "openvino", "dtype": "float16"},
            "VIT_DTYPE: OpenVINO runs in float32, bfloat16 or int8 here, not in float16",
        ),
        ({"engine": "torch", "dtype": "int8"}, "VIT_DTYPE: int8 is for OpenVINO on a CPU"),
        ({"compile": True, "dtype": "int8"}, "VIT_DTYPE: int8 is for OpenVINO on a CPU"),
        ({"engine": "openvino", "compile": True}, "VIT_COMPILE: only torch compiles"),
    ],
)
def test_unsupported_options_stop_the_start(cache: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(StartError, match=message):
        engine_of(cache, **options)


@pytest.mark.parametrize("flags", [(), ("avx512f", "avx512_bf16")], ids=str)
def test_int8_without_vnni_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]) -> None:
    monkeypatch.setattr(hardware, "cpu_flags", lambda: frozenset(flags))
    with pytest.raises(StartError, match=r"^VIT_DTYPE: int8 is faster than float32 only on an x86 CPU with VNNI"):
        engine_of(cache, dtype="int8")
