"""Loading of models that a library runs."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from app.engines.hardware import has_bfloat16, has_vnni
from app.engines.pixel_model import engine_model
from app.engines.select import EngineOptions, choose_engine, faster_dtype
from app.errors import StartError
from model.checkpoints.checkpoint import load_checkpoint
from model.checkpoints.timm.names import is_supported
from model.library.timm_models import MODULES, is_served
from tests.support.library_models import write_resnet, write_swin
from tests.support.models import ROOT

import timm  # isort: skip

OPTIONS = EngineOptions("torch", "cpu", "auto", compile="auto", max_batch_size=None, threads=1, cache=Path("/nowhere"))

_NATIVE_START = """
import sys
from app.serving.engine_loading import load
from app.settings import read_settings
import app.engines.select
load(read_settings(model=sys.argv[1]), lambda step: None)
print(sorted({"transformers", "timm", "torchvision"} & set(sys.modules)))
"""


def test_own_models_import_no_library(tiny_checkpoint: Path) -> None:
    command = [sys.executable, "-c", _NATIVE_START, str(tiny_checkpoint)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert (ended.returncode, ended.stdout.strip()) == (0, "[]"), ended.stderr


@pytest.mark.parametrize(("write", "library"), [(write_swin, "transformers"), (write_resnet, "timm")])
def test_library_and_version_are_told(tmp_path: Path, write: Any, library: str) -> None:
    loaded = load_checkpoint(write(tmp_path), library=library)  # type: ignore[arg-type]
    version = transformers.__version__ if library == "transformers" else timm.__version__
    assert loaded.served_by == f"{library} {version}"
    assert not any(module.training for module in loaded.model.modules())
    assert (engine_model(loaded).cpu_batch_size, loaded.model.config.output_dim) == (4, 3)


def test_names_in_memory_are_read_too(tmp_path: Path) -> None:
    expected = load_checkpoint(write_swin(tmp_path))
    loaded: Any = transformers.SwinForImageClassification.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(loaded.state_dict(), tmp_path / "pytorch_model.bin")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_checkpoint(tmp_path).model(images), expected.model(images))


def test_counters_of_batchnorm_may_be_missing(tmp_path: Path) -> None:
    expected = load_checkpoint(write_resnet(tmp_path))
    file = tmp_path / "model.safetensors"
    save_file({key: value for key, value in load_file(file).items() if "num_batches" not in key}, file)
    images = torch.randn(2, 3, 224, 224)
    assert torch.equal(load_checkpoint(tmp_path).model(images), expected.model(images))


def test_half_precision_keeps_exact_pixels(tmp_path: Path) -> None:
    model = engine_model(load_checkpoint(write_swin(tmp_path)))
    expected = [value.clone() for value in model.buffers() if value.dtype == torch.float32][:2]
    half = model.to(torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert all(torch.equal(one, other) for one, other in zip(list(half.buffers())[:2], expected, strict=True))
    assert half(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).dtype == torch.float32


def test_fingerprint_names_the_version(tmp_path: Path) -> None:
    fingerprint = engine_model(load_checkpoint(write_swin(tmp_path))).fingerprint
    assert "'5.23.0'" in fingerprint
    assert '"window_size": 4' in fingerprint


@pytest.mark.skipif(not has_vnni(), reason="int8 is for CPUs with VNNI")
def test_int8_is_refused(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(write_swin(tmp_path))
    options = EngineOptions("auto", "cpu", "int8", compile="auto", max_batch_size=None, threads=1, cache=tmp_path)
    with pytest.raises(StartError, match=r"VIT_DTYPE: int8 is for .* SwinForImageClassification is run by transformers"):
        choose_engine(checkpoint, options)


@pytest.mark.skipif(not has_bfloat16(), reason="OpenVINO's bfloat16 is for CPUs with AVX512_BF16")
@pytest.mark.parametrize("write", [write_swin, write_resnet])
def test_bfloat16_is_near_float32(tmp_path: Path, write: Any) -> None:
    checkpoint = load_checkpoint(write(tmp_path))
    size = checkpoint.model.config.image_size
    images = [pixels.numpy() for pixels in torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)]
    options = replace(OPTIONS, engine="auto", cache=tmp_path / "cache")
    assert faster_dtype(checkpoint.served_by, options) is None  # not every such model gains
    expected = choose_engine(checkpoint, options).run(images, use_all_cores=True)
    engine = choose_engine(checkpoint, replace(options, dtype="bfloat16"))
    assert (engine.name, engine.dtype) == ("openvino", "bfloat16")
    off = abs(engine.run(images, use_all_cores=True) - expected).max() / abs(expected).max()
    assert 1e-5 < off < 0.08


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # raised by torch at import
def test_compiled_model_agrees(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(write_swin(tmp_path))
    images = [pixels.numpy() for pixels in torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)]
    options = replace(OPTIONS, features=True)
    eager = choose_engine(checkpoint, options).run(images, use_all_cores=True)
    options = replace(options, dtype="float32", compile=True, max_batch_size=2, cache=tmp_path / "cache")
    compiled = choose_engine(checkpoint, options).run(images, use_all_cores=True)
    assert compiled.shape == (2, 3 + 16)
    assert abs(compiled - eager).max() <= 1e-4 * abs(eager).max()


def test_prefix_of_a_wrapper_is_taken_off(tmp_path: Path) -> None:
    expected = load_checkpoint(write_resnet(tmp_path))
    file = tmp_path / "model.safetensors"
    save_file({f"model.{key}": value for key, value in load_file(file).items()}, file)
    images = torch.randn(1, 3, 224, 224)
    assert torch.equal(load_checkpoint(tmp_path).model(images), expected.model(images))


def test_published_weights_bring_their_labels(tmp_path: Path) -> None:
    save_file(timm.create_model("mobilenetv3_small_050").state_dict(), tmp_path / "bare.safetensors")
    loaded = load_checkpoint(tmp_path / "bare.safetensors", "timm/mobilenetv3_small_050.lamb_in1k")
    assert loaded.labels[281] == "tabby, tabby cat"
    assert loaded.preprocessing.output_size == (224, 224)


def test_names_are_of_tested_modules() -> None:
    served = [name for name in timm.list_models() if is_served(name) and not is_supported(name)]
    found = {timm.models.model_entrypoint(name).__module__.removeprefix("timm.models.") for name in served}
    assert found == MODULES
    assert len(served) > 200
