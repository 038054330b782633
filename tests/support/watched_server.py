"""Real server that measures how long its event loop was blocked: python -m tests.support.watched_server."""

import asyncio
import time
from typing import Any

from app import server
from app.metrics import Metrics
from app.process.exit import end_process
from app.process.logs import configure_logging
from app.serving.classifier import Classifier
from app.serving.loading import load_classifier
from app.serving.model_list import ModelSpec
from app.settings import read_settings

_INTERVAL_S = 0.001


class Watch:
    """Longest blocking of the event loop in seconds, reset when read."""

    def __init__(self) -> None:
        self._longest_s = 0.0

    async def run(self) -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(_INTERVAL_S)
            self._longest_s = max(self._longest_s, time.perf_counter() - began - _INTERVAL_S)

    def take(self) -> float:
        longest_s, self._longest_s = self._longest_s, 0.0
        return longest_s


WATCH = Watch()


class WatchedServer(server.DrainingServer):
    """Server with a `Watch` in its event loop."""

    async def serve(self, sockets: list[object] | None = None) -> None:  # type: ignore[override] # as it is there
        watching = asyncio.create_task(WATCH.run())
        await super().serve()
        watching.cancel()


def load(spec: ModelSpec, metrics: Metrics, *shared: Any) -> Classifier:
    metrics.gauge("test_event_loop_held_seconds", "Longest blocking since the last scrape.", WATCH.take)
    return load_classifier(spec, metrics, *shared)


def main() -> None:
    settings = read_settings()
    configure_logging(settings.log_level, settings.log_format)
    server.DrainingServer = WatchedServer  # type: ignore[misc]
    end_process(server.serve(settings, load=load))


if __name__ == "__main__":
    main()
