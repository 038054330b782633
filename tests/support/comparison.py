"""Comparison with transformers, timm and torchvision: `python -m tests.support.comparison [NAME ...]` prints the tables.

Each model is saved by its own library, with two sets of random weights, loaded from disk by the service, and asked about the
same JPEG bytes: by its library with its own preprocessing, and by the service's decoder and engines.
"""

import io
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from app.decoding.image import ImageDecoder
from app.engines.conversion import openvino_engine
from app.engines.openvino import OpenVinoOptions
from app.engines.pixel_model import engine_model
from app.engines.torch_cpu import TorchCpuEngine
from app.pixels import Pixels
from app.process.logs import configure_logging
from app.serving.offline import run, running_classifier
from app.settings import read_settings
from benchmarks.photographs import sized
from model.checkpoints.checkpoint import Checkpoint, load_checkpoint
from tests.support.library_references import library_references
from tests.support.models import ROOT, encode, random_image
from tests.support.references import Answer, Fill, Reference, references
from tests.support.weights import lively, randomise

EXACT: dict[str, Any] = {"dtype": "float32", "device": "cpu", "engine": "torch", "exact_decode": True}
"""Settings that give the library's own pixels, in its own arithmetic."""


def photograph() -> bytes:
    """A JPEG with something at every scale, and no side that is a multiple of anything."""
    image = Image.blend(random_image(5, 333, 250).resize((333, 251)), random_image(6, 32, 24).resize((333, 251)), 0.6)
    return encode(image, "JPEG", quality=92)


@cache
def photographs() -> tuple[bytes, ...]:
    """Real photographs of 500 pixels."""
    return tuple(sized(ROOT / "tests" / "photographs", 500, views=1))


@cache
def jpegs() -> tuple[bytes, ...]:
    """Return eight JPEGs of different sizes and contents: three photographs, four of noise, and one of both kinds of detail."""
    noise = (encode(random_image(seed, 120 + 16 * seed, 180 - 8 * seed), "JPEG") for seed in range(1, 5))
    return (photograph(), *photographs()[:3], *noise)


@dataclass(frozen=True, slots=True)
class Measured:
    """Largest differences of logits, each as a part of the largest logit."""

    largest_logit: float
    spread: float
    """Largest difference between two images: near 0 it would show nothing."""
    torch: float
    """Difference of torch from the library, alone and in a batch."""
    torch_neighbours: float
    """Difference between an image alone and in a batch, in torch."""
    openvino: float = 0.0
    openvino_neighbours: float = 0.0
    features_torch: float = 0.0
    """Difference of features from the library's, as a part of their largest number, where the reference has them."""
    features_openvino: float = 0.0


def measure(reference: Reference, directory: Path, fill: Fill, *, quick: bool = False, openvino: bool = True) -> Measured:
    """Write a model with its library, and compare the engines' answers with its, from the same JPEG bytes.

    Args:
        reference: the model.
        directory: where to write it.
        fill: makes its weights.
        quick: classify three images of different kinds, two of them alone too, by the short model if there is one; otherwise
            eight, each alone too, as for the tables of docs/models.md.
        openvino: compare OpenVINO too.
    """
    write = (quick and reference.write_short) or reference.write
    path, answer = write(directory, fill)
    images, alone = (jpegs()[::3], 2) if quick else (jpegs(), len(jpegs()))
    expected = _library_answers(answer, images)
    settings: dict[str, Any] = dict(reference.settings)
    checkpoint = load_checkpoint(path, **settings)
    model = engine_model(checkpoint, with_features=reference.features)
    parts = np.split(np.arange(expected.shape[1]), [model.num_classes])  # logits, features
    largest = [float(np.abs(expected[:, part]).max(initial=0)) for part in parts]
    pixels = _pixels(checkpoint, images)

    def differences(engine: Any) -> tuple[list[float], float]:
        single = np.concatenate([engine.run([image], use_all_cores=True) for image in pixels[:alone]])
        together = engine.run(pixels, use_all_cores=False)
        assert together.shape == expected.shape
        away = np.maximum(np.abs(together - expected).max(axis=0), np.abs(single - expected[:alone]).max(axis=0))
        off = [float(away[part].max() / size) if part.size else 0.0 for part, size in zip(parts, largest, strict=True)]
        return off, float(np.abs(single - together[:alone])[:, parts[0]].max()) / largest[0]

    # OpenVINO runs a single image in a model of its own where there are two threads
    options: dict[str, Any] = {"dtype": "float32", "max_batch_size": 8, "threads": 2}
    (by_torch, features_torch), neighbours = differences(TorchCpuEngine(model, **options))
    spread = float(np.ptp(expected[:, parts[0]], axis=0).max()) / largest[0]
    if not openvino:
        return Measured(largest[0], spread, by_torch, neighbours, features_torch=features_torch)
    engine = openvino_engine(model, OpenVinoOptions(**options), directory.parent / "cache")
    (by_openvino, features), together = differences(engine)
    return Measured(largest[0], spread, by_torch, neighbours, by_openvino, together, features_torch, features)


def difference_by_default(reference: Reference, directory: Path, **settings: Any) -> float:
    """Write a model, and compare the service's answers, on photographs, with its library's.

    Returns:
        The largest difference of a logit over the largest logit of its image.
    """
    path, answer = reference.write(directory, randomise)
    images = photographs()
    expected = _library_answers(answer, images)
    logits = run(_service_logits(path, settings | dict(reference.settings), images))
    expected = expected[:, : logits.shape[1]]  # without features
    return float((np.abs(logits - expected).max(axis=1) / np.abs(expected).max(axis=1)).max())


async def _service_logits(model: Path, settings: dict[str, Any], images: Sequence[bytes]) -> NDArray[np.float32]:
    async with running_classifier(read_settings(model=str(model), **settings)) as classifier:
        return np.stack([(await classifier.classify(image)).logits for image in images])


def _library_answers(answer: Answer, images: Sequence[bytes]) -> NDArray[np.float32]:
    answers = []
    for image_bytes in images:
        with Image.open(io.BytesIO(image_bytes)) as image, torch.no_grad():
            answers.append(answer(image.convert("RGB")).numpy())
    return np.stack(answers)


def _pixels(checkpoint: Checkpoint, images: Sequence[bytes]) -> list[Pixels]:
    decoder = ImageDecoder(checkpoint.preprocessing, formats=frozenset({"jpeg"}), max_bytes=10**8, max_pixels=10**7, exact=True)
    return [decoder.decode(image) for image in images]


def _write_table(chosen: Iterable[Reference], *, defaults: bool) -> None:
    of_engines = ("random weights: torch", "OpenVINO", "lively: torch", "OpenVINO")
    last = "all defaults" if defaults else "features, lively: torch | OpenVINO"
    columns = f"library | model | {' | '.join(of_engines)} | between images | {last}".split(" | ")
    sys.stdout.write(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n")
    for reference in chosen:
        with tempfile.TemporaryDirectory() as directory:
            plain, alive = (measure(reference, Path(directory) / fill.__name__, fill) for fill in (randomise, lively))
            if defaults:
                more = [f"{difference_by_default(reference, Path(directory) / 'default'):.2%}"]
            else:
                more = [f"{value:.1e}" for value in (alive.features_torch, alive.features_openvino)]
        small = (plain.torch, plain.openvino, alive.torch, alive.openvino)
        row = (reference.library, reference.name, *(f"{value:.1e}" for value in small), f"{alive.spread:.2f}", *more)
        sys.stdout.write(f"| {' | '.join(row)} |\n")
        sys.stdout.flush()


def main() -> None:
    configure_logging("error", "text")
    asked = sys.argv[1:]
    for table, defaults in ((references(), True), (library_references(), False)):
        chosen = (reference for reference in table if not asked or any(word in reference.name for word in asked))
        _write_table(chosen, defaults=defaults)
        sys.stdout.write("\n")


if __name__ == "__main__":
    main()
