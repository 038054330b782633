"""Engine and decoding in threads without HTTP, each alone and both overlapped."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.decoding.image import ImageDecoder
from app.engines import Engine
from app.engines.select import EngineOptions, choose_engine
from app.process.cpu import available_cpus
from benchmarks.measure import Case
from model.checkpoints.checkpoint import load_checkpoint

FORMATS = frozenset({"jpeg"})

_PATIENCE_S = 300.0
"""Longest warm-up of a thread."""


@dataclass(frozen=True, slots=True)
class Inside:
    """Engines and decoders of one model."""

    engines: dict[str, Engine]
    quick: ImageDecoder
    exact: ImageDecoder
    image_size: int
    flops: int
    """Floating-point operations of one image."""

    @property
    def engine(self) -> Engine:
        """The engine that `auto` takes."""
        return self.engines["auto"]


def load(model: Path, cache: Path, engines: Sequence[str] = ("auto",)) -> Inside:
    """Load each engine from a checkpoint of its own, since an engine consumes the model."""
    checkpoint = load_checkpoint(model)
    quick, exact = (
        ImageDecoder(checkpoint.preprocessing, formats=FORMATS, max_bytes=10**9, max_pixels=10**9, exact=exact)
        for exact in (False, True)
    )
    config = checkpoint.model.config
    made = {name: choose_engine(load_checkpoint(model), _options(name, cache)) for name in engines}
    return Inside(made, quick, exact, config.image_size, config.flops)


def _options(name: str, cache: Path) -> EngineOptions:
    engine, _, dtype = name.partition(" ")
    assert engine in ("auto", "torch", "openvino") and dtype in ("", "bfloat16", "int8")
    return EngineOptions(
        engine=engine,  # type: ignore[arg-type]  # as it was just asserted
        device="auto",
        dtype=dtype or "auto",  # type: ignore[arg-type]  # likewise
        compile="auto",
        max_batch_size=None,
        threads=available_cpus(),
        cache=cache,
    )


def engine_cases(inside: Inside, batch_sizes: Sequence[int], slice_s: float) -> Iterator[Case]:
    """Yield images a second: single images in sequence, then batches of each size at the engine's concurrency."""
    for name, engine in inside.engines.items():
        yield f"{name}, one image alone", _engine_case(inside, engine, 1, slice_s, use_all_cores=True)
        for size in batch_sizes:
            yield (
                f"{name}, {engine.max_concurrent_batches} x {size}",
                _engine_case(inside, engine, size, slice_s, use_all_cores=False),
            )


def _engine_case(inside: Inside, engine: Engine, size: int, slice_s: float, *, use_all_cores: bool) -> Callable[[], float]:
    pixels = np.random.default_rng(0).integers(0, 256, (size, 3, inside.image_size, inside.image_size), dtype=np.uint8)

    def one() -> int:
        return len(engine.run(list(pixels), use_all_cores=use_all_cores))

    return rate_case(one, threads=1 if use_all_cores else engine.max_concurrent_batches, slice_s=slice_s)


def decode_cases(inside: Inside, images: Mapping[str, Sequence[bytes]], slice_s: float) -> Iterator[Case]:
    """Yield images a second by size, decoder and threads."""
    for name, files in images.items():
        for way, decoder in (("exact", inside.exact), ("quick", inside.quick)):
            for threads in dict.fromkeys((1, available_cpus())):
                yield f"{name}, {way}, {threads} threads", _decode_case(decoder, files, threads, slice_s)


def _decode_case(decoder: ImageDecoder, files: Sequence[bytes], threads: int, slice_s: float) -> Callable[[], float]:
    turns = itertools.cycle(files)

    def one() -> int:
        decoder.decode(next(turns))
        return 1

    return rate_case(one, threads=threads, slice_s=slice_s)


def pipeline_case(inside: Inside, files: Sequence[bytes], slice_s: float) -> Callable[[], float]:
    """Measure images a second when every thread decodes and runs batches: the service if HTTP and the queue cost nothing."""
    engine, turns = inside.engine, itertools.cycle(files)

    def one() -> int:
        batch = [inside.quick.decode(next(turns)) for _ in range(engine.max_batch_size)]
        return len(engine.run(batch, use_all_cores=False))

    return rate_case(one, threads=engine.max_concurrent_batches, slice_s=slice_s)


def lone_case(inside: Inside, files: Sequence[bytes], slice_s: float) -> Callable[[], float]:
    """Measure seconds to decode and run one image: the latency of a single client without HTTP."""
    turns = itertools.cycle(files)

    def one() -> int:
        return len(inside.engine.run([inside.quick.decode(next(turns))], use_all_cores=True))

    answers = rate_case(one, threads=1, slice_s=slice_s)
    return lambda: 1 / answers()


def rate_case(one: Callable[[], int], *, threads: int, slice_s: float) -> Callable[[], float]:
    """Measure items a second of threads that call `one`, which returns its number of items, until the time is up.

    The threads live as long as the case, and each calls `one` before it is measured: an engine may keep something for each
    thread, so that a thread's first batch takes longer.
    """
    workers, all_warm = ThreadPoolExecutor(threads, initializer=one), threading.Barrier(threads, timeout=_PATIENCE_S)

    def work() -> float:
        all_warm.wait()  # which also gives each thread one of these
        items, began = 0, time.perf_counter()
        while items == 0 or time.perf_counter() < began + slice_s:
            items += one()
        return items / (time.perf_counter() - began)  # the last call ends after the slice

    def measure() -> float:
        return sum(each.result() for each in [workers.submit(work) for _ in range(threads)])

    return measure
