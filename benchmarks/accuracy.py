"""Effect of engines, dtypes and decoding on the answers, through the whole service.

python -m benchmarks.accuracy test.parquet              labelled images: accuracy of each variant
python -m benchmarks.accuracy --dtypes FOLDER           photographs: differences of logits by number format
python -m benchmarks.accuracy --photographs FOLDER      large photographs: differences of logits by decoding and size

The reference is float32 by torch with exact decoding.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.engines.hardware import has_bfloat16, has_vnni
from app.errors import ServiceError
from app.process.logs import configure_logging
from app.serving.offline import infer_all, run, running_classifier
from app.settings import BUNDLED_MODEL, read_settings
from benchmarks import machine
from benchmarks.photographs import WIDTHS, random_parts, sized
from model.training.dataset import load_labelled_images

_CONCURRENCY = 64

_SIZES = (None, 224, 378)
"""Sides of the model's input: its own and two more, multiples of the bundled model's patches."""

_VARIANTS: dict[str, dict[str, object]] = {
    "torch, float32, exact decoding": {"engine": "torch", "exact_decode": True},
    "quick decoding": {"engine": "torch"},
    "OpenVINO": {"engine": "openvino", "exact_decode": True},
    "OpenVINO, quick decoding (the default on a CPU)": {},
    "OpenVINO, bfloat16": {"engine": "openvino", "dtype": "bfloat16", "exact_decode": True},
    "OpenVINO, int8": {"engine": "openvino", "dtype": "int8", "exact_decode": True},
    "torch, float16": {"engine": "torch", "dtype": "float16", "exact_decode": True},
    "torch, bfloat16": {"engine": "torch", "dtype": "bfloat16", "exact_decode": True},
}

_DTYPES = ("OpenVINO", "OpenVINO, bfloat16", "OpenVINO, int8")
"""Variants that are compared on photographs."""


_DECODINGS: dict[str, dict[str, object]] = {
    "the default": {},
    "`VIT_SCALED_DECODE=true`": {"scaled_decode": True},
}


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers of the service to N images, (N, K) each."""

    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32]

    @property
    def first(self) -> NDArray[np.intp]:
        """(N,) the class with the largest logit."""
        return self.logits.argmax(axis=1)


async def answers(images: Sequence[bytes], model: str, settings: dict[str, object]) -> Answers:
    """Classify each image with the service."""
    logits, probabilities = [], []
    async with running_classifier(read_settings(model=model, max_inflight_images=_CONCURRENCY, **settings)) as classifier:
        reads = ((index, partial(bytes, image)) for index, image in enumerate(images))
        async for _, outcome in infer_all(classifier.classify, reads, _CONCURRENCY):
            if isinstance(outcome, ServiceError | OSError):
                raise SystemExit(f"an image cannot be classified: {outcome}")
            logits.append(outcome.logits)
            probabilities.append(outcome.probabilities)
    return Answers(np.stack(logits), np.stack(probabilities))


def differences(some: Answers, reference: Answers) -> NDArray[np.float32]:
    """Return for each image the largest difference of a logit over the reference's largest logit: (N,)."""
    largest: NDArray[np.float32] = np.abs(some.logits - reference.logits).max(axis=1) / np.abs(reference.logits).max(axis=1)
    return largest


def compare_variants(data: Path, model: str) -> None:
    """Print the accuracy of each variant on labelled images, and the differences of probabilities."""
    labelled = load_labelled_images(data)
    images, targets = [labelled.read(index)[0] for index in range(len(labelled))], np.asarray(labelled.targets)
    _print(f"{len(images)} images; {machine.describe()}\n")
    _print("| variant | top-1 | same first class | largest difference of a probability | difference of a logit at p99 |")
    _print("|---|---|---|---|---|")
    reference: Answers | None = None
    for name, settings in _VARIANTS.items():
        if not _runs_here(settings):
            continue
        found = run(answers(images, model, settings))
        reference = reference or found
        agreement = (found.first == reference.first).mean()
        difference = np.abs(found.probabilities - reference.probabilities).max()
        logits = np.quantile(differences(found, reference), 0.99)
        _print(f"| {name} | {(found.first == targets).mean():.2%} | {agreement:.2%} | {difference:.4f} | {logits:.2%} |")


def compare_dtypes(folder: Path, model: str, count: int) -> None:
    """Print the differences of first classes and logits by number format, on parts of photographs, with exact decoding."""
    images = random_parts(folder, count)
    _print(f"{len(images)} parts of photographs; {machine.describe()}\n")
    _print("| variant | same first class | difference at p99 | largest difference |\n|---|---|---|---|")
    reference = run(answers(images, model, {"engine": "torch", "exact_decode": True}))
    for name in _DTYPES:
        if _runs_here(_VARIANTS[name]):
            found = run(answers(images, model, _VARIANTS[name]))
            agreement, off = (found.first == reference.first).mean(), differences(found, reference)
            _print(f"| {name} | {agreement:.2%} | {np.quantile(off, 0.99):.2%} | {off.max():.2%} |")


def _runs_here(settings: Mapping[str, object]) -> bool:
    """Return False if this CPU lacks what the dtype needs in OpenVINO."""
    needs = {"int8": has_vnni, "bfloat16": has_bfloat16}
    dtype = str(settings.get("dtype"))
    return settings.get("engine") != "openvino" or dtype not in needs or needs[dtype]()


def compare_decodings(folder: Path, model: str) -> None:
    """Print the differences of first classes and logits by decoding, photograph size and input size."""
    _print(f"{machine.describe()}\n")
    _print(
        "| model's input | longer side | photographs | decoding | same first class | difference at p99 | largest difference |"
    )
    _print("|---|---|---|---|---|---|---|")
    for width in WIDTHS:
        images = list(sized(folder, width))
        for side in _SIZES if images else ():
            reference = run(answers(images, model, {"exact_decode": True, "image_size": side}))
            for name, settings in _DECODINGS.items():
                found = run(answers(images, model, {"image_size": side, **settings}))
                agreement, off = (found.first == reference.first).mean(), differences(found, reference)
                figures = f"{agreement:.2%} | {np.quantile(off, 0.99):.2%} | {off.max():.2%}"
                _print(f"| {side or 'its own'} | {width} | {len(images)} | {name} | {figures} |")


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="a folder of class folders, or parquet in Hugging Face's layout")
    parser.add_argument("--photographs", type=Path, metavar="FOLDER", help="JPEGs and PNGs, the larger the better")
    parser.add_argument("--dtypes", type=Path, metavar="FOLDER", help="JPEGs and PNGs of any size, in folders too")
    parser.add_argument("--count", type=int, default=1000, help="parts of photographs for --dtypes")
    parser.add_argument("--model", default=str(BUNDLED_MODEL))
    arguments = parser.parse_args()
    configure_logging("error", "text")
    if sum(each is not None for each in (arguments.data, arguments.photographs, arguments.dtypes)) != 1:
        parser.error("give either labelled images, --photographs or --dtypes")
    if arguments.dtypes:
        compare_dtypes(arguments.dtypes, arguments.model, arguments.count)
    elif arguments.photographs:
        compare_decodings(arguments.photographs, arguments.model)
    else:
        compare_variants(arguments.data, arguments.model)


if __name__ == "__main__":
    main()
