"""Replica: event loop, admission, decoders, one queue, batches."""

import itertools
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import simpy

from app.serving.batching import next_batch_size
from benchmarks.simulation.cores import Cores
from benchmarks.simulation.scenario import MachineSpec, ReplicaSpec
from benchmarks.simulation.tally import ANSWERED, LOST, REFUSED, Meter, Tally

Steps = Generator[simpy.Event, Any, None]


class Machine:
    """Cores, and the GPU that its replicas take turns on."""

    def __init__(self, env: simpy.Environment, spec: MachineSpec) -> None:
        self._env = env
        self._cores = Cores(env, spec.cores, spec.others) if spec.cores else None
        self.gpu = simpy.Resource(env)
        self.room = spec.replicas
        """Replicas that have a place here."""

    def work(self, seconds: float) -> Steps:
        """Run a task on a core."""
        if self._cores is not None:
            yield from self._cores.work(seconds)
        else:
            yield self._env.timeout(seconds)


@contextmanager
def _busy(meter: Meter) -> Iterator[None]:
    meter.add(1)
    try:
        yield
    finally:
        meter.add(-1)


class Replica:
    """One process of the service."""

    def __init__(self, env: simpy.Environment, spec: ReplicaSpec, machine: Machine, tally: Tally, rng: Random) -> None:
        self._env, self._spec, self._tally, self._rng = env, spec, tally, rng
        self.machine = machine
        self.images = 0
        """Images accepted and not yet answered."""
        self.requests: set[simpy.Process] = set()
        """Requests under way, also those that will be refused."""
        self.empty = env.event()
        """Happens when the last request ends once it drains."""
        self._draining = False
        self._loop = simpy.Resource(env)
        self._decoders = simpy.Resource(env, spec.decoders)
        self._queue: dict[simpy.Event, None] = {}
        self._free = spec.engine.slots
        self._batches: set[simpy.Process] = set()

    def serve(self) -> Generator[simpy.Event, Any, str]:
        """Serve a request in the process that is running; return the outcome."""
        request = self._env.active_process
        assert request is not None
        self.requests.add(request)
        try:
            yield from self._on_loop()
            if self.images >= self._spec.max_inflight_images:
                return REFUSED
            self.images += 1
            try:
                yield from self._decode()
                yield from self._infer()
                yield from self._on_loop()
            finally:
                self.images -= 1
            return ANSWERED
        finally:
            self.requests.discard(request)
            self._end_if_empty()

    def drain(self) -> None:
        """Let `empty` happen once all requests have ended."""
        self._draining = True
        self._end_if_empty()

    def kill(self) -> None:
        """End all that is under way."""
        for process in [*self.requests, *self._batches]:
            process.interrupt(LOST)

    def _end_if_empty(self) -> None:
        if self._draining and not self.requests and not self.empty.triggered:
            self.empty.succeed()

    def _on_loop(self) -> Steps:
        """Run half of what a request takes of the event loop."""
        if self._spec.loop_s:
            with self._loop.request() as turn:
                yield turn
                with _busy(self._tally.loops):
                    yield from self.machine.work(self._spec.loop_s / 2)

    def _decode(self) -> Steps:
        with self._decoders.request() as worker:
            yield worker
            with _busy(self._tally.decoders):
                yield from self.machine.work(self._spec.decode.sample(self._rng))

    def _infer(self) -> Steps:
        image = self._env.event()
        self._queue[image] = None
        self._start_batches()
        try:
            yield image
        finally:
            self._queue.pop(image, None)

    def _start_batches(self) -> None:
        """Start batches while there are images and slots, as `Batcher` does."""
        engine = self._spec.engine
        while self._queue and self._free:
            size = next_batch_size(len(self._queue), engine.max_batch_size, self._free if engine.independent_streams else 1)
            images = list(itertools.islice(self._queue, size))
            for image in images:
                del self._queue[image]
            self._free -= 1
            self._batches.add(self._env.process(self._run(images)))

    def _run(self, images: list[simpy.Event]) -> Steps:
        seconds = self._spec.engine.duration(len(images)).sample(self._rng)
        try:
            if self._spec.engine.independent_streams:
                with _busy(self._tally.engines):
                    yield from self.machine.work(seconds)
            else:
                with self.machine.gpu.request() as turn:
                    yield turn
                    with _busy(self._tally.engines):
                        yield self._env.timeout(seconds)
        except simpy.Interrupt:
            return
        self._tally.batches[len(images)] += 1
        self._batches.discard(self._env.active_process)
        self._free += 1
        for image in images:
            image.succeed()
        self._start_batches()
