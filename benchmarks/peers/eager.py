"""Model as people write it: transformers' own in eager torch, in float32 with SDPA."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import TOP_K, Decoder, answers
from transformers import AutoModelForImageClassification


class NormalizingDecoder(Decoder):
    """Decoder to the input of transformers' model."""

    def __init__(self, directory: str | Path) -> None:
        super().__init__(directory)
        self._mean, self._std = (torch.tensor(values).view(3, 1, 1) / self.scale for values in (self.mean, self.std))

    def decode(self, image_bytes: bytes) -> np.ndarray:
        """Decode an image to (3, H, W) float32."""
        pixels = torch.from_numpy(super().decode(image_bytes)).float()
        return pixels.sub_(self._mean).div_(self._std).numpy()


class EagerModel(NormalizingDecoder):
    """Classifier from a directory in Hugging Face layout.

    Args:
        threads: threads of one forward pass.
    """

    def __init__(self, directory: str | Path, threads: int) -> None:
        super().__init__(directory)
        torch.set_num_threads(threads)
        self._model: Any = AutoModelForImageClassification.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()

    @torch.inference_mode()
    def classify(self, batch: np.ndarray) -> list[dict[str, Any]]:
        """Classify (B, 3, H, W) float32 into the top five of each image, ready for JSON."""
        pixels = torch.from_numpy(batch)
        probabilities, classes = self._model(pixel_values=pixels).logits.softmax(dim=-1).topk(TOP_K)
        return answers(zip(probabilities.tolist(), classes.tolist(), strict=True), self._model.config.id2label)
