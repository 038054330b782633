"""Conversion of a torch model for OpenVINO, with the output of torch that every start compares it with."""

import hashlib
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch

from app.engines.int8 import quantize_weights
from app.engines.kept_model import KeptModel, Reference
from app.engines.openvino import (
    OpenVinoEngine,
    OpenVinoOptions,
    converted_dtype,
    explained,
    first_reason,
    load_kept,
    log_conversion,
    warn_uncached,
    warn_unusable,
)
from app.engines.pixel_model import EngineModel
from app.errors import StartError
from app.process.cpu import at_lowest_priority
from app.process.startup import OnStep

_CONVERSION_VERSION = 4
"""Part of the fingerprint; raise it whenever the same model would convert differently."""


class Conversion:
    """A model converted for OpenVINO, which runs it, with answers near torch's.

    Args:
        model: on the CPU, in float32; no reference to it is held.
        options: how it is run.

    Raises:
        StartError: OpenVINO cannot convert or run the model, or its logits differ from torch's.
    """

    def __init__(self, model: EngineModel, options: OpenVinoOptions) -> None:
        if options.low_priority:
            self._reference = at_lowest_priority(partial(_reference, model, 1))
        else:
            self._reference = _reference(model, options.threads)
        with explained():
            self._model = _convert(model, options.dtype)
            self.engine = OpenVinoEngine(self._model, self._reference, options)

    def keep(self, kept: KeptModel, facts: Mapping[str, Any]) -> None:
        """Write it, with facts about it, for later starts; raises as `KeptModel.write`."""
        kept.write(partial(openvino.save_model, self._model, compress_to_fp16=False), self._reference, facts)


def openvino_engine(
    model: EngineModel, options: OpenVinoOptions, cache: Path, on_step: OnStep = lambda step: None
) -> OpenVinoEngine:
    """Make the engine of a model in memory: of what the cache keeps of it, or by a `Conversion`, which is kept then.

    Args:
        model: on the CPU, in float32; no reference to it is held.
        options: how it is run.
        cache: directory for converted models; created if missing.
        on_step: called before a conversion.

    Raises:
        StartError: as `Conversion`.
    """
    kept = KeptModel(cache / _fingerprint(model, options.dtype))
    try:
        if kept.verify():
            return load_kept(kept, options)
    except Exception as error:
        warn_unusable(kept, error)
    on_step("converting the model for OpenVINO")
    log_conversion(kept.path)
    conversion = Conversion(model, options)
    try:
        conversion.keep(kept, {})
    except Exception as error:
        warn_uncached(kept.path, first_reason(error))
    return conversion.engine


def save_for_others(model: EngineModel, file: Path) -> None:
    """Convert a model in float32 as the engine does, and save it as `.xml` with its `.bin` for another program."""
    openvino.save_model(_convert(model, "float32"), file, compress_to_fp16=False)


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


def _fingerprint(model: EngineModel, dtype: str) -> str:
    """Return a digest of the weights, the configuration, the converted dtype and the versions of the libraries."""
    versions = f"{_CONVERSION_VERSION} {openvino.get_version()} {torch.__version__}"
    digest = hashlib.sha256(f"{versions} {converted_dtype(dtype)} {model.fingerprint}".encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()[:32]


def _reference(model: EngineModel, threads: int) -> Reference:
    """Return two different random images, torch's output for them, and the sizes to judge differences by."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, *model.image_shape), dtype=np.uint8)
    torch.set_num_threads(threads)
    with torch.inference_mode():
        output, sizes = model.reference(torch.from_numpy(pixels))
    if not output.isfinite().all():
        raise StartError("VIT_MODEL: the model gives logits that are not finite, in float32 on cpu")
    return Reference(pixels, output.numpy(), sizes.contiguous().numpy())
