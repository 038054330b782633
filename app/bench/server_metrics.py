"""Batches that the service ran, as its own `/metrics` count them."""

import re
from dataclasses import dataclass

from app.bench.connections import Address, Connections
from app.bench.load import get

_TIMEOUT_S = 5.0
_SERIES = re.compile(
    rb"^vit_batch_size_images_(sum|count)(?:\{[^\n]*\})? ([0-9]{1,18}(?:\.[0-9]{1,17})?(?:e\+[0-9]{1,2})?)$", re.M
)
_STARTED = re.compile(rb"^process_start_time_seconds ([0-9]{1,18}(?:\.[0-9]{1,17})?(?:e\+[0-9]{1,2})?)$", re.M)


class MetricsMissing(Exception):
    """The metrics cannot be had; the message says why."""


@dataclass(frozen=True, slots=True)
class Batches:
    """Batches of all models since the service started."""

    count: float
    images: float
    started: float | None = None
    """Time at which the process that counted them started, if it says so."""

    def mean_since(self, earlier: "Batches") -> float | None:
        """Return the mean number of images of the batches since an earlier reading; None if there were none.

        Raises:
            MetricsMissing: the counters went back, or are of another process.
        """
        count, images = self.count - earlier.count, self.images - earlier.images
        if count < 0 or images < 0:
            raise MetricsMissing("the service was restarted")
        if self.started != earlier.started:
            raise MetricsMissing("the service was restarted, or has several processes behind one address")
        return images / count if count else None


async def read_batches(address: Address, path: str) -> Batches:
    """Read the counters.

    Raises:
        MetricsMissing: no answer within 5 s, another status than 200, or no such metrics.
    """
    connections = Connections(address, 1, _TIMEOUT_S)
    try:
        answer = await connections.send(get(path, address.authority))
    except (OSError, TimeoutError) as error:
        raise MetricsMissing(f"{path} gave no answer ({type(error).__name__})") from None
    finally:
        connections.close()
    if answer.status != 200:
        raise MetricsMissing(f"{path} answered {answer.status}")
    return parse_batches(answer.body)


def parse_batches(text: bytes) -> Batches:
    """Return the counters in Prometheus' text format, summed over all models.

    Raises:
        MetricsMissing: the text has none.
    """
    found = _SERIES.findall(text)
    if not found:
        raise MetricsMissing("the metrics have no vit_batch_size_images")
    counts, sums = ([float(value) for kind, value in found if kind == wanted] for wanted in (b"count", b"sum"))
    started = _STARTED.search(text)
    return Batches(sum(counts), sum(sums), float(started[1]) if started else None)
