"""Areas under the curves of deletion and insertion, against a literal computation."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.faithfulness import ORDERS, Judge, encoded_images, report
from model.relevance import RecordedModel
from tests.app.decoding.decoders import decoder
from tests.support.models import TINY_PREPROCESSING, png, tiny_model


def test_areas_equal_a_literal_computation(tiny_checkpoint: Path) -> None:
    model, how = tiny_model(), TINY_PREPROCESSING
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (how.mean, how.std))
    image = (torch.from_numpy(decoder(how).decode(png(0)))[None] / 255 - mean) / std
    index = int(model(image).argmax())
    rollout = RecordedModel(tiny_model()).run(image).rollout()
    order = sorted(range(16), key=lambda patch: -float(rollout[patch]))
    deleted, inserted = [], []
    for replaced in (0, 4, 8, 12, 16):
        without, alone = image.clone(), torch.zeros_like(image)
        for patch in order[:replaced]:
            place = (..., slice(patch // 4 * 7, patch // 4 * 7 + 7), slice(patch % 4 * 7, patch % 4 * 7 + 7))
            without[place], alone[place] = 0, image[place]
        deleted.append(float(model(without).softmax(1)[0, index]))
        inserted.append(float(model(alone).softmax(1)[0, index]))
    areas = Judge(str(tiny_checkpoint), steps=4).areas(png(0))[ORDERS.index("rollout")]
    expected = [np.trapezoid(curve, dx=0.25) for curve in (deleted, inserted)]
    np.testing.assert_allclose(areas, expected, rtol=1e-4)
    assert deleted[0] == pytest.approx(inserted[-1]) != pytest.approx(deleted[-1])


def test_report_compares_with_random() -> None:
    found = np.array([[[0.2, 0.8], [0.3, 0.6], [0.5, 0.5]], [[0.4, 0.6], [0.7, 0.4], [0.5, 0.5]]])
    rows = report(found).splitlines()[2:]
    assert rows == [
        "| relevance | 0.300 ± 0.100 | 0.700 ± 0.100 | 100%, 100% |",
        "| rollout | 0.500 ± 0.200 | 0.500 ± 0.100 | 50%, 50% |",
        "| random | 0.500 ± 0.000 | 0.500 ± 0.000 |  |",
    ]


def test_images_are_spread_over_a_folder(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"{number}.png").write_bytes(bytes([number]))
    (tmp_path / "notes.txt").write_text("no image")
    assert list(encoded_images(tmp_path, 5)) == [bytes([number]) for number in (0, 2, 4, 6, 8)]
    assert len(list(encoded_images(tmp_path, 100))) == 10
