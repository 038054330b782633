"""Answers of protocol v2 are written in steps, however they are asked for."""

import numpy as np
import pytest

from app.api.protocols.v2.request import Output
from app.api.protocols.v2.response import write_response
from app.serving.results import Classification, Timings

IMAGES = 8


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(("name", "classes"), [("logits", 0), ("logits", 2), ("probabilities", 0), ("labels", 0)])
def test_each_image_is_written_in_its_own_steps(name: str, classes: int, binary: bool) -> None:
    numbers = np.arange(3, dtype=np.float32)
    classifications = [Classification(("a", "b", "c"), numbers, numbers, Timings(0, 0, 0, 0)) for _ in range(IMAGES)]
    steps = sum(1 for _ in write_response("vit", "", [Output(name, binary, classes)], classifications))
    assert steps >= 2 * IMAGES  # one to make a row, and one to write it
