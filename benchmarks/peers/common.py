"""Work of every peer that is the same with either engine: Pillow decode and resize, the choice of the engine, top five.

Peers import it by path in their own environments, so it imports nothing from this repository.
"""

import io
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from transformers import AutoImageProcessor

TOP_K = 5


class Decoder:
    """Decoder from bytes to pixels, by preprocessor_config.json."""

    def __init__(self, directory: str | Path) -> None:
        processor: Any = AutoImageProcessor.from_pretrained(directory, backend="pil")  # fills in what the JSON leaves out
        self._size, self._resampling = processor.size, processor.resample
        self._crop = processor.crop_size if processor.do_center_crop else None
        self.mean, self.std, self.scale = processor.image_mean, processor.image_std, processor.rescale_factor

    def decode(self, image_bytes: bytes) -> np.ndarray:
        """Decode an image to (3, H, W) uint8: the processor's pixels, faster."""
        image = Image.open(io.BytesIO(image_bytes)).convert("RGB")
        image = image.resize(self._resized(image.width, image.height), self._resampling)
        if self._crop is not None:
            width, height = self._crop["width"], self._crop["height"]
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        edge = self._size.get("shortest_edge")
        if edge is None:
            return self._size["width"], self._size["height"]
        return (edge, int(edge * height / width)) if width <= height else (int(edge * width / height), edge)


class PeerModel(Protocol):
    """Classifier with one of the two engines."""

    def decode(self, image_bytes: bytes) -> np.ndarray:
        """Decode an image to the model's input, (3, H, W)."""

    def classify(self, batch: np.ndarray) -> list[dict[str, Any]]:
        """Classify (B, 3, H, W) into the top five of each image, ready for JSON."""


def decoder_from_environment() -> Decoder:
    """Return the decoder for the engine of `model_from_environment`, without a model."""
    directory = os.environ["PEER_MODEL"]
    if "PEER_OPENVINO" in os.environ:
        return Decoder(directory)  # the model normalises
    from eager import NormalizingDecoder

    return NormalizingDecoder(directory)


def model_from_environment() -> PeerModel:
    """Return the model of PEER_MODEL: in OpenVINO if PEER_OPENVINO names the converted one, otherwise in eager torch."""
    directory, threads = os.environ["PEER_MODEL"], int(os.environ["PEER_THREADS"])
    if converted := os.environ.get("PEER_OPENVINO"):
        from with_openvino import OpenVinoModel

        return OpenVinoModel(directory, converted, threads, int(os.environ["PEER_STREAMS"]))
    from eager import EagerModel

    return EagerModel(directory, threads)


def answers(rows: Any, labels: dict[int, str]) -> list[dict[str, Any]]:
    """Return answers from pairs of the probabilities and the indices of the top classes of an image."""
    return [
        {"predictions": [{"label": labels[index], "probability": value} for value, index in zip(*row, strict=True)]}
        for row in rows
    ]
