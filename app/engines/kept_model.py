"""KeptModel: a model that was converted once, with torch's logits for two images, on disk for all starts to come.

Beside OpenVINO's own two files there are the reference, which every start is compared with, and facts about the model in JSON.
Nothing is pickled.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from app.engines.artifact_cache import CachedDirectory
from app.pixels import Logits, Pixels
from model.checkpoints.tensors.regular_file import read_file

GRAPH = "model.xml"
WEIGHTS = "model.bin"
"""OpenVINO's files: it writes the weights beside the graph, and maps them into memory."""

_REFERENCE = "reference.safetensors"
_FACTS = "facts.json"
_MAX_FACTS_BYTES = 64 << 20
"""Maximum size of the facts: those of a checkpoint's configuration, labels above all, and some more."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Images, torch's output for them in float32, and the sizes by which differences from it are judged."""

    pixels: Pixels
    """(B, C, H, W) uint8."""
    output: Logits
    """(B, K + F) float32."""
    sizes: Logits
    """(K + F) float32; see `EngineModel.reference`."""


class KeptModel:
    """A converted model in a directory of the cache.

    Args:
        path: the directory, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cached = CachedDirectory(path)

    @property
    def graph(self) -> Path:
        """File that OpenVINO reads."""
        return self.path / GRAPH

    @property
    def weights(self) -> Path:
        """File that OpenVINO maps into memory."""
        return self.path / WEIGHTS

    def verify(self) -> bool:
        """Return False if nothing is there, True if it is intact; raises as `CachedDirectory.verify`."""
        self._cached.remove_stale()
        return self._cached.verify()

    def facts(self) -> dict[str, Any]:
        """Return the facts that were written.

        Raises:
            FileError, ValueError: they cannot be read.
        """
        facts = json.loads(read_file(self.path / _FACTS, _MAX_FACTS_BYTES))
        if not isinstance(facts, dict):
            raise ValueError(f"{_FACTS} is not a JSON object")
        return facts

    def reference(self) -> Reference:
        """Return the reference that was written.

        Raises:
            OSError, SafetensorError, TypeError: it cannot be read.
        """
        return Reference(**load_file(self.path / _REFERENCE))

    def write(self, save_model: Callable[[Path], None], reference: Reference, facts: Mapping[str, Any]) -> None:
        """Put a model in place of what is there.

        Args:
            save_model: writes the model, given the file of the graph.
            reference: of the model.
            facts: values that JSON has.

        Raises:
            FileError, OSError: writing failed. Exceptions of `save_model` pass through.
        """

        def write(directory: Path) -> None:
            save_model(directory / GRAPH)
            arrays: dict[str, NDArray[Any]] = {"pixels": reference.pixels, "output": reference.output, "sizes": reference.sizes}
            save_file(arrays, directory / _REFERENCE)
            (directory / _FACTS).write_text(json.dumps(facts))

        self._cached.replace(write)
