"""Bundled model, by transformers and by the service."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageClassification
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from app.serving.offline import running_classifier
from app.serving.results import Classification
from app.settings import BUNDLED_MODEL, read_settings


def reference_logits(paths: list[Path]) -> Any:
    """Return transformers' logits for the same files, with its own loading, preprocessing and model."""
    model: Any = AutoModelForImageClassification.from_pretrained(BUNDLED_MODEL, dtype=torch.float32).eval()
    processor: Any = BitImageProcessorPil.from_pretrained(BUNDLED_MODEL)
    logits = []
    for path in paths:
        with Image.open(path) as image, torch.no_grad():
            logits.append(model(**processor(image, return_tensors="pt")).logits[0].numpy())
    return np.stack(logits)


async def service_answers(images: list[bytes], **settings: object) -> list[Classification]:
    async with running_classifier(read_settings(model=BUNDLED_MODEL, **settings)) as classifier:
        return await asyncio.gather(*(classifier.classify(image_bytes) for image_bytes in images))
