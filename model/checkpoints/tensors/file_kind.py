"""Kind of a weights file, told by its first bytes: suffixes lie."""

import zipfile
from pathlib import Path
from typing import Literal

from model.checkpoints.tensors.regular_file import open_regular

Kind = Literal["safetensors", "torch"]

_ADVICE = "save the model's state dict by torch.save or as safetensors"

_LEGACY = b"l\xfc\x9cF\xf9 j\xa8P\x19"
"""The number that torch.save began files with until version 1.6."""

_FOREIGN = {
    b"GGUF": f"it is GGUF, a format of llama.cpp; {_ADVICE}",
    b"\x89HDF": f"it is HDF5, as Keras and TensorFlow write it; {_ADVICE}",
    b"\x93NUMPY": f"it is an array of NumPy's; {_ADVICE}",
    b"\x1f\x8b": "it is compressed by gzip: unpack it",
    b"version https://git-lfs": "it is a pointer of Git LFS, not the file itself: fetch that with git lfs pull",
    b"<!doctype html": "it is a web page (HTML), not weights: download the file itself",
    b"<html": "it is a web page (HTML), not weights: download the file itself",
    b"<?xml": "it is XML, such as a server's error: download the file again",
}
"""First bytes of other kinds of files -> the kind, and what to do; in lower case."""

_FOREIGN_SUFFIXES = {
    ".onnx": "ONNX",
    ".tflite": "TensorFlow Lite",
    ".pb": "TensorFlow",
    ".h5": "Keras or TensorFlow",
    ".keras": "Keras",
    ".msgpack": "Flax",
    ".gguf": "GGUF",
}
"""Formats that are not told by their first bytes, or that stand beside a configuration."""

SUFFIXES = frozenset({".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", *_FOREIGN_SUFFIXES})
"""Endings that a file's name has, and no model's on a hub."""


def kind_of(path: Path) -> Kind:
    """Tell which library can read a file.

    Raises:
        ValueError: neither can; the message says what the file is, as far as that shows, and what to do.
        FileError: it cannot be read.
    """
    with open_regular(path) as file:
        start = file.read(512)
    if not start:
        raise ValueError("it is empty (0 bytes); copy or download it again")
    if start[4:9] == b"\0\0\0\0{":  # a header after its length, which can begin as any other file does
        return "safetensors"
    for beginning, what in _FOREIGN.items():
        if start.lstrip().lower().startswith(beginning.lower()):
            raise ValueError(what)
    if start.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    if _LEGACY in start:
        return "torch"
    if start.startswith(b"\x80"):
        raise ValueError(f"it is a pickle that torch.save did not write; {_ADVICE}")
    if start.lstrip().startswith((b"{", b"[")):
        raise ValueError("it is JSON, not weights: name the folder that it is in, or the weights beside it")
    format_ = foreign_format(path)
    if format_ is not None:
        raise ValueError(f"it is a file of {format_}, by its name; {_ADVICE}")
    if start[257:262] == b"ustar":
        raise ValueError("it is a tar archive: unpack it")
    raise ValueError("it is neither safetensors nor a file that torch.save wrote; copy or download it again")


def foreign_format(path: Path) -> str | None:
    """Return the format that a file's name tells, if it is one that is not read here."""
    return _FOREIGN_SUFFIXES.get(path.suffix.lower())


def _kind_of_zip(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        raise ValueError("it is cut off, or damaged; copy or download it again") from None
    if any(name.endswith("/constants.pkl") for name in names):
        raise ValueError(f"it is TorchScript, which is a program; {_ADVICE}")
    if any(name.endswith("data.pkl") for name in names):
        return "torch"
    if any(name.endswith(".npy") for name in names):
        raise ValueError(f"it is an archive of NumPy's arrays; {_ADVICE}")
    if any(name.endswith(".h5") for name in names):
        raise ValueError(f"it is a model of Keras; {_ADVICE}")
    raise ValueError(f"it is a zip archive with {names[0] if names else 'nothing'} in it, not weights: unpack it")
