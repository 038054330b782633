"""torch on a device with memory of its own: a batch is staged while the one before it runs."""

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import structlog
import torch
from torch import Tensor

from app.engines.pixel_model import PixelModel, parse_dtype
from app.errors import EngineDead, OutOfMemory, StartError
from app.pixels import Logits, Pixels
from app.process.startup import lacks_memory

_IN_FLIGHT = 2
"""Batches: one that runs, and one whose pixels are on their way to the device."""

_TOLERANCES = {"float32": 0.01, "bfloat16": 0.2, "float16": 0.2}
"""Of the largest logit: how far those of the compiled model may be from the eager one's, by the dtype. Far more than rounding
makes, and far less than what a damaged cache does."""

_log = structlog.get_logger(__name__)


def staged_engine(
    model: PixelModel, *, device: torch.device, dtype: str, compile_model: bool, max_batch_size: int, cache: Path
) -> "StagedTorchEngine":
    """Make the engine; if it is compiled, with what an earlier start has kept.

    Args:
        cache: directory where what was compiled is kept. Whatever is wrong with it costs a compilation, and never the start.

    Raises:
        StartError: as `StagedTorchEngine`.
    """
    make = partial(
        StagedTorchEngine, model, device=device, dtype=dtype, compile_model=compile_model, max_batch_size=max_batch_size
    )
    return _with_cache(make, cache / "torch") if compile_model else make()


class _Slot:
    """The buffers of one batch in flight, for `size` images. On CUDA those of the host are pinned, so that copies overlap."""

    def __init__(self, model: PixelModel, size: int, device: torch.device) -> None:
        cuda = device.type == "cuda"
        self.pixels = torch.zeros(size, *model.image_shape, dtype=torch.uint8, pin_memory=cuda)
        self.staged = torch.zeros_like(self.pixels, device=device, pin_memory=False)
        self.logits = torch.zeros(size, model.config.num_classes, pin_memory=cuda)
        self.done = torch.cuda.Event() if cuda else None  # type: ignore[no-untyped-call]


class StagedTorchEngine:
    """The model on CUDA, captured as one CUDA graph for each batch size; two batches in flight.

    What happens to a batch: its images are stacked in pinned memory; a side stream copies them to the device, while the batch
    before it runs; the graph of the next larger size runs on the compute stream; the logits come back.

    On a CPU there are no streams and no graphs, and the rest is the same.

    Args:
        model: on the CPU, in float32.
        device: where it runs.
        dtype: `float32`, `bfloat16` or `float16`.
        compile_model: compile for each batch size (`torch.compile`).
        max_batch_size: images in the largest batch.

    Raises:
        StartError: the model cannot be compiled here, or the largest batch does not fit.
    """

    name = "torch"
    max_concurrent_batches = _IN_FLIGHT
    independent_streams = False

    def __init__(
        self, model: PixelModel, *, device: torch.device, dtype: str, compile_model: bool, max_batch_size: int
    ) -> None:
        self.device = str(device)
        self.dtype = dtype
        self.max_batch_size = max_batch_size
        self.batch_sizes = padded_sizes(max_batch_size)
        model = model.to(device, parse_dtype(dtype))
        self._model = _compiled(model, len(self.batch_sizes)) if compile_model else model
        self._compute = _stream(device)
        self._copies = _stream(device)
        self._turn = threading.Lock()  # batches are launched in order
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        self._slots = SimpleQueue[_Slot]()
        with _explained(device, compile_model, max_batch_size), torch.inference_mode():
            for _ in range(_IN_FLIGHT):
                self._slots.put(_Slot(model, max_batch_size, device))
            self._prepare(torch.zeros(max_batch_size, *model.image_shape, dtype=torch.uint8, device=device))
            if compile_model:
                self._compare(model)

    def run(self, images: Sequence[Pixels], *, use_all_cores: bool) -> Logits:
        slot = self._slots.get()
        try:
            with _device_errors(), torch.inference_mode():
                self._stage(slot, images)
                self._launch(slot, next(size for size in self.batch_sizes if size >= len(images)))
                if slot.done is not None:
                    slot.done.synchronize()
                return slot.logits[: len(images)].numpy().copy()
        finally:
            self._slots.put(slot)

    def _stage(self, slot: _Slot, images: Sequence[Pixels]) -> None:
        """Stack the images in the slot. Rows behind them keep what they had: nobody reads what becomes of those."""
        np.stack(images, out=slot.pixels[: len(images)].numpy())

    def _launch(self, slot: _Slot, size: int) -> None:
        """Queue copy, run and copy back; returns at once on CUDA."""
        with self._turn:
            with torch.cuda.stream(self._copies):
                slot.staged[:size].copy_(slot.pixels[:size], non_blocking=True)
            if self._compute is not None and self._copies is not None:
                self._compute.wait_stream(self._copies)
            with torch.cuda.stream(self._compute):
                slot.logits[:size].copy_(self._forward(slot.staged[:size]), non_blocking=True)
                if slot.done is not None:
                    slot.done.record(self._compute)

    def _forward(self, pixels: Tensor) -> Tensor:
        """(S, 3, H, W) uint8 -> logits (S, K) float32, both on the device; S is one of `batch_sizes`."""
        if (captured := self._graphs.get(len(pixels))) is None:
            logits: Tensor = self._model(pixels)
            return logits
        graph, graph_pixels, graph_logits = captured
        graph_pixels.copy_(pixels)
        graph.replay()
        return graph_logits

    def _prepare(self, pixels: Tensor) -> None:
        """Compile and capture every batch size, the largest first: the others then fit into its memory."""
        pool = None
        for size in reversed(self.batch_sizes):
            _log.info("preparing", batch_size=size)
            with torch.cuda.stream(self._compute):
                for _ in range(2):  # compiles, and lets libraries take their workspaces, before anything is captured
                    self._model(pixels[:size])
            if self._compute is None:
                continue
            self._compute.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=self._compute):
                logits = self._model(pixels[:size])
            pool = graph.pool()
            self._graphs[size] = graph, pixels[:size], logits

    def _compare(self, model: PixelModel) -> None:
        """Check each compiled size against the eager model, on the same image in every place."""
        image = np.random.default_rng(0).integers(0, 256, model.image_shape, dtype=np.uint8)
        found, size_of_logits = model.reference(torch.from_numpy(image).to(self.device)[None])
        expected = found.cpu().numpy()
        if not np.isfinite(expected).all():  # the model's own fault, which the warm-up tells
            return
        for size in self.batch_sizes:
            with np.errstate(invalid="ignore"):
                difference = np.abs(self.run([image] * size, use_all_cores=False) - expected).max()
            if not difference <= _TOLERANCES[self.dtype] * size_of_logits:  # nor is NaN
                raise StartError(
                    f"VIT_COMPILE: logits of the compiled model are {difference:.2g} away from torch's; start with false"
                )


def _stream(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def padded_sizes(max_batch_size: int) -> tuple[int, ...]:
    """The short list of batch sizes that are prepared: 1, 2, 4, 8, ... and the largest."""
    powers = [1 << exponent for exponent in range(max_batch_size.bit_length())]
    return tuple(sorted({*powers, max_batch_size}))


def _compiled(model: PixelModel, sizes: int) -> PixelModel:
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, sizes)
    compiled: PixelModel = torch.compile(model, dynamic=False)  # type: ignore[assignment]  # it behaves as what it wraps
    return compiled


def _with_cache(make: Callable[[], StagedTorchEngine], ours: Path) -> StagedTorchEngine:
    """Compile with what is kept, or without it if it cannot be used; then it is removed, and the next start keeps anew."""
    kept = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or ours)
    used = True
    try:
        used = _look_into(kept)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(kept)
        return make()
    except Exception as error:
        if not used:
            raise
        _log.warning("the kept compiled model cannot be used, compiling again", directory=str(kept), reason=str(error))
    with _empty_cache():
        engine = make()
    if kept == ours:
        with suppress(OSError):
            shutil.rmtree(kept) if kept.is_dir() else kept.unlink()
    return engine


def _look_into(directory: Path) -> bool:
    """Tell whether there is anything in it.

    Raises:
        OSError, ValueError: nothing can be written there, or something there would be waited for, such as a pipe.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory):
        pass
    found = list(directory.rglob("*"))
    for path in found:
        if not (path.is_file() or path.is_dir()):
            raise OSError(f"{path} is no regular file")
    return bool(found)


@contextmanager
def _empty_cache() -> Iterator[None]:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.gettempdir()  # the import below looks whether it is a directory
    from torch._inductor.utils import fresh_cache

    torch.compiler.reset()
    with fresh_cache():
        yield


@contextmanager
def _device_errors() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise OutOfMemory(str(error)) from error
    except torch.AcceleratorError as error:  # sticky: every later call on this context fails too
        raise EngineDead(str(error)) from error


@contextmanager
def _explained(device: torch.device, compile_model: bool, max_batch_size: int) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise StartError(f"VIT_MAX_BATCH_SIZE: {max_batch_size} images do not fit into the memory of {device}") from error
    except StartError:
        raise
    except Exception as error:  # the compiler raises whatever it likes
        if not compile_model or lacks_memory(error):
            raise
        reason = " ".join(str(error).splitlines()[:2])  # the first names the compiler, the second its fault
        raise StartError(f"VIT_COMPILE: the model cannot be compiled here, start with false: {reason}") from error
