"""Ray Serve behind its HAProxy: a cluster of one machine, started and stopped with this process; `@serve.batch`."""

import asyncio
import os
import secrets
import signal
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import ray
from common import model_from_environment
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig
from starlette.requests import Request

WORKERS, THREADS = int(os.environ["PEER_WORKERS"]), int(os.environ["PEER_THREADS"])
BATCH_WAIT_S = 0.005
REPLICAS_PORTS = 20


@serve.deployment(num_replicas=WORKERS, max_ongoing_requests=64, ray_actor_options={"num_cpus": THREADS})
class Classifier:
    def __init__(self) -> None:
        self._model = model_from_environment()
        self._thread = ThreadPoolExecutor(1)  # the event loop collects the next batch meanwhile

    async def __call__(self, request: Request) -> dict[str, Any]:
        return await self._classify(await request.body())

    @serve.batch(max_batch_size=int(os.environ["PEER_MAX_BATCH_SIZE"]), batch_wait_timeout_s=BATCH_WAIT_S)
    async def _classify(self, images: list[bytes]) -> list[dict[str, Any]]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._work, images)

    def _work(self, images: list[bytes]) -> list[dict[str, Any]]:
        return self._model.classify(np.stack([self._model.decode(image) for image in images]))


if __name__ == "__main__":
    # ports of its own, since two clusters would begin with the same
    first = int(os.environ["PEER_REPLICAS_PORT"])
    os.environ["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"] = str(first)
    os.environ["RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"] = str(first + REPLICAS_PORTS)
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # otherwise Ray writes one into the home directory
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as directory:
        ray.init(
            num_cpus=WORKERS * THREADS,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=directory,
        )
        serve.start(
            http_options=HTTPOptions(host="127.0.0.1", port=int(os.environ["PEER_PORT"])),
            logging_config=LoggingConfig(log_level="ERROR", enable_access_log=False),
        )
        serve.run(Classifier.bind())
        signal.signal(signal.SIGTERM, lambda *_: None)  # after ray.init, whose own handler aborts
        signal.pause()
        ray.shutdown()
