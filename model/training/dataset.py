"""Labelled images on disk: a folder of class folders, or a parquet file in Hugging Face's layout."""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".avif", ".heic", ".heif", ".tif", ".tiff"})

Decode = Callable[[bytes], Image.Image]
"""Function from an encoded image to an upright RGB image."""

_SYSTEM_FILES = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
"""Names, in lower case, of files and folders that macOS and Windows create."""


class DatasetError(Exception):
    """The data set cannot be read; the message says which file and why."""


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Encoded images, each with the index of its label."""

    labels: tuple[str, ...]
    images: Sequence[bytes | Path]
    targets: Sequence[int]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> tuple[bytes, int]:
        """Return the encoded image and its class index."""
        image = self.images[index]
        return (image.read_bytes() if isinstance(image, Path) else image), self.targets[index]

    def name(self, index: int) -> str:
        """Return the path of an image, or its number if it has none."""
        image = self.images[index]
        return str(image) if isinstance(image, Path) else f"image number {index}"

    def only(self, indices: Sequence[int]) -> "LabelledImages":
        """Return a subset of the images, with all labels."""
        return LabelledImages(
            self.labels, [self.images[index] for index in indices], [self.targets[index] for index in indices]
        )


def find_images(folder: Path) -> Iterator[Path]:
    """Yield files with an image's suffix below a folder, in order, except hidden and system ones."""
    for file in sorted(folder.rglob("*")):
        wanted = file.suffix.lower() in IMAGE_SUFFIXES and not any(map(is_hidden, file.relative_to(folder).parts))
        if wanted and file.is_file():  # not a pipe, which would block its reader
            yield file


def is_hidden(name: str) -> bool:
    """Return True for a hidden file or folder, or one that an operating system creates."""
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def check_images(images: LabelledImages, decode: Decode, threads: int) -> Iterator[tuple[int, str | None]]:
    """Decode every image once. Yields each index, in order, with its fault or None."""

    def fault(index: int) -> str | None:
        try:
            decode(images.read(index)[0])
        except Exception as error:  # decoders raise exceptions of many types
            return str(error) or type(error).__name__
        return None

    pool = ThreadPoolExecutor(threads, thread_name_prefix="check")
    try:
        yield from enumerate(pool.map(fault, range(len(images))))
    finally:
        pool.shutdown(cancel_futures=True)


def load_labelled_images(path: Path) -> LabelledImages:
    """Read `path/<label>/<image>` (labels in alphabetical order), or `path` as parquet (columns `image` and `label`).

    Raises:
        DatasetError: `path` does not exist, is empty, or has neither layout.
    """
    if path.is_dir():
        return _load_folders(path)
    if path.suffix == ".parquet" and path.is_file():
        return _load_parquet(path)
    raise DatasetError(f"{path} is neither a folder of class folders nor a .parquet file")


def _load_folders(path: Path) -> LabelledImages:
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir() and not is_hidden(folder.name))
    found = [(file, target) for target, folder in enumerate(folders) for file in find_images(folder)]
    if not found:
        raise DatasetError(f"{path} has no images in class folders ({path.name}/<label>/<image>)")
    images, targets = zip(*found, strict=True)
    return LabelledImages(tuple(folder.name for folder in folders), images, targets)


def _load_parquet(path: Path) -> LabelledImages:
    try:
        import pyarrow.parquet as pq  # an optional dependency
    except ImportError:
        raise DatasetError("reading parquet needs pyarrow: pip install 'vit-serve[train]'") from None
    try:
        table = pq.read_table(path, columns=["image", "label"])
        features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
        labels = tuple(str(name) for name in features["label"]["names"])
        images = [row["bytes"] for row in table.column("image").to_pylist()]
        targets = table.column("label").to_pylist()
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise DatasetError(
            f"{path} is not in Hugging Face's layout (columns image and label, class names in the schema): {error}"
        ) from error
    if not all(0 <= target < len(labels) for target in targets):
        raise DatasetError(f"{path} has a label outside 0 to {len(labels) - 1}")
    return LabelledImages(labels, images, targets)
