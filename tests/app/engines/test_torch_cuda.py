"""Compilation cache of torch: faults cost one compilation."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from app.engines.pixel_model import PixelModel
from app.engines.torch_cuda import make_torch_cuda_engine
from app.process.logs import configure_logging
from model.vit import VisionTransformer
from tests.support.models import ROOT, TINY_DINOV2, TINY_PREPROCESSING


def pixel_model() -> PixelModel:
    model = VisionTransformer(replace(TINY_DINOV2, depth=1))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return PixelModel(model.eval(), TINY_PREPROCESSING)


def check_engine(cache: Path) -> None:
    """Compile, and compare with the eager model."""
    engine = make_torch_cuda_engine(
        pixel_model(), device=torch.device("cpu"), dtype="float32", compile_model=True, max_batch_size=1, cache=cache
    )
    image = np.random.default_rng(1).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    expected = pixel_model()(torch.from_numpy(image[None])).numpy()
    np.testing.assert_allclose(engine.run([image], use_all_cores=True), expected, rtol=0, atol=1e-4)


def warnings_of_start(cache: Path) -> list[str]:
    """Compile in a new process, without torch's caches in memory, and return the warnings."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TORCHINDUCTOR_")}
    command = [sys.executable, "-m", "tests.app.engines.test_torch_cuda", str(cache)]
    ended = subprocess.run(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, timeout=300, check=True)
    return [json.loads(line)["event"] for line in ended.stderr.splitlines() if '"event": "the cached' in line]


def test_damaged_compile_cache_is_replaced(tmp_path: Path) -> None:
    assert warnings_of_start(tmp_path) == []
    libraries = list((tmp_path / "torch").rglob("*.so"))
    for library in libraries:
        os.truncate(library, 5000)
    assert libraries
    assert warnings_of_start(tmp_path) == ["the cached compiled model is unusable, compiling again"]
    assert not (tmp_path / "torch").exists()


def test_pipe_as_compile_cache_is_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "torch")
    assert warnings_of_start(tmp_path) == ["the cached compiled model is unusable, compiling again"]
    assert not (tmp_path / "torch").exists()


if __name__ == "__main__":
    configure_logging("warning", "json")
    check_engine(Path(sys.argv[1]))
