"""Choice of the engine for a checkpoint, by the settings and the hardware."""

import shutil
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import structlog
import torch

from app.engines import Engine
from app.engines.pixel_model import EngineModel, engine_model
from app.engines.torch_cpu import TorchCpuEngine
from app.engines.torch_cuda import make_torch_cuda_engine
from app.errors import StartError
from app.process.startup import OnStep
from model.checkpoints.checkpoint import OWN, Checkpoint

_GPU_BATCH_SIZE = 128

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
    unhurried: bool = False
    """Leave the cores to other models, which serve: what can be is done at the lowest priority."""
    lone_on_all_cores: bool = True
    """Let a batch that is alone in flight take all cores, where that needs a second copy of the weights."""


def choose_engine(checkpoint: Checkpoint, options: EngineOptions, on_step: OnStep = lambda step: None) -> Engine:
    """Make the engine, ready for its first batch. Blocks, for seconds to minutes.

    Raises:
        StartError: the device does not exist, or the requested engine does not support the other options.
    """
    on_step("preparing the engine")
    device = _device(options.device)
    if options.dtype == "int8":
        _check_int8(device, options, checkpoint)
    if options.dtype == "bfloat16":
        _check_bfloat16(device, options)
    model = engine_model(checkpoint, with_features=options.features)
    if device.type == "cuda":
        if options.engine == "openvino":
            raise StartError("VIT_ENGINE: openvino is for CPUs; set auto, or VIT_DEVICE=cpu")
        compile_model = _can_compile() if options.compile == "auto" else options.compile
        return _torch_cuda(model, device, options, on_step, compile_model=compile_model)
    if options.compile is True:
        if options.engine == "openvino":
            raise StartError("VIT_COMPILE: only torch compiles; unset it, or set VIT_ENGINE=torch")
        return _torch_cuda(model, device, options, on_step, compile_model=True)
    if options.engine == "torch" or (options.engine == "auto" and options.dtype not in ("auto", *_OPENVINO_DTYPES)):
        return _torch_cpu(model, options)
    engine = _openvino(model, options, on_step)
    if engine.name == "openvino" and faster_dtype(checkpoint, options):
        _tell_faster_dtype()
    return engine


def faster_dtype(checkpoint: Checkpoint, options: EngineOptions) -> str | None:
    """Return a sentence if nobody chose a dtype and bfloat16 would be faster on this CPU, by OpenVINO."""
    on_cpu = options.device == "cpu" or (options.device == "auto" and not torch.cuda.is_available())
    free = options.dtype == "auto" and options.engine != "torch" and options.compile is not True
    return _BFLOAT16_IS_FASTER if on_cpu and free and checkpoint.served_by == OWN and has_bfloat16() else None


@cache
def _tell_faster_dtype() -> None:
    """Log it once a process, whatever the number of models and reloads."""
    _log.info(_BFLOAT16_IS_FASTER)


def has_bfloat16() -> bool:
    """Return True if the CPU multiplies in bfloat16; without, OpenVINO emulates it at a fraction of float32's speed.

    CPUs with AMX have AVX512_BF16 too. What OpenVINO reports (`OPTIMIZATION_CAPABILITIES`) is this same bit, and a compiled
    model reports bfloat16 even if it emulates it.
    """
    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def take_one_core() -> None:
    """Have torch compute with one thread in the calling thread."""
    torch.set_num_threads(1)


def has_vnni() -> bool:
    """Return True if the CPU has VNNI, the int8 dot-product instructions without which int8 is not faster than float32."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_vnni") or capabilities.get("avx_vnni"))


def _check_int8(device: torch.device, options: EngineOptions, checkpoint: Checkpoint) -> None:
    if checkpoint.served_by != OWN:
        raise StartError(
            f"VIT_DTYPE: int8 is for Vision Transformers of vit-serve's own; {checkpoint.architecture} is run by "
            f"{checkpoint.served_by}; unset it"
        )
    if device.type == "cuda" or options.engine == "torch" or options.compile is True:
        raise StartError("VIT_DTYPE: int8 is for OpenVINO on a CPU; set VIT_DEVICE=cpu, and unset VIT_ENGINE and VIT_COMPILE")
    if not has_vnni():
        raise StartError("VIT_DTYPE: int8 is faster than float32 only on an x86 CPU with VNNI, which this one lacks; unset it")


def _check_bfloat16(device: torch.device, options: EngineOptions) -> None:
    """Raise if OpenVINO would have to emulate it."""
    if device.type == "cuda" or options.engine == "torch" or options.compile is True:
        return
    if not has_bfloat16():
        raise StartError(
            "VIT_DTYPE: bfloat16 is faster than float32 only on a CPU with AVX512_BF16, which this one lacks; unset it, or set "
            "VIT_ENGINE=torch, which is slower"
        )


def _torch_cuda(
    model: EngineModel, device: torch.device, options: EngineOptions, on_step: OnStep, *, compile_model: bool
) -> Engine:
    if compile_model:
        on_step("compiling the model")
    dtype = ("bfloat16" if device.type == "cuda" else "float32") if options.dtype == "auto" else options.dtype
    size = options.max_batch_size or _GPU_BATCH_SIZE
    return make_torch_cuda_engine(
        model, device=device, dtype=dtype, compile_model=compile_model, max_batch_size=size, cache=options.cache
    )


def _torch_cpu(model: EngineModel, options: EngineOptions) -> Engine:
    dtype = "float32" if options.dtype == "auto" else options.dtype
    return TorchCpuEngine(model, dtype=dtype, max_batch_size=_cpu_batch_size(model, options), threads=options.threads)


def _openvino(model: EngineModel, options: EngineOptions, on_step: OnStep) -> Engine:
    from app.engines.openvino import OpenVinoEngine  # a large import that GPUs do not need

    dtype = "float32" if options.dtype == "auto" else options.dtype
    if dtype not in _OPENVINO_DTYPES:
        raise StartError(f"VIT_DTYPE: OpenVINO runs in float32, bfloat16 or int8 here, not in {dtype}; set VIT_ENGINE=torch")
    size = _cpu_batch_size(model, options)
    try:
        return OpenVinoEngine(
            model,
            dtype=dtype,
            max_batch_size=size,
            threads=options.threads,
            lone_on_all_cores=options.lone_on_all_cores,
            hurry=not options.unhurried,
            cache=options.cache / "openvino",
            on_step=on_step,
        )
    except StartError as error:
        if options.engine == "openvino" or dtype != "float32":
            raise
        _log.warning("falling back to torch, which is slower", reason=str(error))
        return _torch_cpu(model, options)


def _cpu_batch_size(model: EngineModel, options: EngineOptions) -> int:
    return options.max_batch_size or model.cpu_batch_size


def _device(name: str) -> torch.device:
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise StartError(f"VIT_DEVICE: {name} does not exist; CUDA devices found: {torch.cuda.device_count()}")
    return device


def _can_compile() -> bool:
    """Return True if torch.compile has its prerequisites on CUDA, Triton and a C compiler; log the missing one."""
    missing = "Triton" if find_spec("triton") is None else "a C compiler" if shutil.which("cc") is None else None
    if missing:
        _log.info("the model is not compiled", missing=missing)
    return missing is None
