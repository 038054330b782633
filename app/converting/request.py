"""ConversionRequest: a checkpoint, how it is loaded, and the key of its conversion in the cache. Needs no torch."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Self

import app.engines
import model
from app.errors import StartError
from model.checkpoints.files import CheckpointError, files_of
from model.checkpoints.location import Location
from model.checkpoints.tensors.regular_file import FileError, open_regular

_PACKAGES = ("numpy", "openvino", "safetensors", "timm", "torch", "torchvision", "transformers")
"""Packages that read, run or convert models."""

_CODE = (Path(model.__file__).parent, Path(app.engines.__file__).parent, Path(__file__).parent)
"""Folders of all of our code, and of published tables, that a conversion depends on."""

_KEY_LENGTH = 32


@dataclass(frozen=True, slots=True)
class ConversionRequest:
    """A conversion to make. All fields but the last three decide its result."""

    location: Location
    architecture: str | None
    image_size: int | None
    activation: str
    library: str
    features: bool
    """Give features beside logits."""
    dtype: Literal["float32", "int8"]
    run_dtype: str
    """Dtype in which the result is compared with torch's: `bfloat16` is a float32 that OpenVINO runs otherwise."""
    threads: int
    low_priority: bool
    """Leave the cores to others."""

    def key(self) -> str | None:
        """Return a digest of all that the conversion depends on; None if a file cannot be read. Blocks, for a second a GB.

        That is the content of every file that may be read, the settings that change what is loaded, the versions of the
        libraries, and our own code.
        """
        place = self.location
        fields: dict[str, Any] = {
            "code": digest_of_code(),
            "versions": {name: _version(name) for name in _PACKAGES},
            "names": [place.hub_name, place.path.name, place.path.resolve().name, place.path.is_dir()],
            "settings": [self.architecture, self.image_size, self.activation, self.library, self.features, self.dtype],
        }
        try:
            fields["files"] = [(file.name, _digest(file)) for file in files_of(place.path)]
        except (CheckpointError, FileError, OSError, ValueError):
            return None  # whoever loads it says what is wrong
        return hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:_KEY_LENGTH]

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return fields | {"location": asdict(self.location) | {"path": str(self.location.path)}}

    @classmethod
    def of_json(cls, fields: dict[str, Any]) -> Self:
        """Return the request that `as_json` gave."""
        location = Location(**fields["location"])
        return cls(**{**fields, "location": replace(location, path=Path(location.path))})


@cache
def digest_of_code() -> str:
    """Return a digest of our own code that reads checkpoints and converts them, with its tables."""
    digest = hashlib.sha256()
    for folder, file in _files_of_code():
        digest.update(f"{file} {_digest(folder / file)}\n".encode())
    return digest.hexdigest()


def _files_of_code() -> Iterator[tuple[Path, Path]]:
    for folder in _CODE:
        for file in sorted(folder.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts and "training" not in file.parts:
                yield folder, file.relative_to(folder)


def _digest(file: Path) -> str:
    with open_regular(file) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def explained_checkpoint_error(error: CheckpointError) -> StartError:
    """Return the error with the setting that it is about."""
    return StartError(f"VIT_{(error.field or 'model').upper()}: {error}")
