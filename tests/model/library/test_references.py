"""Every model of the table in docs/models.md that a library runs: its library's logits and features, from a JPEG's bytes."""

from pathlib import Path

import pytest

from tests.support.comparison import difference_by_default, measure
from tests.support.library_references import library_references
from tests.support.models import ROOT
from tests.support.references import Reference
from tests.support.weights import lively

REFERENCES = library_references()
TORCH = 1e-4
OPENVINO = 1e-3
"""Tolerances as a part of the largest logit, or of the largest number of the features."""
DEFAULTS = 0.005
"""Tolerance with quick decoding."""
NEIGHBOURS = 1e-5
"""Tolerance between an image alone and in a batch, by OpenVINO, which computes both in the same way."""


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # raised by torch at import
@pytest.mark.parametrize("reference", REFERENCES, ids=lambda reference: f"{reference.library}: {reference.name}")
def test_answers_equal_the_librarys(reference: Reference, tmp_path: Path) -> None:
    found = measure(reference, tmp_path / "model", lively, quick=True)
    assert found.largest_logit > 0.2
    assert found.spread > 0.05
    assert max(found.torch, found.torch_neighbours) <= TORCH
    assert found.openvino <= OPENVINO
    assert reference.features
    assert found.features_torch <= TORCH
    assert found.features_openvino <= OPENVINO
    assert found.openvino_neighbours <= NEIGHBOURS


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # raised by torch at import
@pytest.mark.usefixtures("converts_beside_torchvision")
def test_defaults_answer_as_the_library_does(tmp_path: Path) -> None:
    assert difference_by_default(REFERENCES[0], tmp_path / "model", engine="openvino") <= DEFAULTS


def test_the_table_in_the_docs_has_every_model() -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    for reference in REFERENCES:
        assert f"| {reference.library} | {reference.name} |" in page
