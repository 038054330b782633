"""The model that vit-serve runs, converted by it to OpenVINO in float32: pixels in, logits and features out."""

import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
from common import TOP_K, Decoder, answers
from transformers import AutoConfig

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # makes its import fail: no statistics are sent
import openvino  # noqa: E402  # after the line above


class OpenVinoModel(Decoder):
    """Classifier by a converted model, compiled with vit-serve's options.

    Args:
        directory: checkpoint in Hugging Face layout, for its preprocessing and labels.
        converted: the model's `.xml`, with its weights beside it.
        threads: cores of one batch.
        streams: batches at a time.
    """

    def __init__(self, directory: str | Path, converted: str | Path, threads: int, streams: int) -> None:
        super().__init__(directory)
        self._labels: dict[int, str] = AutoConfig.from_pretrained(directory).id2label
        self.compiled = openvino.Core().compile_model(
            str(converted),
            "CPU",
            {
                "NUM_STREAMS": streams,
                "INFERENCE_NUM_THREADS": streams * threads,
                "INFERENCE_PRECISION_HINT": "f32",
                "ENABLE_CPU_PINNING": False,
            },
        )
        self._requests = threading.local()

    def classify(self, batch: np.ndarray) -> list[dict[str, Any]]:
        """Classify (B, 3, H, W) uint8 into the top five of each image, ready for JSON."""
        request = getattr(self._requests, "own", None)  # one per thread
        if request is None:
            request = self._requests.own = self.compiled.create_infer_request()
        logits = request.infer(batch, share_inputs=True)[0][:, : len(self._labels)]  # features are behind them
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
        classes = np.argsort(-probabilities, axis=1)[:, :TOP_K]
        found = np.take_along_axis(probabilities, classes, axis=1)
        return answers(zip(found.tolist(), classes.tolist(), strict=True), self._labels)
