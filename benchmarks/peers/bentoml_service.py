"""BentoML: worker processes on one socket, each with an adaptive batcher in front of a batchable method."""

import os
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
from common import model_from_environment

MAX_LATENCY_MS = int(os.environ.get("PEER_MAX_LATENCY_MS", "60000"))


@bentoml.service(
    workers=int(os.environ["PEER_WORKERS"]),
    traffic={"timeout": 120},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class Classifier:
    def __init__(self) -> None:
        self._model = model_from_environment()

    @bentoml.api(batchable=True, max_batch_size=int(os.environ["PEER_MAX_BATCH_SIZE"]), max_latency_ms=MAX_LATENCY_MS)
    def predict(self, images: list[Path]) -> list[dict[str, Any]]:
        return self._model.classify(np.stack([self._model.decode(image.read_bytes()) for image in images]))
