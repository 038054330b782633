"""OpenVINO on a CPU: the same model, converted when it is first served, and kept on disk."""

import hashlib
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import structlog
import torch

from app.engines.artifact_cache import KeptDirectory
from app.engines.pixel_model import PixelModel
from app.errors import StartError
from app.pixels import Logits, Pixels
from app.process.startup import OnStep, lacks_memory, too_little_memory

# openvino's packages report their use to their maker. A service has no business there, and goes without: they do, too.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # how an import is refused
import openvino  # noqa: E402

from app.engines.int8 import GROUP_SIZE, round_weights  # noqa: E402  # it imports openvino, too

_CONVERSION = 2
"""To be raised when what is kept on disk would be made otherwise."""

_TOLERANCES = {"float32": 1e-3, "int8": 0.1}
"""Of the largest logit: how far those of OpenVINO may be from torch's in float32, by the dtype. Rounding to int8 makes 0.02
to 0.04 (docs/models.md); what was converted wrong is much farther away."""

_MODEL = "model.xml"
"""Beside it, OpenVINO writes `model.bin` with the weights."""

_log = structlog.get_logger(__name__)


class OpenVinoEngine:
    """The model in OpenVINO, one core a run. A run that is alone gets all cores, from a second copy of the model.

    The converted model is checked against torch at every start, whether it was just made or was kept.

    Args:
        model: on the CPU, in float32. Not kept.
        dtype: `float32`, or `int8` as `int8.py` has it.
        max_batch_size: images in one run.
        threads: cores.
        cache: directory where the converted model is kept; made if it is not there.
        on_step: told when it has to be converted.

    Raises:
        StartError: the model cannot be converted, or its logits are not torch's.
    """

    name = "openvino"
    device = "cpu"
    batch_sizes = ()
    independent_streams = True

    def __init__(
        self,
        model: PixelModel,
        *,
        dtype: str,
        max_batch_size: int,
        threads: int,
        cache: Path,
        on_step: OnStep = lambda step: None,
    ) -> None:
        self.dtype = dtype
        self.max_batch_size = max_batch_size
        self.max_concurrent_batches = threads
        kept = KeptDirectory(cache / _fingerprint(model, dtype))
        reference = _reference(model, threads)
        kept.sweep()
        if self._find(kept, *reference):
            return
        on_step("converting the model for OpenVINO")
        _log.info("converting the model for OpenVINO; the next start finds it", directory=str(kept.path))
        try:
            converted = _convert(model, dtype)
            self._take(converted, *reference)
        except StartError:
            raise
        except Exception as error:  # torch.export and OpenVINO raise whatever they like
            if lacks_memory(error):
                raise too_little_memory("converting the model for OpenVINO") from error
            raise StartError(f"VIT_ENGINE: OpenVINO cannot run this model: {_reason(error)}") from error
        _keep(converted, kept)

    def _find(self, kept: KeptDirectory, pixels: Pixels, expected: Logits, size: float) -> bool:
        """Take the model that was kept. Whatever is wrong with it costs a conversion, and never the start."""
        try:
            if not kept.find():
                return False
            self._take(openvino.Core().read_model(kept.path / _MODEL), pixels, expected, size)
            return True
        except Exception as error:
            where, reason = str(kept.path), _reason(error)
            _log.warning("the kept OpenVINO model cannot be used, converting again", directory=where, reason=reason)
            return False

    def _take(self, model: openvino.Model, pixels: Pixels, expected: Logits, size: float) -> None:
        """Compile a model and check that its logits are the expected ones."""
        self._compile(model)
        self._compare(pixels, expected, size)

    def run(self, images: Sequence[Pixels], *, use_all_cores: bool) -> Logits:
        if use_all_cores:
            return self._infer("wide", self._wide, np.stack(images))
        return self._infer("narrow", self._narrow, np.stack(images))

    def _compile(self, model: openvino.Model) -> None:
        """`narrow` runs in as many streams as there are cores, `wide` once in all of them."""
        self._requests = threading.local()  # of this model, not of one that was tried before
        model.reshape([-1, *model.inputs[0].get_partial_shape()[1:]])
        threads = self.max_concurrent_batches
        self._narrow = _compiled(model, streams=threads, threads=threads)
        self._wide = self._narrow if threads == 1 else _compiled(model, streams=1, threads=threads)

    def _infer(self, name: str, compiled: openvino.CompiledModel, pixels: Pixels) -> Logits:
        request = getattr(self._requests, name, None)  # each thread has its own
        if request is None:
            request = compiled.create_infer_request()
            setattr(self._requests, name, request)
        logits: Logits = request.infer(pixels, share_inputs=True)[0]
        return logits

    def _compare(self, pixels: Pixels, expected: Logits, size: float) -> None:
        for use_all_cores in (True, False):
            with np.errstate(invalid="ignore"):
                difference = np.abs(self.run(list(pixels), use_all_cores=use_all_cores) - expected).max()
            if not difference <= _TOLERANCES[self.dtype] * size:  # nor is NaN
                setting, better = ("VIT_DTYPE", "float32") if self.dtype == "int8" else ("VIT_ENGINE", "torch")
                away = f"logits of OpenVINO in {self.dtype} are {difference:.2g} away from torch's"
                raise StartError(f"{setting}: {away}; take {better}")


def _compiled(model: openvino.Model, *, streams: int, threads: int) -> openvino.CompiledModel:
    return openvino.Core().compile_model(
        model,
        "CPU",
        {
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP_SIZE,  # says nothing to a model whose weights are not int8
            "ENABLE_CPU_PINNING": False,  # two containers with a quota each would pin themselves to the same cores
        },
    )


def _convert(model: PixelModel, dtype: str) -> openvino.Model:
    """torch -> OpenVINO, for any number of images."""
    pixels = torch.zeros(2, *model.image_shape, dtype=torch.uint8)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own code about itself
        exported = torch.export.export(model, (pixels,), dynamic_shapes={"pixels": {0: torch.export.Dim.DYNAMIC}})
        converted = openvino.convert_model(exported)
    converted.reshape([-1, *model.image_shape])
    if dtype == "int8":
        round_weights(converted)
    return converted


def _keep(model: openvino.Model, kept: KeptDirectory) -> None:
    try:
        kept.keep(lambda directory: openvino.save_model(model, directory / _MODEL, compress_to_fp16=False))
    except Exception as error:
        where, reason = str(kept.path), _reason(error)
        _log.warning("the OpenVINO model cannot be kept; every start will convert it again", directory=where, reason=reason)


def _fingerprint(model: PixelModel, dtype: str) -> str:
    """A name that no other weights, model, dtype or version of the libraries has."""
    digest = hashlib.sha256(f"{_CONVERSION} {openvino.get_version()} {torch.__version__} {dtype} {model.config}".encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()[:32]


def _reference(model: PixelModel, threads: int) -> tuple[Pixels, Logits, float]:
    """Two images, each unlike the other, their logits by torch, and the size of these."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, *model.image_shape), dtype=np.uint8)
    torch.set_num_threads(threads)
    with torch.inference_mode():
        found, size = model.reference(torch.from_numpy(pixels))
    logits: Logits = found.numpy()
    if not np.isfinite(logits).all():
        raise StartError("VIT_MODEL: the model gives logits that are not finite, in float32 on cpu")
    return pixels, logits, size


def _reason(error: Exception) -> str:
    """Return what an error says, without the lines in which OpenVINO tells where it arose."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.startswith(("Exception from ", "Check '"))), type(error).__name__)
