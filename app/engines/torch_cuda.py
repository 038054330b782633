"""torch on a GPU: compiled, captured as CUDA graphs, with the next batch copied while the current one runs."""

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

from app.engines.cuda_modules import replace_modules
from app.engines.pixel_model import EngineModel, PixelModel, parse_dtype
from app.errors import EngineDead, OutOfMemory, StartError
from app.pixels import Logits, Pixels
from app.process.startup import lacks_memory

_IN_FLIGHT = 2
"""Batches: one that runs, and one whose pixels are being copied to the device."""

_TOLERANCES = {"float32": 0.01, "bfloat16": 0.2, "float16": 0.2}
"""Maximum difference from the eager model's logits, relative to the largest logit, by dtype: far above rounding errors, far
below what a damaged cache causes."""

_log = structlog.get_logger(__name__)


def make_torch_cuda_engine(
    model: EngineModel, *, device: torch.device, dtype: str, compile_model: bool, max_batch_size: int, cache: Path
) -> "TorchCudaEngine":
    """Make the engine, with the compilation cache of earlier starts if it is compiled.

    Args:
        cache: directory for compiled code. An unusable one costs a compilation and never stops the start.

    Raises:
        StartError: as `TorchCudaEngine`.
    """
    make = partial(
        TorchCudaEngine, model, device=device, dtype=dtype, compile_model=compile_model, max_batch_size=max_batch_size
    )
    return _with_cache(make, cache / "torch") if compile_model else make()


class _Slot:
    """The buffers of one batch in flight, for up to `size` images. On CUDA, host buffers are pinned so that copies overlap."""

    def __init__(self, model: EngineModel, size: int, device: torch.device) -> None:
        cuda = device.type == "cuda"
        self.pixels = torch.zeros(size, *model.image_shape, dtype=torch.uint8, pin_memory=cuda)
        self.staged = torch.zeros_like(self.pixels, device=device, pin_memory=False)
        self.logits = torch.zeros(size, model.output_dim, pin_memory=cuda)
        self.done = torch.cuda.Event() if cuda else None  # type: ignore[no-untyped-call]  # torch leaves it unannotated


class TorchCudaEngine:
    """The model on CUDA, captured as one CUDA graph per batch size, with two batches in flight.

    Images are stacked in pinned memory. A side stream copies them to the device while the previous batch runs. The graph of
    the next larger batch size runs on the compute stream, and the logits are copied back.

    `VIT_COMPILE=true` also uses it on a CPU, without streams and graphs.

    Args:
        model: on the CPU, in float32.
        device: target device.
        dtype: `float32`, `bfloat16` or `float16`.
        compile_model: apply `torch.compile` for each batch size.
        max_batch_size: images in the largest batch.

    Raises:
        StartError: the model cannot be compiled here, or the largest batch does not fit.
    """

    name = "torch"
    max_concurrent_batches = _IN_FLIGHT
    independent_streams = False

    def __init__(
        self, model: EngineModel, *, device: torch.device, dtype: str, compile_model: bool, max_batch_size: int
    ) -> None:
        self.device = str(device)
        self.dtype = dtype
        self.max_batch_size = max_batch_size
        self.batch_sizes = padded_sizes(max_batch_size)
        self._model = model.to(device, parse_dtype(dtype))
        self._compiled = compile_model
        self._compute_stream = _stream(device)
        self._copy_stream = _stream(device)
        self._launch_lock = threading.Lock()  # streams are shared, so batches launch one after another
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        self._slots = SimpleQueue[_Slot]()
        with _start_errors(device, compile_model, max_batch_size), torch.inference_mode():
            image = np.random.default_rng(0).integers(0, 256, model.image_shape, dtype=np.uint8)
            expected, sizes = model.reference(torch.from_numpy(image).to(device)[None])
            if isinstance(model, PixelModel) and device.type == "cuda" and dtype != "float32":
                replace_modules(model.vit)
            if compile_model:
                _compile(model, len(self.batch_sizes))
            for _ in range(_IN_FLIGHT):
                self._slots.put(_Slot(model, max_batch_size, device))
            self._prepare(torch.zeros(max_batch_size, *model.image_shape, dtype=torch.uint8, device=device))
            self._compare(image, expected.cpu().numpy(), sizes.cpu().numpy())

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
        """Stack the images in the slot. Later rows keep old pixels; their logits are ignored."""
        np.stack(images, out=slot.pixels[: len(images)].numpy())

    def _launch(self, slot: _Slot, size: int) -> None:
        """Queue the copy, the forward pass and the copy back; on CUDA, return at once."""
        with self._launch_lock:
            with torch.cuda.stream(self._copy_stream):
                slot.staged[:size].copy_(slot.pixels[:size], non_blocking=True)
            if self._compute_stream is not None and self._copy_stream is not None:
                self._compute_stream.wait_stream(self._copy_stream)
            with torch.cuda.stream(self._compute_stream):
                slot.logits[:size].copy_(self._forward(slot.staged[:size]), non_blocking=True)
                if slot.done is not None:
                    slot.done.record(self._compute_stream)

    def _forward(self, pixels: Tensor) -> Tensor:
        """(S, 3, H, W) uint8 -> logits and features (S, K + F) float32, both on the device; S is one of `batch_sizes`."""
        if (captured := self._graphs.get(len(pixels))) is None:
            logits: Tensor = self._model(pixels)
            return logits
        graph, graph_pixels, graph_logits = captured
        graph_pixels.copy_(pixels)
        graph.replay()
        return graph_logits

    def _prepare(self, pixels: Tensor) -> None:
        """Compile and capture every batch size, the largest first, so that the others reuse its memory pool."""
        pool = None
        for size in reversed(self.batch_sizes):
            _log.info("preparing a batch size", batch_size=size)
            with torch.cuda.stream(self._compute_stream):
                for _ in range(2):  # compile, and let libraries allocate their workspaces, before the capture
                    self._model(pixels[:size])
            if self._compute_stream is None:
                continue
            self._compute_stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=self._compute_stream):
                logits = self._model(pixels[:size])
            pool = graph.pool()
            self._graphs[size] = graph, pixels[:size], logits

    def _compare(self, image: Pixels, expected: Logits, sizes: Logits) -> None:
        """Raise if the prepared model and the eager one disagree, at any batch size, on copies of one image."""
        if not np.isfinite(expected).all():  # the model is at fault, and the warm-up reports it
            return
        for size in self.batch_sizes:
            with np.errstate(invalid="ignore"):
                difference = np.abs(self.run([image] * size, use_all_cores=False) - expected)
            if not (difference <= _TOLERANCES[self.dtype] * sizes).all():  # also true for NaN
                advice = "VIT_COMPILE: {}; set it to false" if self._compiled else "VIT_DTYPE: {}; set it to float32"
                raise StartError(advice.format(f"logits of the prepared model are {difference.max():.2g} away from torch's"))


def _stream(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]  # likewise


def padded_sizes(max_batch_size: int) -> tuple[int, ...]:
    """Return the batch sizes to prepare: powers of two, and the maximum."""
    powers = [1 << exponent for exponent in range(max_batch_size.bit_length())]
    return tuple(sorted({*powers, max_batch_size}))


def _compile(model: EngineModel, sizes: int) -> None:
    """Compile parts of the model at their first run. All blocks share what is compiled for one of them."""
    limits = torch._dynamo.config
    limits.recompile_limit += sizes  # an engine made earlier in this process has filled its own
    if not isinstance(model, PixelModel):
        model.compile(dynamic=False)
        return
    vit = model.vit
    vit.embed = torch.compile(vit.embed, dynamic=False)  # type: ignore[method-assign]  # as torch does
    for block in vit.blocks:
        block.compile(dynamic=False)


def _with_cache(make: Callable[[], TorchCudaEngine], default: Path) -> TorchCudaEngine:
    """Compile with the cache; if that fails, compile without it and delete it, so that the next start writes a new one."""
    cache = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or default)
    filled = True
    try:
        filled = _has_files(cache)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
        return make()
    except Exception as error:
        if not filled:
            raise
        _log.warning("the cached compiled model is unusable, compiling again", directory=str(cache), reason=str(error))
    with _empty_cache():
        engine = make()
    if cache == default:
        with suppress(OSError):
            shutil.rmtree(cache) if cache.is_dir() else cache.unlink()
    return engine


def _has_files(directory: Path) -> bool:
    """Create the directory if needed, and return True if it holds anything.

    Raises:
        OSError, ValueError: it is not writable, or holds a file that would block its reader, such as a pipe.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory):
        pass
    found = list(directory.rglob("*"))
    for path in found:
        if not (path.is_file() or path.is_dir()):
            raise OSError(f"{path} is not a regular file")
    return bool(found)


@contextmanager
def _empty_cache() -> Iterator[None]:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.gettempdir()  # the import below needs a valid directory
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
    except torch.AcceleratorError as error:  # sticky: every later call on this CUDA context fails too
        raise EngineDead(str(error)) from error


@contextmanager
def _start_errors(device: torch.device, compile_model: bool, max_batch_size: int) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise StartError(f"VIT_MAX_BATCH_SIZE: {max_batch_size} images do not fit into the memory of {device}") from error
    except StartError:
        raise
    except Exception as error:  # the compiler raises exceptions of many types
        if not compile_model or lacks_memory(error):
            raise
        reason = " ".join(str(error).splitlines()[:2])  # the compiler, and its error
        raise StartError(f"VIT_COMPILE: the model cannot be compiled here, set it to false: {reason}") from error
