"""How far float16 and bfloat16 are from float32, on labelled pictures and through the whole service.

python -m benchmarks.half_precision test.parquet
"""

import argparse
import asyncio
import platform
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from app.errors import ServiceError
from app.offline import classify_all, running_classifier
from app.settings import BUNDLED_MODEL, read_settings
from model.dataset import LabelledImages, load_labelled_images

_DTYPES = ("float32", "float16", "bfloat16")
_CONCURRENCY = 64


async def probabilities_in(dtype: str, model: str, pictures: LabelledImages) -> NDArray[np.float32]:
    """What the service answers to each picture, (N, K)."""
    rows = []
    async with running_classifier(read_settings(model=model, dtype=dtype, max_queue_size=_CONCURRENCY)) as classifier:
        images = ((index, partial(encoded, pictures, index)) for index in range(len(pictures)))
        async for _, outcome in classify_all(classifier, images, _CONCURRENCY):
            if isinstance(outcome, ServiceError | OSError):
                raise SystemExit(f"a picture cannot be classified: {outcome}")
            rows.append(outcome.probabilities)
    return np.stack(rows)


def encoded(pictures: LabelledImages, index: int) -> bytes:
    return pictures.read(index)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a folder of class folders, or parquet in Hugging Face's layout")
    parser.add_argument("--model", default=str(BUNDLED_MODEL))
    arguments = parser.parse_args()
    pictures = load_labelled_images(arguments.data)

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    sys.stdout.write(f"torch {torch.__version__} on {device}, {len(pictures)} pictures\n\n")
    sys.stdout.write(
        "| dtype | top-1 | same first class as float32 | largest difference of a probability |\n|---|---|---|---|\n"
    )
    reference: NDArray[np.float32] | None = None
    for dtype in _DTYPES:
        probabilities = asyncio.run(probabilities_in(dtype, arguments.model, pictures))
        reference = probabilities if reference is None else reference
        first = probabilities.argmax(axis=1)
        top1 = (first == np.asarray(pictures.targets)).mean()
        agreement = (first == reference.argmax(axis=1)).mean()
        difference = np.abs(probabilities - reference).max()
        sys.stdout.write(f"| {dtype} | {top1:.2%} | {agreement:.2%} | {difference:.4f} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
