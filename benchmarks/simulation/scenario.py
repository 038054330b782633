"""Scenario of a simulation: times of a replica, machines, load, failures."""

import math
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class Duration:
    """Time that varies: a gamma distribution, which is a constant without variation and exponential with 1."""

    mean_s: float
    variation: float = 0.0
    """Standard deviation over the mean."""

    def sample(self, rng: Random) -> float:
        """Return one time."""
        if not self.variation:
            return self.mean_s
        shape = self.variation**-2
        return rng.gammavariate(shape, self.mean_s / shape)


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Engine whose batch takes a fixed time and a time for each image."""

    batch_s: float
    image_s: float
    max_batch_size: int
    slots: int = 1
    """Batches in flight."""
    independent_streams: bool = False
    """True for the cores of a CPU. Otherwise the replicas of a machine take turns on its GPU."""
    variation: float = 0.0
    """Of a batch of one. That of a larger one is less, as if the times of its images varied each for itself."""

    def duration(self, images: int) -> Duration:
        """Return the time of a batch."""
        return Duration(self.batch_s + self.image_s * images, self.variation / math.sqrt(images))


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """One process of the service."""

    decode: Duration
    decoders: int
    engine: EngineSpec
    loop_s: float = 0.0
    """Time of the event loop for one request, half of it before the image is decoded."""
    max_inflight_images: int = 256
    start_s: float = 0.0


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """Machine, with one GPU if the engine is one."""

    replicas: int = 1
    cores: int | None = None
    """Cores that event loops, decoders and engines share; None: each has one of its own."""
    others: float = 0.0
    """Tasks of others that always run on these cores."""


@dataclass(frozen=True, slots=True)
class Clients:
    """Clients that wait for their answers."""

    number: int
    pause_s: float = 0.05
    """Pause after a request without an answer."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Random arrivals (Poisson)."""

    steps: tuple[tuple[float, float], ...]
    """Times from which a rate holds, and the rates in requests a second."""

    @classmethod
    def at(cls, rate: float) -> "Arrivals":
        return cls(((0.0, rate),))


@dataclass(frozen=True, slots=True)
class Kill:
    """Loss of one replica with all that it has in flight; another starts at once in its place."""

    at_s: float


@dataclass(frozen=True, slots=True)
class Drain:
    """Replacement of one replica: it finishes what it has, ends, and another starts in its place."""

    at_s: float


@dataclass(frozen=True, slots=True)
class Autoscaling:
    """Number of replicas by images in flight, as KEDA's and Kubernetes' autoscaler do it (docs/kubernetes.md)."""

    target: float
    """Images in flight for each replica."""
    least: int
    most: int
    poll_s: float = 15.0
    window_s: float = 60.0
    """Time over which images in flight are averaged."""
    down_after_s: float = 300.0
    tolerance: float = 0.1


@dataclass(frozen=True, slots=True)
class Scenario:
    """One run."""

    name: str
    replica: ReplicaSpec
    load: Clients | Arrivals
    replicas: int = 1
    machine: MachineSpec = MachineSpec()
    balance: str = "least connections"
    proxy_s: float = 0.0
    """Delay by balancer and network."""
    deadline_s: float = 30.0
    events: tuple[Kill | Drain, ...] = ()
    autoscaling: Autoscaling | None = None
    seconds: float = 30.0
    warm_up_s: float = 5.0
