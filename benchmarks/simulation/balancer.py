"""Ways to choose the replica for a request."""

from collections.abc import Callable, Mapping, Sequence
from random import Random

from benchmarks.simulation.replica import Replica

Balance = Callable[[Sequence[Replica]], Replica]


def round_robin(_: Random) -> Balance:
    """Take turns."""
    number = -1

    def choose(replicas: Sequence[Replica]) -> Replica:
        nonlocal number
        number += 1
        return replicas[number % len(replicas)]

    return choose


def at_random(rng: Random) -> Balance:
    """Take any, as one of many balancers that know nothing of each other comes close to."""
    return rng.choice


def least_connections(_: Random) -> Balance:
    """Take the one with the fewest requests under way; equal ones take turns, as in HAProxy."""
    number = -1

    def choose(replicas: Sequence[Replica]) -> Replica:
        nonlocal number
        fewest = min(len(replica.requests) for replica in replicas)
        equal = [replica for replica in replicas if len(replica.requests) == fewest]
        number += 1
        return equal[number % len(equal)]

    return choose


def best_of_two(rng: Random) -> Balance:
    """Take the better one of two at random, as many balancers do that each see a part of the requests."""

    def choose(replicas: Sequence[Replica]) -> Replica:
        return min(rng.choices(replicas, k=2), key=lambda replica: len(replica.requests))

    return choose


BALANCES: Mapping[str, Callable[[Random], Balance]] = {
    "least connections": least_connections,
    "best of two": best_of_two,
    "round robin": round_robin,
    "random": at_random,
}
