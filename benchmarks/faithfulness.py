"""Faithfulness of explanations: how fast the predicted class's probability falls and rises with the patches named first.

python -m benchmarks.faithfulness IMAGES [--count N] [--image-size S]

IMAGES is a folder of images, or a parquet file in Hugging Face's layout.

Deletion replaces patches by the mean colour, the most relevant first, and insertion puts them into an image of that colour
(Petsiuk, Das and Saenko, https://arxiv.org/abs/1806.07421). The area under the probability is small for deletion, and large for
insertion, if the patches named first are those that the model needs. A random order is the comparison.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.decoding.pool.select import image_decoder
from app.process.logs import configure_logging
from app.settings import BUNDLED_MODEL, read_settings
from benchmarks import machine
from model.checkpoints.checkpoint import Checkpoint, load_checkpoint
from model.head import probabilities
from model.relevance import RecordedModel
from model.training.dataset import load_labelled_images
from model.vit import VisionTransformer

_STEPS = 12
_BATCH = 32
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}

ORDERS = ("relevance", "rollout", "random")

Areas = NDArray[np.float64]
"""(orders, 2): the area under the curve of deletion, and of insertion, between 0 and 1."""


class Judge:
    """Measures explanations of one checkpoint, by torch in float32 on the CPU."""

    def __init__(self, model: str, image_size: int | None = None, steps: int = _STEPS) -> None:
        self._steps = steps
        self._plain, checkpoint = _loaded(model, image_size)
        self._recorded = RecordedModel(_loaded(model, image_size)[0])
        self._activation = checkpoint.activation
        self._preprocessing = checkpoint.preprocessing
        self._decode = image_decoder(read_settings(), checkpoint.preprocessing).decode
        self._generator = torch.Generator().manual_seed(0)

    def areas(self, image_bytes: bytes) -> Areas:
        """Return the areas of one encoded image for each of `ORDERS`."""
        image = self._normalised(image_bytes)
        recording = self._recorded.run(image)
        index = int(recording.output.argmax())
        found = (recording.relevance(index), recording.rollout())
        named = [values.argsort(descending=True, stable=True) for values in found]
        orders = torch.stack([*named, torch.randperm(len(named[0]), generator=self._generator)])
        curves = self._curves(image, self._shown(orders), index)
        return (curves[..., 1:] + curves[..., :-1]).mean(axis=-1) / 2

    def _normalised(self, image_bytes: bytes) -> Tensor:
        how = self._preprocessing
        pixels = torch.from_numpy(self._decode(image_bytes))[None]
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (how.mean, how.std))
        return ((pixels.flip(1) if how.bgr else pixels) * how.scale - mean) / std

    def _shown(self, orders: Tensor) -> Tensor:
        """Return which patches are shown at the steps between the first and the last: (orders, 2, steps - 1, N)."""
        count = orders.shape[1]
        ranks = orders.argsort(dim=1)[:, None]
        replaced = (torch.arange(1, self._steps) * count / self._steps).round()[:, None]
        return torch.stack((ranks >= replaced, ranks < replaced), dim=1)

    def _curves(self, image: Tensor, shown: Tensor, class_index: int) -> NDArray[np.float64]:
        """Return the probability of a class at each step: (orders, 2, steps + 1)."""
        whole, none = self._probability(
            image, torch.stack((torch.ones_like(shown[0, 0, 0]), torch.zeros_like(shown[0, 0, 0]))), class_index
        )
        between = self._probability(image, shown.flatten(0, 2), class_index).reshape(shown.shape[:3])
        curves = np.empty((*shown.shape[:2], self._steps + 1))
        curves[..., 1:-1] = between
        curves[:, 0, 0], curves[:, 0, -1] = whole, none
        curves[:, 1, 0], curves[:, 1, -1] = none, whole
        return curves

    def _probability(self, image: Tensor, shown: Tensor, class_index: int) -> NDArray[np.float32]:
        """Return the probability of a class where only some patches (M, N) of an image are shown: (M,)."""
        config = self._plain.config
        side, patch = config.grid_size, config.patch_size
        mask = shown.view(-1, 1, side, side).float().repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)
        seen = image[..., : side * patch, : side * patch]
        border = (0, image.shape[3] - side * patch, 0, image.shape[2] - side * patch)
        logits = []
        with torch.inference_mode():
            for part in mask.split(_BATCH):
                masked = torch.nn.functional.pad(seen * part, border)  # the mean colour is 0 when it is normalised
                logits.append(self._plain(masked).numpy())
        computed = probabilities(np.concatenate(logits), self._activation)
        assert computed is not None, "the model's outputs are no classes"
        return computed[:, class_index]


def _loaded(model: str, image_size: int | None) -> tuple[VisionTransformer, Checkpoint]:
    checkpoint = load_checkpoint(model, image_size=image_size, library="none")
    assert isinstance(checkpoint.model, VisionTransformer)
    return checkpoint.model.eval(), checkpoint


def report(found: NDArray[np.float64]) -> str:
    """Return a table of areas (images, orders, 2), with standard errors."""
    lines = ["| order | deletion | insertion | images better than random |", "|---|---|---|---|"]
    means, errors = found.mean(axis=0), found.std(axis=0, ddof=1) / len(found) ** 0.5
    random = found[:, ORDERS.index("random")]
    for place, name in enumerate(ORDERS):
        deletion, insertion = (f"{means[place, curve]:.3f} ± {errors[place, curve]:.3f}" for curve in (0, 1))
        better = ((found[:, place, 0] < random[:, 0]).mean(), (found[:, place, 1] > random[:, 1]).mean())
        share = "" if name == "random" else f"{better[0]:.0%}, {better[1]:.0%}"
        lines.append(f"| {name} | {deletion} | {insertion} | {share} |")
    return "\n".join(lines)


def encoded_images(path: Path, count: int) -> Iterator[bytes]:
    """Yield up to `count` images of a folder or a parquet file, at even distances."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES)
        yield from (files[index].read_bytes() for index in _spread(len(files), count))
    else:
        labelled = load_labelled_images(path)
        yield from (bytes(labelled.read(index)[0]) for index in _spread(len(labelled), count))


def _spread(size: int, count: int) -> list[int]:
    return [place * size // min(size, count) for place in range(min(size, count))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="a folder of images, or parquet in Hugging Face's layout")
    parser.add_argument("--count", type=int, default=100, metavar="N", help="images to measure (100)")
    parser.add_argument("--image-size", type=int, metavar="S", help="side of the model's input, if not the checkpoint's")
    parser.add_argument("--model", default=str(BUNDLED_MODEL))
    arguments = parser.parse_args()
    configure_logging("error", "text")
    judge = Judge(arguments.model, arguments.image_size)
    found = []
    for image in encoded_images(arguments.images, arguments.count):
        found.append(judge.areas(image))
        sys.stderr.write(f"\r{len(found)} images")
    if len(found) < 2:
        parser.error("at least two images are needed")
    sys.stderr.write("\n")
    sys.stdout.write(f"{len(found)} images; {machine.describe()}\n\n{report(np.stack(found))}\n")


if __name__ == "__main__":
    main()
