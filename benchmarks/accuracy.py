"""What each way of computing does to the answers, on labelled pictures and through the whole service.

python -m benchmarks.accuracy test.parquet [--enlarge 500]

The reference is float32 by torch with exact decoding. `--enlarge` makes each picture that many pixels wide first, as a JPEG:
small ones are never decoded scaled down, and what that does could not be seen.
"""

import argparse
import io
import sys
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.engines.choice import has_vnni
from app.errors import ServiceError
from app.offline import classify_all, run, running_classifier
from app.settings import BUNDLED_MODEL, read_settings
from benchmarks import machine
from model.dataset import LabelledImages, load_labelled_images

_CONCURRENCY = 64

_WAYS: dict[str, dict[str, object]] = {
    "torch, float32, exact decoding": {"engine": "torch", "exact_decode": True},
    "quick decoding": {"engine": "torch"},
    "OpenVINO": {"engine": "openvino", "exact_decode": True},
    "OpenVINO, quick decoding (the default on a CPU)": {},
    "OpenVINO, int8": {"dtype": "int8", "exact_decode": True},
    "float16": {"dtype": "float16", "exact_decode": True},
    "bfloat16": {"dtype": "bfloat16", "exact_decode": True},
}


async def probabilities(pictures: list[bytes], model: str, settings: dict[str, object]) -> NDArray[np.float32]:
    """What the service answers to each picture, (N, K)."""
    rows = []
    async with running_classifier(read_settings(model=model, max_queue_size=_CONCURRENCY, **settings)) as classifier:
        images = ((index, partial(bytes, picture)) for index, picture in enumerate(pictures))
        async for _, outcome in classify_all(classifier, images, _CONCURRENCY):
            if isinstance(outcome, ServiceError | OSError):
                raise SystemExit(f"a picture cannot be classified: {outcome}")
            rows.append(outcome.probabilities)
    return np.stack(rows)


def encoded(pictures: LabelledImages, width: int | None) -> list[bytes]:
    """All pictures, enlarged if that was asked for."""
    files = [pictures.read(index)[0] for index in range(len(pictures))]
    return files if width is None else [_enlarged(file, width) for file in files]


def _enlarged(picture: bytes, width: int) -> bytes:
    with Image.open(io.BytesIO(picture)) as image:
        large = image.convert("RGB").resize((width, round(image.height * width / image.width)), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    large.save(file, "JPEG", quality=92)
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a folder of class folders, or parquet in Hugging Face's layout")
    parser.add_argument("--model", default=str(BUNDLED_MODEL))
    parser.add_argument("--enlarge", type=int, metavar="WIDTH")
    arguments = parser.parse_args()
    labelled = load_labelled_images(arguments.data)
    pictures, targets = encoded(labelled, arguments.enlarge), np.asarray(labelled.targets)

    sys.stdout.write(f"{len(pictures)} pictures; {machine.describe()}\n\n")
    sys.stdout.write("| way | top-1 | same first class | largest difference of a probability |\n|---|---|---|---|\n")
    reference: NDArray[np.float32] | None = None
    for name, settings in _WAYS.items():
        if settings.get("dtype") == "int8" and not has_vnni():
            continue
        answers = run(probabilities(pictures, arguments.model, settings))
        reference = answers if reference is None else reference
        first = answers.argmax(axis=1)
        agreement, difference = (first == reference.argmax(axis=1)).mean(), np.abs(answers - reference).max()
        sys.stdout.write(f"| {name} | {(first == targets).mean():.2%} | {agreement:.2%} | {difference:.4f} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
