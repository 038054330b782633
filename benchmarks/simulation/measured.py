"""Times of one replica from its own metrics, as the simulation takes them."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import httpx

from app.bench.load import Load
from benchmarks.simulation.scenario import Duration, EngineSpec, ReplicaSpec
from benchmarks.watch import metrics_of

_STAGES = ("decode_wait", "decode", "queue", "inference")


@dataclass(frozen=True, slots=True)
class Stages:
    """Means of the images between two readings of the metrics."""

    batch: float
    """Images in a batch."""
    stage_s: Mapping[str, float]
    """Mean time of an image in each stage."""

    @classmethod
    def between(cls, before: Mapping[str, float], after: Mapping[str, float]) -> "Stages":
        """Return the means of two readings."""

        def mean(name: str) -> float:
            total, count = (after[f"{name}_{each}"] - before[f"{name}_{each}"] for each in ("sum", "count"))
            return total / count

        return cls(mean("vit_batch_size_images"), {stage: mean(f"vit_{stage}_seconds") for stage in _STAGES})


@dataclass(frozen=True, slots=True)
class Alone:
    """Medians of one replica under a load."""

    load: Load
    stages: Stages
    cpu_s: float
    """CPU time of an answer, in all processes of the replica."""


def others_on(cores: int, lightest: Alone) -> float:
    """Return the tasks of others that explain why an answer to a client alone takes longer than its CPU time."""
    slower = lightest.load.p50 / lightest.cpu_s
    return max(0.0, cores * slower - 1) if slower > 1 else 0.0


def read(host: str, port: int) -> dict[str, float]:
    """Read the metrics of a replica."""
    return metrics_of(httpx.get(f"http://{host}:{port}/metrics", timeout=30).content)


def replica_of(alone: Sequence[Alone], max_batch_size: int, variation: float) -> ReplicaSpec:
    """Return the replica with the times that were measured under several loads, the lightest first.

    The engine's time is the line through all loads; decoding and event loop are those of the lightest, a client alone. All are
    times on a core that nobody else uses.
    """
    lightest = alone[0]
    slower = max(1.0, lightest.load.p50 / lightest.cpu_s)
    line = statistics.linear_regression(
        [each.stages.batch for each in alone], [each.stages.stage_s["inference"] / slower for each in alone]
    )
    stage_s = lightest.stages.stage_s
    return ReplicaSpec(
        Duration(stage_s["decode"] / slower, variation),
        decoders=1,
        engine=EngineSpec(max(0.0, line.intercept), line.slope, max_batch_size, independent_streams=True, variation=variation),
        loop_s=max(0.0, lightest.load.p50 - sum(stage_s.values())) / slower,
    )
