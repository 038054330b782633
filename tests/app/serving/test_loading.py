"""Loading: a checkpoint error names the setting to change, and a warm model leaves the pages of its file."""

from pathlib import Path

import numpy as np
import pytest

from app.decoding.pool.threads import ThreadDecoder
from app.errors import StartError
from app.metrics import Metrics
from app.serving.engine_loading import load
from app.serving.loading import load_classifier
from app.serving.model_list import ModelSpec
from app.serving.shared import Shared
from app.settings import read_settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "timm/vit_tiny_patch16_224"}, "^VIT_ARCHITECTURE: it is for bare state dicts"),
        ({"model": "/nowhere"}, "^VIT_MODEL: /nowhere does not exist"),
    ],
)
def test_error_names_the_setting(tiny_checkpoint: Path, settings: dict[str, str], message: str) -> None:
    with pytest.raises(StartError, match=message):
        load(read_settings(**{"model": tiny_checkpoint, **settings}), lambda step: None)


def resident_kib(directory: Path) -> list[int]:
    """Return how much is resident of each mapping of a file below a directory."""
    found, file = [], ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if not fields[0].endswith(":"):  # addresses, permissions, offset, device, inode, and perhaps a path
            file = fields[5] if len(fields) == 6 else ""
        elif fields[0] == "Rss:" and file.startswith(str(directory)):
            found.append(int(fields[1]))
    return found


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads Linux's /proc")
async def test_warm_model_leaves_the_pages_of_its_file(tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = read_settings(model=str(tiny_checkpoint), engine="openvino", inference_threads=2, cache_dir=tmp_path)
    shared = Shared(settings, Metrics(), ThreadDecoder(np.array, threads=1))
    classifier = load_classifier(ModelSpec(None, settings), Metrics(), shared)
    resident = resident_kib(tmp_path)
    assert resident and not any(resident)
    await classifier.close()
    await shared.close()
