"""OpenVINO on a CPU: the model is converted at its first start and cached on disk."""

import hashlib
import sys
import threading
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import structlog
import torch

from app.engines.artifact_cache import CachedDirectory
from app.engines.memory import leave_pages
from app.engines.pixel_model import EngineModel
from app.errors import StartError
from app.pixels import Logits, Pixels
from app.process.cpu import unhurried
from app.process.startup import OnStep, lacks_memory, too_little_memory

# openvino's packages report usage statistics; with this module blocked, they skip it
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # makes the import fail
import openvino  # noqa: E402  # after the line above

from app.engines.int8 import GROUP_SIZE, quantize_weights  # noqa: E402  # imports openvino too

_CONVERSION_VERSION = 3
"""Part of the fingerprint; raise it whenever the same model would convert differently."""

_TOLERANCES = {"float32": 1e-3, "bfloat16": 0.08, "int8": 0.1}
"""Maximum difference from torch's float32 logits, relative to the largest logit, by dtype. In the Vision Transformers that were
measured bfloat16 makes up to 0.035, and int8 0.02 to 0.04 (docs/models.md); a wrong conversion is much farther off."""

_MODEL = "model.xml"
"""File of the graph."""

_WEIGHTS = "model.bin"
"""File of the weights, which OpenVINO writes beside it, and maps into memory."""

_log = structlog.get_logger(__name__)


class OpenVinoEngine:
    """The model in OpenVINO: one core per batch, or all cores, with a second compiled model, for a batch alone in flight.

    Logits are compared with torch's at every start, whether the model was just converted or came from the cache.

    Args:
        model: on the CPU, in float32; no reference to it is held.
        dtype: `float32`, `bfloat16` for a CPU that has it, or `int8` (see `int8.py`).
        max_batch_size: maximum images in a batch.
        threads: number of cores.
        lone_on_all_cores: compile the second model; without it a batch alone in flight takes one core, and there is one copy of
            the weights less.
        hurry: False leaves the cores to other models as far as it can.
        cache: directory for converted models; created if missing.
        on_step: called before a conversion.

    Raises:
        StartError: OpenVINO cannot convert or run the model, or its logits differ from torch's.
    """

    name = "openvino"
    device = "cpu"
    batch_sizes = ()
    independent_streams = True

    def __init__(
        self,
        model: EngineModel,
        *,
        dtype: str,
        max_batch_size: int,
        threads: int,
        lone_on_all_cores: bool = True,
        hurry: bool = True,
        cache: Path,
        on_step: OnStep = lambda step: None,
    ) -> None:
        self.dtype = dtype
        self.max_batch_size = max_batch_size
        self.max_concurrent_batches = threads
        self._lone_on_all_cores = lone_on_all_cores
        cached = CachedDirectory(cache / _fingerprint(model, dtype))
        reference = _reference(model, threads) if hurry else unhurried(partial(_reference, model, 1))
        cached.remove_stale()
        if self._load_cached(cached, *reference):
            return
        on_step("converting the model for OpenVINO")
        _log.info("converting the model for OpenVINO; later starts use the cache", directory=str(cached.path))
        try:
            converted = _convert(model, dtype)
            self._compile_and_compare(converted, *reference)
        except StartError:
            raise
        except Exception as error:  # torch.export and OpenVINO raise exceptions of many types
            if lacks_memory(error):
                raise too_little_memory("converting the model for OpenVINO") from error
            raise StartError(f"VIT_ENGINE: OpenVINO cannot run this model: {_reason(error)}") from error
        _save(converted, cached)

    def run(self, images: Sequence[Pixels], *, use_all_cores: bool) -> Logits:
        if use_all_cores:
            return self._infer("all_cores", self._all_cores, np.stack(images))
        return self._infer("one_core", self._one_core, np.stack(images))

    def _load_cached(self, cached: CachedDirectory, pixels: Pixels, expected: Logits, sizes: Logits) -> bool:
        """Use the cached model if there is one. A bad one costs a conversion and never stops the start."""
        try:
            if not cached.verify():
                return False
            self._compile_and_compare(openvino.Core().read_model(cached.path / _MODEL), pixels, expected, sizes)
            leave_pages(cached.path / _WEIGHTS)  # engines have their own copies in another layout
            return True
        except Exception as error:
            where, reason = str(cached.path), _reason(error)
            _log.warning("the cached OpenVINO model is unusable, converting again", directory=where, reason=reason)
            return False

    def _compile_and_compare(self, model: openvino.Model, pixels: Pixels, expected: Logits, sizes: Logits) -> None:
        self._compile(model)
        self._compare(pixels, expected, sizes)

    def _compile(self, model: openvino.Model) -> None:
        """Compile twice: with one stream per core, and with one stream over all cores."""
        self._requests = threading.local()  # new, as requests belong to the model they were created from
        model.reshape([-1, *model.inputs[0].get_partial_shape()[1:]])
        threads = self.max_concurrent_batches
        self._one_core = _compiled(model, self.dtype, streams=threads, threads=threads)
        shares = threads == 1 or not self._lone_on_all_cores
        self._all_cores = self._one_core if shares else _compiled(model, self.dtype, streams=1, threads=threads)

    def _infer(self, name: str, compiled: openvino.CompiledModel, pixels: Pixels) -> Logits:
        request = getattr(self._requests, name, None)  # one per thread
        if request is None:
            request = compiled.create_infer_request()
            setattr(self._requests, name, request)
        logits: Logits = request.infer(pixels, share_inputs=True)[0]
        return logits

    def _compare(self, pixels: Pixels, expected: Logits, sizes: Logits) -> None:
        """Raise if the output is too far from the expected one; `sizes` are defined by `EngineModel.reference`."""
        for use_all_cores in (True, False):
            with np.errstate(invalid="ignore"):
                difference = np.abs(self.run(list(pixels), use_all_cores=use_all_cores) - expected)
            if not (difference <= _TOLERANCES[self.dtype] * sizes).all():  # also true for NaN
                setting, better = ("VIT_DTYPE", "float32") if self.dtype != "float32" else ("VIT_ENGINE", "torch")
                away = f"logits of OpenVINO in {self.dtype} are {difference.max():.2g} away from torch's"
                raise StartError(f"{setting}: {away}; set {better}")


def save_for_others(model: EngineModel, file: Path) -> None:
    """Convert a model in float32 as the engine does, and save it as `.xml` with its `.bin` for another program."""
    openvino.save_model(_convert(model, "float32"), file, compress_to_fp16=False)


def _compiled(model: openvino.Model, dtype: str, *, streams: int, threads: int) -> openvino.CompiledModel:
    return openvino.Core().compile_model(
        model,
        "CPU",
        {
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bfloat16" else "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP_SIZE,  # no effect unless weights are int8
            "ENABLE_CPU_PINNING": False,  # two containers with a quota each would pin themselves to the same cores
        },
    )


def _convert(model: EngineModel, dtype: str) -> openvino.Model:
    """Convert the torch model, with a dynamic batch size."""
    pixels = torch.zeros(2, *model.image_shape, dtype=torch.uint8)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about its own code
        exported = torch.export.export(model, (pixels,), dynamic_shapes={"pixels": {0: torch.export.Dim.DYNAMIC}})
        converted = openvino.convert_model(exported)
    converted.reshape([-1, *model.image_shape])
    if dtype == "int8":
        quantize_weights(converted)
    return converted


def _save(model: openvino.Model, cached: CachedDirectory) -> None:
    try:
        cached.replace(lambda directory: openvino.save_model(model, directory / _MODEL, compress_to_fp16=False))
    except Exception as error:
        where, reason = str(cached.path), _reason(error)
        _log.warning("cannot cache the OpenVINO model; every start will convert it again", directory=where, reason=reason)


def _fingerprint(model: EngineModel, dtype: str) -> str:
    """Return a digest of the weights, the configuration, the converted dtype and the versions of the libraries.

    bfloat16 is an option of the compiler: it shares float32's conversion.
    """
    converted = "float32" if dtype == "bfloat16" else dtype
    versions = f"{_CONVERSION_VERSION} {openvino.get_version()} {torch.__version__}"
    digest = hashlib.sha256(f"{versions} {converted} {model.fingerprint}".encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()[:32]


def _reference(model: EngineModel, threads: int) -> tuple[Pixels, Logits, Logits]:
    """Return two different random images, torch's output for them, and the sizes to judge differences by."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, *model.image_shape), dtype=np.uint8)
    torch.set_num_threads(threads)
    with torch.inference_mode():
        output, sizes = model.reference(torch.from_numpy(pixels))
    expected: Logits = output.numpy()
    if not np.isfinite(expected).all():
        raise StartError("VIT_MODEL: the model gives logits that are not finite, in float32 on cpu")
    return pixels, expected, sizes.numpy()


def _reason(error: Exception) -> str:
    """Return the first line of a message that does not merely name a place in OpenVINO's source."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.startswith(("Exception from ", "Check '"))), type(error).__name__)
