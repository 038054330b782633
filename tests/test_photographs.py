"""Ordinary photographs: with default settings the service answers as the model's own library does."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from app.serving.offline import run
from app.serving.results import Classification
from benchmarks.photographs import WIDTHS, sized
from tests.support.bundled_model import reference_logits, service_answers
from tests.support.models import ROOT

FOLDER = ROOT / "tests" / "photographs"


@pytest.fixture(scope="module")
def photographs() -> list[bytes]:
    """Return photographs of every common size, from one to 12 megapixels."""
    return [image for width in WIDTHS for image in sized(FOLDER, width, views=2)]


@pytest.fixture(scope="module")
def logits(tmp_path_factory: pytest.TempPathFactory, photographs: list[bytes]) -> Iterator[np.ndarray]:
    """Return the logits of transformers: (N, K)."""
    paths = []
    for index, image in enumerate(photographs):
        path: Path = tmp_path_factory.getbasetemp() / f"photograph-{index:03d}.jpg"
        path.write_bytes(image)
        paths.append(path)
    yield reference_logits(paths)


def off(answers: list[Classification], logits: np.ndarray) -> np.ndarray:
    """Return the largest difference of each answer's logits, as a part of the largest logit: (N,)."""
    given = np.stack([answer.logits for answer in answers])
    assert (given.argmax(axis=1) == logits.argmax(axis=1)).all()
    largest: np.ndarray = np.abs(given - logits).max(axis=1) / np.abs(logits).max(axis=1)
    return largest


def test_defaults_answer_as_the_library_does(photographs: list[bytes], logits: np.ndarray) -> None:
    differences = off(run(service_answers(photographs, max_inflight_images=len(photographs))), logits)
    assert np.quantile(differences, 0.99) < 0.005
    assert differences.max() < 0.02


def test_exact_decoding_gives_library_logits(photographs: list[bytes], logits: np.ndarray) -> None:
    answers = run(service_answers(photographs, exact_decode=True, max_inflight_images=len(photographs)))
    assert off(answers, logits).max() < 1e-4
