"""mosec: HTTP and batching in Rust, one process that decodes, and worker processes that classify."""

import os
from typing import Any

import numpy as np
from common import decoder_from_environment, model_from_environment
from mosec import Server, Worker

BATCH_WAIT_MS = 5


class Decode(Worker):
    def __init__(self) -> None:
        self.decoder = decoder_from_environment()

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> np.ndarray:
        return self.decoder.decode(data)


class Classify(Worker):
    def __init__(self) -> None:
        self.model = model_from_environment()

    def forward(self, data: list[np.ndarray]) -> list[dict[str, Any]]:
        return self.model.classify(np.stack(data))


if __name__ == "__main__":
    server = Server()
    server.append_worker(Decode)
    max_batch_size = int(os.environ["PEER_MAX_BATCH_SIZE"])
    server.append_worker(
        Classify, num=int(os.environ["PEER_WORKERS"]), max_batch_size=max_batch_size, max_wait_time=BATCH_WAIT_MS
    )
    server.run()
