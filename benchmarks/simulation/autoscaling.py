"""Autoscaling: the number of replicas follows the images in flight, late and in steps."""

import math
import statistics
from collections import deque

import simpy

from benchmarks.simulation.fleet import Fleet
from benchmarks.simulation.replica import Steps
from benchmarks.simulation.scenario import Autoscaling


def autoscale(env: simpy.Environment, fleet: Fleet, spec: Autoscaling) -> Steps:
    """Resize the fleet for ever. It at most doubles, or grows by four, at a time, as is Kubernetes' default."""
    seen: deque[int] = deque(maxlen=max(1, round(spec.window_s / spec.poll_s)))
    wished: deque[int] = deque(maxlen=max(1, round(spec.down_after_s / spec.poll_s)))
    while True:
        yield env.timeout(spec.poll_s)
        seen.append(fleet.images)
        size = fleet.size
        needed = statistics.mean(seen) / spec.target
        wish = size if abs(needed / size - 1) <= spec.tolerance else math.ceil(needed)
        wished.append(min(spec.most, max(spec.least, wish)))
        # fewer only if fewer were enough all the while
        wish = wished[-1] if wished[-1] >= size else min(size, max(wished))
        fleet.resize(min(wish, max(2 * size, size + 4)))
