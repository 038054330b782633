"""Clock: seconds that a test advances by hand."""


class Clock:
    """Stands in for `time.monotonic`; begins at 0."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now
