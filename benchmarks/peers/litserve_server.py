"""LitServe: uvicorn in front, worker processes behind a queue, batches by size and by a wait."""

import os
from typing import Any

import litserve
import numpy as np
from common import model_from_environment
from fastapi import UploadFile

BATCH_WAIT_S = 0.005  # 0 would busy-wait on the queue


class Classifier(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = model_from_environment()

    def decode_request(self, request: UploadFile) -> np.ndarray:
        return self.model.decode(request.file.read())

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        return np.stack(inputs)

    def predict(self, batch: np.ndarray) -> list[dict[str, Any]]:
        return self.model.classify(batch)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


if __name__ == "__main__":
    api = Classifier(max_batch_size=int(os.environ["PEER_MAX_BATCH_SIZE"]), batch_timeout=BATCH_WAIT_S)
    server = litserve.LitServer(
        api, accelerator="cpu", devices=1, workers_per_device=int(os.environ["PEER_WORKERS"]), timeout=False
    )
    server.run(host="127.0.0.1", port=int(os.environ["PEER_PORT"]), log_level="warning", generate_client_file=False)
