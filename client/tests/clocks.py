"""Clock that a client's sleep advances."""

from vit_serve_client.tries import Clocks

NOW = 784111777.0
"""Sun, 06 Nov 1994 08:49:37 GMT."""


class FakeTime:
    """Time that passes only in `sleep`, and chance that is always the same."""

    def __init__(self, chance: float = 0.5) -> None:
        self.now_s = 0.0
        self.waits: list[float] = []
        self.clocks = Clocks(monotonic=lambda: self.now_s, wall=lambda: NOW + self.now_s, random=lambda: chance)

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now_s += seconds
