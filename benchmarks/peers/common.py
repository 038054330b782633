"""Work of every peer: Pillow decode and resize, transformers' model in eager float32, softmax, top five.

Peers import it by path in their own environments, so it imports nothing from this repository.
"""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

TOP_K = 5


class Decoder:
    """Decoder from bytes to the model's input, by preprocessor_config.json."""

    def __init__(self, directory: str | Path) -> None:
        processor: Any = AutoImageProcessor.from_pretrained(directory, backend="pil")  # fills in what the JSON leaves out
        self._size, self._resampling = processor.size, processor.resample
        self._crop = processor.crop_size if processor.do_center_crop else None
        self._mean = torch.tensor(processor.image_mean).view(3, 1, 1) / processor.rescale_factor
        self._std = torch.tensor(processor.image_std).view(3, 1, 1) / processor.rescale_factor

    def decode(self, image_bytes: bytes) -> torch.Tensor:
        """Decode an image to (3, H, W) float32: the processor's numbers, faster."""
        image = Image.open(io.BytesIO(image_bytes)).convert("RGB")
        image = image.resize(self._resized(image.width, image.height), self._resampling)
        if self._crop is not None:
            width, height = self._crop["width"], self._crop["height"]
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return pixels.contiguous().float().sub_(self._mean).div_(self._std)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        edge = self._size.get("shortest_edge")
        if edge is None:
            return self._size["width"], self._size["height"]
        return (edge, int(edge * height / width)) if width <= height else (int(edge * width / height), edge)


class PeerModel(Decoder):
    """Classifier from a directory in Hugging Face layout."""

    def __init__(self, directory: str | Path, threads: int) -> None:
        super().__init__(directory)
        torch.set_num_threads(threads)
        self._model = AutoModelForImageClassification.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()

    @torch.inference_mode()
    def classify(self, batch: torch.Tensor) -> list[dict[str, Any]]:
        """Classify (B, 3, H, W) float32 into the top five of each image, ready for JSON."""
        probabilities, classes = self._model(pixel_values=batch).logits.softmax(dim=-1).topk(TOP_K)
        labels = self._model.config.id2label
        return [
            {"predictions": [{"label": labels[c], "probability": p} for p, c in zip(*row, strict=True)]}
            for row in zip(probabilities.tolist(), classes.tolist(), strict=True)
        ]


def model_from_environment() -> PeerModel:
    """Return the model that PEER_MODEL and PEER_THREADS name."""
    return PeerModel(os.environ["PEER_MODEL"], int(os.environ["PEER_THREADS"]))
