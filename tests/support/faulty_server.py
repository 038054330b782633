"""Real server with an injected fault: python -m tests.support.faulty_server hang | poisoned | start."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from app.errors import EngineDead
from app.pixels import Pixels
from app.process.logs import configure_logging
from app.server import serve
from app.serving.loading import Run, load_classifier
from app.serving.runner import ModelRunner, Scores
from app.settings import read_settings


@dataclass
class Faulty:
    """Inference that succeeds twice, then hangs or loses the device."""

    how: str
    runs: int = 0

    async def __call__(self, runner: ModelRunner, images: Sequence[Pixels]) -> Sequence[Scores]:
        self.runs += 1
        if self.runs > 2 and self.how == "poisoned":
            raise EngineDead("an illegal memory access was encountered")
        if self.runs > 2:
            runner.engine = _Hanging()  # type: ignore[assignment]  # only `run` is called from now on
        return await runner.run(images)


class _Hanging:
    """Engine that never returns; its thread cannot be interrupted."""

    def run(self, images: Sequence[Pixels], *, use_all_cores: bool) -> None:
        time.sleep(3600)


def main() -> int:
    settings = read_settings()
    configure_logging(settings.log_level, settings.log_format)
    if sys.argv[1] == "start":
        return serve(settings, lambda *_: 1 / 0)  # type: ignore[arg-type]
    run: Run = Faulty(sys.argv[1])
    return serve(settings, partial(load_classifier, run=run))


if __name__ == "__main__":
    from app.process.exit import end_process

    end_process(main())
