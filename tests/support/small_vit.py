"""Small ViT of transformers, with any keys in its config.json."""

import json
from pathlib import Path
from typing import Any

import transformers
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from tests.support.weights import randomise

PROCESSOR = ViTImageProcessorPil(size={"height": 32, "width": 32})


SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 16,
}


def write_small_vit(directory: Path, num_labels: int, **config: Any) -> Path:
    """Write a small ViT whose config.json has these keys too."""
    sizes: dict[str, Any] = {**SIZES, "num_labels": num_labels}
    settings = transformers.ViTConfig(**sizes)
    model = transformers.ViTForImageClassification(settings)
    randomise(model).save_pretrained(directory)
    content = {**PROCESSOR.to_dict(), "image_processor_type": "ViTImageProcessor"}
    (directory / "preprocessor_config.json").write_text(json.dumps(content))
    file = directory / "config.json"
    names = {str(index): f"label {index}" for index in range(num_labels)}
    file.write_text(json.dumps({**json.loads(file.read_text()), "id2label": names, **config}))
    return directory
