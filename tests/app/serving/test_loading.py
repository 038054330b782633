"""Loading: a checkpoint error names the setting to change."""

from pathlib import Path

import pytest

from app.errors import StartError
from app.serving.engine_loading import load
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
