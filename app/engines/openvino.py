"""OpenVINO on a CPU, for a model that was converted (`conversion.py`) and kept on disk (`kept_model.py`). Needs no torch."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import openvino
import structlog

from app.engines.kept_model import KeptModel, Reference
from app.engines.memory import leave_pages
from app.errors import StartError
from app.pixels import Logits, Pixels
from app.process.startup import lacks_memory, too_little_memory

GROUP_SIZE = 64
"""Activations per scale of int8. Published ViTs' widths are multiples of 64; smaller groups are more exact, larger faster."""

_TOLERANCES = {"float32": 1e-3, "bfloat16": 0.08, "int8": 0.1}
"""Maximum difference from torch's float32 logits, relative to the largest logit, by dtype. In the Vision Transformers that were
measured bfloat16 makes up to 0.035, and int8 0.02 to 0.04 (docs/models.md); a wrong conversion is much farther off."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class OpenVinoOptions:
    """Options of one model."""

    dtype: str
    """`float32`, `bfloat16` for a CPU that has it, or `int8` (see `int8.py`)."""
    max_batch_size: int
    """Maximum images in a batch."""
    threads: int
    """Number of cores."""
    lone_on_all_cores: bool = True
    """Compile a second model for an image that is alone in flight; without it that takes one core, and there is one copy of the
    weights less."""
    low_priority: bool = False
    """Leave cores to other models while this one is compiled."""


class OpenVinoEngine:
    """The model in OpenVINO: one core per batch, or all cores, with a second compiled model, for an image alone in flight.

    Logits are compared with torch's at every start, whether the model was just converted or came from the cache.

    Args:
        model: with a dynamic batch size; no reference to it is held.
        reference: what torch computed.
        options: how to run it.

    Raises:
        StartError: OpenVINO cannot run the model, or its logits differ from torch's.
    """

    name = "openvino"
    device = "cpu"
    batch_sizes = ()
    independent_streams = True

    def __init__(self, model: openvino.Model, reference: Reference, options: OpenVinoOptions) -> None:
        self.dtype = options.dtype
        self.max_batch_size = options.max_batch_size
        self.max_concurrent_batches = options.threads
        self._requests = threading.local()
        with explained():
            self._compile(model, options)
            self._compare(reference)

    def run(self, images: Sequence[Pixels], *, use_all_cores: bool) -> Logits:
        if use_all_cores and len(images) == 1:
            return self._infer("lone", self._lone, np.stack(images))
        return self._infer("batches", self._batches, np.stack(images))

    def _compile(self, model: openvino.Model, options: OpenVinoOptions) -> None:
        """Compile twice, at once: with one stream per core for batches of any size, and over all cores for one image.

        The second has a fixed shape: it answers the same, and sooner, because no layer has to look at sizes.
        """
        image_shape, threads = model.inputs[0].get_partial_shape()[1:], options.threads
        model.reshape([-1, *image_shape])
        streams = {model: threads}
        if threads > 1 and options.lone_on_all_cores:
            lone = model.clone()
            lone.reshape([1, *image_shape])
            streams[lone] = 1
        with ThreadPoolExecutor(1 if options.low_priority else 2, thread_name_prefix="compile") as pool:  # each takes one core
            self._batches, *others = pool.map(partial(_compiled, options.dtype, threads), streams, streams.values())
        self._lone = others[0] if others else self._batches

    def _infer(self, name: str, compiled: openvino.CompiledModel, pixels: Pixels) -> Logits:
        request = getattr(self._requests, name, None)  # one per thread
        if request is None:
            request = compiled.create_infer_request()
            setattr(self._requests, name, request)
        logits: Logits = request.infer(pixels, share_inputs=True)[0]
        return logits

    def _compare(self, reference: Reference) -> None:
        """Raise if the output is too far from torch's."""
        together = self.run(list(reference.pixels), use_all_cores=False)
        alone = np.concatenate([self.run([pixels], use_all_cores=True) for pixels in reference.pixels])
        for output in (together, alone):
            with np.errstate(invalid="ignore"):
                difference = np.abs(output - reference.output)
            if not (difference <= _TOLERANCES[self.dtype] * reference.sizes).all():  # also true for NaN
                setting, better = ("VIT_DTYPE", "float32") if self.dtype != "float32" else ("VIT_ENGINE", "torch")
                away = f"logits of OpenVINO in {self.dtype} are {difference.max():.2g} away from torch's"
                raise StartError(f"{setting}: {away}; set {better}")


def load_kept(kept: KeptModel, options: OpenVinoOptions) -> OpenVinoEngine:
    """Make the engine of a model that is kept, and was verified.

    Raises:
        Exception: of any kind, if it cannot be used; `warn_unusable` tells it in one line.
    """
    engine = OpenVinoEngine(openvino.Core().read_model(kept.graph), kept.reference(), options)
    leave_pages(kept.weights)  # it has its own copies in another layout; its first batches read some again
    return engine


def warn_unusable(kept: KeptModel, error: Exception) -> None:
    """Log that a model is kept, but costs a conversion; it never stops a start."""
    _log.warning(
        "the cached OpenVINO model is unusable, converting again", directory=str(kept.path), reason=first_reason(error)
    )


def log_conversion(directory: Path) -> None:
    """Log that a model is being converted, to be kept there."""
    _log.info("converting the model for OpenVINO; later starts use the cache", directory=str(directory))


def warn_uncached(directory: Path, reason: str) -> None:
    """Log that a conversion could not be kept."""
    _log.warning("cannot cache the OpenVINO model; every start will convert it again", directory=str(directory), reason=reason)


def converted_dtype(dtype: str) -> str:
    """Return the dtype that a model is converted in: bfloat16 is an option of the compiler, and shares float32's conversion."""
    return "float32" if dtype == "bfloat16" else dtype


@contextmanager
def explained() -> Iterator[None]:
    """Say in one sentence why OpenVINO cannot run a model."""
    try:
        yield
    except StartError:
        raise
    except Exception as error:  # torch.export and OpenVINO raise exceptions of many types
        if lacks_memory(error):
            raise too_little_memory("converting the model for OpenVINO") from error
        raise StartError(f"VIT_ENGINE: OpenVINO cannot run this model: {first_reason(error)}") from error


def first_reason(error: Exception) -> str:
    """Return the first line of a message that does not merely name a place in OpenVINO's source."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.startswith(("Exception from ", "Check '"))), type(error).__name__)


def _compiled(dtype: str, threads: int, model: openvino.Model, streams: int) -> openvino.CompiledModel:
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
