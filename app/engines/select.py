"""Choice of the engine by the settings and the hardware. Imports torch only where torch computes."""

import shutil
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import structlog

from app.engines import Engine
from app.engines.hardware import has_bfloat16, has_cuda, has_vnni
from app.errors import StartError
from app.process.startup import OnStep
from model.checkpoints.description import OWN

if TYPE_CHECKING:  # importing them takes seconds
    from app.engines.openvino import OpenVinoOptions
    from app.engines.pixel_model import EngineModel
    from model.checkpoints.checkpoint import Checkpoint

_GPU_BATCH_SIZE = 128

OPENVINO = "openvino"
"""Directory of converted models in the cache."""

_OPENVINO_DTYPES = ("float32", "bfloat16", "int8")

_BFLOAT16_IS_FASTER = "VIT_DTYPE=bfloat16 is about 1.7 times as fast here"
"""As measured in docs/models.md, for CPUs that have it."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The settings that concern engines; docs/settings.md explains them."""

    engine: Literal["auto", "torch", "openvino"]
    device: str
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"]
    compile: bool | Literal["auto"]
    max_batch_size: int | None
    threads: int
    cache: Path
    features: bool = False
    """Give features beside logits."""
    low_priority: bool = False
    """Leave the cores to other models, which serve: what can be is done at the lowest priority."""
    lone_on_all_cores: bool = True
    """Let a batch that is alone in flight take all cores, where that needs a second copy of the weights."""


Kind = Literal["cuda", "compiled", "torch", "openvino"]


def kind_of_engine(options: EngineOptions) -> Kind:
    """Return what the settings and the hardware ask for.

    Raises:
        StartError: the device does not exist, or the settings do not fit each other.
    """
    on_cuda = _is_cuda(options.device)
    if options.dtype == "int8":
        _check_int8(options, on_cuda=on_cuda)
    if options.dtype == "bfloat16":
        _check_bfloat16(options, on_cuda=on_cuda)
    if on_cuda:
        if options.engine == "openvino":
            raise StartError("VIT_ENGINE: openvino is for CPUs; set auto, or VIT_DEVICE=cpu")
        return "cuda"
    if options.compile is True:
        if options.engine == "openvino":
            raise StartError("VIT_COMPILE: only torch compiles; unset it, or set VIT_ENGINE=torch")
        return "compiled"
    if options.engine == "torch" or (options.engine == "auto" and options.dtype not in ("auto", *_OPENVINO_DTYPES)):
        return "torch"
    openvino_dtype(options)
    return "openvino"


def choose_engine(checkpoint: "Checkpoint", options: EngineOptions, on_step: OnStep = lambda step: None) -> Engine:
    """Make the engine of a checkpoint in memory, ready for its first batch. Blocks, for seconds to minutes.

    Raises:
        StartError: the device does not exist, or the requested engine does not support the other options.
    """
    from app.engines.pixel_model import engine_model

    on_step("preparing the engine")
    kind = kind_of_engine(options)
    check_dtype_of(checkpoint.architecture, checkpoint.served_by, options.dtype)
    model = engine_model(checkpoint, with_features=options.features)
    if kind in ("cuda", "compiled"):
        return _torch_cuda(model, kind, options, on_step)
    if kind == "torch":
        return _torch_cpu(model, options)
    try:
        engine = _openvino(model, options, on_step)
    except StartError as error:
        if not may_fall_back(options):
            raise
        return fall_back(checkpoint, options, error)
    tell_faster_dtype(checkpoint.served_by, options)
    return engine


def check_dtype_of(architecture: str, served_by: str, dtype: str) -> None:
    """Refuse a dtype that a library's models do not have.

    Raises:
        StartError: they are not quantized.
    """
    if dtype == "int8" and served_by != OWN:
        raise StartError(
            f"VIT_DTYPE: int8 is for Vision Transformers of vit-serve's own; {architecture} is run by {served_by}; unset it"
        )


def openvino_dtype(options: EngineOptions) -> str:
    """Return the dtype that OpenVINO is asked for.

    Raises:
        StartError: it has no such.
    """
    dtype = "float32" if options.dtype == "auto" else options.dtype
    if dtype not in _OPENVINO_DTYPES:
        raise StartError(f"VIT_DTYPE: OpenVINO runs in float32, bfloat16 or int8 here, not in {dtype}; set VIT_ENGINE=torch")
    return dtype


def openvino_options(options: EngineOptions, batch_size: int) -> "OpenVinoOptions":
    """Return how OpenVINO runs a model.

    Args:
        options: the settings.
        batch_size: the model's own, for settings that name none.
    """
    from app.engines.openvino import OpenVinoOptions

    return OpenVinoOptions(
        openvino_dtype(options),
        options.max_batch_size or batch_size,
        options.threads,
        options.lone_on_all_cores,
        low_priority=options.low_priority,
    )


def may_fall_back(options: EngineOptions) -> bool:
    """Return True if torch may serve what OpenVINO cannot."""
    return options.engine != "openvino" and openvino_dtype(options) == "float32"


def fall_back(checkpoint: "Checkpoint", options: EngineOptions, why: StartError) -> Engine:
    """Have torch serve what OpenVINO cannot."""
    from app.engines.pixel_model import engine_model

    _log.warning("falling back to torch, which is slower", reason=str(why))
    return _torch_cpu(engine_model(checkpoint, with_features=options.features), options)


def faster_dtype(served_by: str, options: EngineOptions) -> str | None:
    """Return a sentence if nobody chose a dtype and bfloat16 would be faster on this CPU, by OpenVINO.

    Args:
        served_by: what runs the model: not every model of a library gains.
        options: the settings.
    """
    on_cpu = options.device == "cpu" or (options.device == "auto" and not has_cuda())
    free = options.dtype == "auto" and options.engine != "torch" and options.compile is not True
    return _BFLOAT16_IS_FASTER if on_cpu and free and served_by == OWN and has_bfloat16() else None


def tell_faster_dtype(served_by: str, options: EngineOptions) -> None:
    """Log `faster_dtype`, if there is one."""
    if faster_dtype(served_by, options):
        _tell_faster_dtype()


@cache
def _tell_faster_dtype() -> None:
    """Log it once a process, whatever the number of models and reloads."""
    _log.info(_BFLOAT16_IS_FASTER)


def take_cores(threads: int) -> None:
    """Have torch compute with so many threads in the calling thread."""
    import torch

    torch.set_num_threads(threads)


def _check_int8(options: EngineOptions, *, on_cuda: bool) -> None:
    if on_cuda or options.engine == "torch" or options.compile is True:
        raise StartError("VIT_DTYPE: int8 is for OpenVINO on a CPU; set VIT_DEVICE=cpu, and unset VIT_ENGINE and VIT_COMPILE")
    if not has_vnni():
        raise StartError("VIT_DTYPE: int8 is faster than float32 only on an x86 CPU with VNNI, which this one lacks; unset it")


def _check_bfloat16(options: EngineOptions, *, on_cuda: bool) -> None:
    """Raise if OpenVINO would have to emulate it."""
    if on_cuda or options.engine == "torch" or options.compile is True:
        return
    if not has_bfloat16():
        raise StartError(
            "VIT_DTYPE: bfloat16 is faster than float32 only on a CPU with AVX512_BF16, which this one lacks; unset it, or set "
            "VIT_ENGINE=torch, which is slower"
        )


def _torch_cuda(model: "EngineModel", kind: Kind, options: EngineOptions, on_step: OnStep) -> Engine:
    import torch

    from app.engines.torch_cuda import make_torch_cuda_engine

    device = torch.device("cpu" if kind == "compiled" else "cuda" if options.device == "auto" else options.device)
    compile_model = _can_compile() if options.compile == "auto" else options.compile
    if compile_model:
        on_step("compiling the model")
    dtype = ("bfloat16" if kind == "cuda" else "float32") if options.dtype == "auto" else options.dtype
    size = options.max_batch_size or _GPU_BATCH_SIZE
    return make_torch_cuda_engine(
        model, device=device, dtype=dtype, compile_model=compile_model, max_batch_size=size, cache=options.cache
    )


def _torch_cpu(model: "EngineModel", options: EngineOptions) -> Engine:
    from app.engines.torch_cpu import TorchCpuEngine

    dtype = "float32" if options.dtype == "auto" else options.dtype
    size = options.max_batch_size or model.cpu_batch_size
    return TorchCpuEngine(model, dtype=dtype, max_batch_size=size, threads=options.threads)


def _openvino(model: "EngineModel", options: EngineOptions, on_step: OnStep) -> Engine:
    from app.engines.conversion import openvino_engine  # a large import that GPUs do not need

    run = openvino_options(options, model.cpu_batch_size)
    return openvino_engine(model, run, options.cache / OPENVINO, on_step)


def _is_cuda(name: str) -> bool:
    if name == "cpu" or (name == "auto" and not has_cuda()):
        return False
    import torch

    if (torch.device("cuda" if name == "auto" else name).index or 0) >= torch.cuda.device_count():
        raise StartError(f"VIT_DEVICE: {name} does not exist; CUDA devices found: {torch.cuda.device_count()}")
    return True


def _can_compile() -> bool:
    """Return True if torch.compile has its prerequisites on CUDA, Triton and a C compiler; log the missing one."""
    missing = "Triton" if find_spec("triton") is None else "a C compiler" if shutil.which("cc") is None else None
    if missing:
        _log.info("the model is not compiled", missing=missing)
    return missing is None
