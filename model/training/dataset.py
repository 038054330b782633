"""Labelled pictures on disk: a folder of class folders, or a parquet file in Hugging Face's layout."""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".avif", ".heic", ".heif", ".tif", ".tiff"})

Decode = Callable[[bytes], Image.Image]
"""Decodes an encoded image to RGB, upright."""

_LEFT_BY_SYSTEMS = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
"""Names, in lower case, that macOS and Windows put among other people's files."""


class DatasetError(Exception):
    """A data set that cannot be read; the message says which file and why."""


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Pictures as encoded bytes, each with the index of its label."""

    labels: tuple[str, ...]
    images: Sequence[bytes | Path]
    targets: Sequence[int]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> tuple[bytes, int]:
        """The encoded picture and its class index."""
        image = self.images[index]
        return (image.read_bytes() if isinstance(image, Path) else image), self.targets[index]

    def name(self, index: int) -> str:
        """The path of a picture, or its number where it has none."""
        image = self.images[index]
        return str(image) if isinstance(image, Path) else f"picture number {index}"

    def only(self, indices: Sequence[int]) -> "LabelledImages":
        """A part of the pictures, with all labels."""
        return LabelledImages(
            self.labels, [self.images[index] for index in indices], [self.targets[index] for index in indices]
        )


def pictures_in(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder that are named as pictures, in order, without hidden ones and systems' own."""
    for file in sorted(folder.rglob("*")):
        wanted = file.suffix.lower() in IMAGE_SUFFIXES and not any(map(is_hidden, file.relative_to(folder).parts))
        if wanted and file.is_file():  # a pipe would be waited for
            yield file


def is_hidden(name: str) -> bool:
    """Tell whether a file or folder is hidden, or one that a system leaves behind."""
    return name.startswith(".") or name.lower() in _LEFT_BY_SYSTEMS


def find_bad_pictures(images: LabelledImages, decode: Decode, threads: int) -> Iterator[tuple[int, str | None]]:
    """Decode every picture once. Yields each index, in order, with what is wrong with it, or None."""

    def fault(index: int) -> str | None:
        try:
            decode(images.read(index)[0])
        except Exception as error:  # decoders raise whatever they like
            return str(error) or type(error).__name__
        return None

    pool = ThreadPoolExecutor(threads, thread_name_prefix="check")
    try:
        yield from enumerate(pool.map(fault, range(len(images))))
    finally:
        pool.shutdown(cancel_futures=True)


def load_labelled_images(path: Path) -> LabelledImages:
    """Read `path/<label>/<picture>` (labels in alphabetical order), or `path` as parquet (columns `image` and `label`).

    Raises:
        DatasetError: nothing there, or not in one of the two layouts.
    """
    if path.is_dir():
        return _load_folders(path)
    if path.suffix == ".parquet" and path.is_file():
        return _load_parquet(path)
    raise DatasetError(f"{path} is neither a folder of class folders nor a .parquet file")


def _load_folders(path: Path) -> LabelledImages:
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir() and not is_hidden(folder.name))
    found = [(file, target) for target, folder in enumerate(folders) for file in pictures_in(folder)]
    if not found:
        raise DatasetError(f"{path} has no pictures in class folders ({path.name}/<label>/<picture>)")
    images, targets = zip(*found, strict=True)
    return LabelledImages(tuple(folder.name for folder in folders), images, targets)


def _load_parquet(path: Path) -> LabelledImages:
    try:
        import pyarrow.parquet as pq  # only training and evaluation need it: pip install vit-serve[train]
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
