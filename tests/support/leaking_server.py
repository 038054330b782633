"""Real server that leaks every image: python -m tests.support.leaking_server."""

from collections.abc import Sequence
from functools import partial

from app.pixels import Pixels
from app.process.exit import end_process
from app.process.logs import configure_logging
from app.server import serve
from app.serving.loading import load_classifier
from app.serving.runner import ModelRunner, Scores
from app.settings import read_settings


class Leak:
    """Inference that keeps every image."""

    def __init__(self) -> None:
        self._seen: list[Pixels] = []

    async def __call__(self, runner: ModelRunner, images: Sequence[Pixels]) -> Sequence[Scores]:
        self._seen += images
        return await runner.run(images)


def main() -> None:
    settings = read_settings()
    configure_logging(settings.log_level, settings.log_format)
    end_process(serve(settings, load=partial(load_classifier, run=Leak())))


if __name__ == "__main__":
    main()
