"""bfloat16 by OpenVINO: nearness to float32, one conversion for both, CPUs without it, and the hint in the log."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch

from app.decoding.image import ImageDecoder
from app.engines import Engine, hardware, select
from app.engines.conversion import openvino_engine
from app.engines.hardware import has_bfloat16
from app.engines.openvino import OpenVinoOptions
from app.engines.pixel_model import PixelModel
from app.engines.select import EngineOptions, choose_engine, faster_dtype
from app.errors import StartError
from app.pixels import Pixels
from model.checkpoints.checkpoint import Checkpoint
from model.checkpoints.description import OWN
from model.config import ViTConfig
from model.vit import VisionTransformer
from tests.support.models import ROOT, TINY_DINOV2, TINY_LABELS, TINY_PREPROCESSING, tiny_model
from tests.support.weights import lively

needs_bfloat16 = pytest.mark.skipif(not has_bfloat16(), reason="OpenVINO's bfloat16 is for CPUs with AVX512_BF16")

OPTIONS = EngineOptions("auto", "cpu", "bfloat16", compile="auto", max_batch_size=8, threads=2, cache=Path("/nowhere"))
TOLD = "VIT_DTYPE=bfloat16 is about 1.7 times as fast here"


@pytest.fixture(scope="module")
def photographs() -> list[Pixels]:
    decoder = ImageDecoder(TINY_PREPROCESSING, formats=frozenset({"jpeg"}), max_bytes=10**9, max_pixels=10**9, exact=True)
    return [decoder.decode(file.read_bytes()) for file in sorted((ROOT / "tests" / "photographs").glob("*.jpg"))]


def checkpoint() -> Checkpoint:
    return Checkpoint("tiny", "Dinov2ForImageClassification", tiny_model(), TINY_PREPROCESSING, TINY_LABELS)


def engine_of(cache: Path, **options: Any) -> Engine:
    return choose_engine(checkpoint(), replace(OPTIONS, cache=cache, **options))


def without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cpu_flags", lambda: frozenset({"avx512f"}))


@needs_bfloat16
@pytest.mark.parametrize(
    "options",
    [{"depth": 6}, {"embed_dim": 64, "mlp_dim": 128, "swiglu": True, "activation": "silu"}, {"pre_norm": True}],
    ids=str,
)
def test_logits_are_near_float32(tmp_path: Path, photographs: list[Pixels], options: dict[str, object]) -> None:
    fields = {name: getattr(TINY_DINOV2, name) for name in ViTConfig.__dataclass_fields__}
    model = PixelModel(lively(VisionTransformer(ViTConfig(**{**fields, **options}))), TINY_PREPROCESSING)
    expected = model(torch.from_numpy(np.stack(photographs))).detach().numpy()
    engine = openvino_engine(model, OpenVinoOptions("bfloat16", 8, 2), tmp_path)
    for use_all_cores in (True, False):
        logits = engine.run(photographs, use_all_cores=use_all_cores)
        assert 1e-4 < np.abs(logits - expected).max() / np.abs(expected).max() < 0.03
        assert (logits.argmax(axis=1) == expected.argmax(axis=1)).all()


@needs_bfloat16
def test_logits_are_independent_of_the_batch(tmp_path: Path, photographs: list[Pixels]) -> None:
    engine = engine_of(tmp_path)
    together = engine.run(photographs, use_all_cores=False)
    alone = np.concatenate([engine.run([image], use_all_cores=False) for image in photographs])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-4 * np.abs(alone).max())


@needs_bfloat16
@pytest.mark.parametrize("engine", ["auto", "openvino"])
def test_bfloat16_selects_openvino(tmp_path: Path, engine: str) -> None:
    made = engine_of(tmp_path, engine=engine)
    assert (made.name, made.device, made.dtype) == ("openvino", "cpu", "bfloat16")


@needs_bfloat16
@pytest.mark.parametrize(("first", "second"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_conversion_is_shared_with_float32(
    tmp_path: Path, photographs: list[Pixels], monkeypatch: pytest.MonkeyPatch, first: str, second: str
) -> None:
    one = engine_of(tmp_path, dtype=first).run(photographs, use_all_cores=True)
    monkeypatch.setattr(openvino, "convert_model", lambda _: pytest.fail("converted again"))
    other = engine_of(tmp_path, dtype=second).run(photographs, use_all_cores=True)
    assert len(list((tmp_path / "openvino").iterdir())) == 1
    assert not np.array_equal(one, other)


@needs_bfloat16
def test_bfloat16_has_no_fallback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: object) -> None:
        raise RuntimeError("Check failed")

    monkeypatch.setattr(openvino, "convert_model", fails)
    with pytest.raises(StartError, match="OpenVINO cannot run this model"):
        engine_of(tmp_path)


@pytest.mark.parametrize("engine", ["auto", "openvino"])
def test_cpu_without_bfloat16_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    without_bfloat16(monkeypatch)
    with pytest.raises(StartError, match=r"^VIT_DTYPE: bfloat16 is .* AVX512_BF16, .*; unset it, or set VIT_ENGINE=torch"):
        engine_of(tmp_path, engine=engine)


def test_torch_needs_no_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_bfloat16(monkeypatch)
    engine = engine_of(tmp_path, engine="torch")
    assert (engine.name, engine.dtype) == ("torch", "bfloat16")


@needs_bfloat16
def test_log_tells_it_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    select._tell_faster_dtype.cache_clear()
    with caplog.at_level("INFO"):
        for _ in range(2):
            engine_of(tmp_path, dtype="auto")
    (record,) = [record for record in caplog.records if TOLD in record.getMessage()]
    assert record.levelname == "INFO"


@needs_bfloat16
def test_log_is_silent_about_a_choice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    select._tell_faster_dtype.cache_clear()
    with caplog.at_level("INFO"):
        for options in ({"dtype": "float32"}, {"dtype": "bfloat16"}, {"dtype": "auto", "engine": "torch"}):
            engine_of(tmp_path, **options)
    assert TOLD not in caplog.text


@pytest.mark.parametrize("options", [{"dtype": "float32"}, {"engine": "torch"}, {"device": "cuda"}, {"compile": True}], ids=str)
def test_hint_is_for_what_gains(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    monkeypatch.setattr(hardware, "cpu_flags", lambda: frozenset({"avx512_bf16"}))
    free = replace(OPTIONS, dtype="auto")
    assert faster_dtype(OWN, free) == TOLD
    assert faster_dtype(OWN, replace(free, **options)) is None
    without_bfloat16(monkeypatch)
    assert faster_dtype(OWN, free) is None
