"""Every image classifier of transformers: served by the service's own ViT, by the library, or refused by a sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from model.checkpoints.checkpoint import CheckpointError, load_checkpoint
from model.checkpoints.hugging_face.families import ARCHITECTURES
from model.library.transformers_models import family_of

MODEL_TYPES: dict[str, tuple[str, ...]] = {
    model_type: (names,) if isinstance(names, str) else tuple(names)
    for model_type, names in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.items()
}
CASES = [(model_type, name) for model_type, names in MODEL_TYPES.items() for name in names]


def write_config(directory: Path, model_type: str, architecture: str) -> None:
    """Write the library's own configuration of a class, without weights."""
    config: Any = getattr(transformers, architecture).config_class()
    content = json.loads(config.to_json_string(use_diff=False))
    (directory / "config.json").write_text(json.dumps(content | {"architectures": [architecture], "model_type": model_type}))


def test_all_model_types_are_walked() -> None:
    assert len(MODEL_TYPES) >= 42


@pytest.mark.parametrize(("model_type", "architecture"), CASES, ids=lambda name: name)
def test_classifier_is_read_or_refused_by_name(model_type: str, architecture: str, tmp_path: Path) -> None:
    write_config(tmp_path, model_type, architecture)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path)
    sentence = str(caught.value)
    if architecture in ARCHITECTURES or family_of(architecture):  # read as far as there are files
        assert "preprocessor_config.json is missing" in sentence
    elif model_type == "timm_wrapper":
        assert "pretrained_cfg is missing" in sentence or "architecture" in sentence
    else:
        assert architecture in sentence
        assert "supported" in sentence or "serve" in sentence or "made here" in sentence or "makes" in sentence
