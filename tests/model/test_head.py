"""Activation of the head: its choice, and the functions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from model.checkpoints.checkpoint import CheckpointError, load_checkpoint
from model.head import probabilities, sigmoid, softmax
from tests.support.small_vit import write_small_vit

import timm  # isort: skip
from timm.models import save_for_hf  # isort: skip


@pytest.mark.parametrize(
    ("num_labels", "problem_type", "sentence"),
    [
        (
            5,
            "multi_label",
            "problem_type 'multi_label' is not supported; supported are regression, single_label_classification",
        ),
        (5, "", "problem_type '' is not supported"),
        (5, ["regression"], r"problem_type \['regression'\] is not supported"),
        (1, "single_label_classification", "needs at least two classes, and there is one; choose the activation sigmoid"),
    ],
)
def test_bad_problem_type_is_refused(tmp_path: Path, num_labels: int, problem_type: Any, sentence: str) -> None:
    directory = write_small_vit(tmp_path / "model", num_labels, problem_type=problem_type)
    with pytest.raises(CheckpointError, match=sentence) as refused:
        load_checkpoint(directory)
    assert refused.value.field == "activation"
    assert load_checkpoint(directory, activation="sigmoid").activation == "sigmoid"  # the remedy in the message


def test_transformers_refuses_single_label_too(tmp_path: Path) -> None:
    directory = write_small_vit(tmp_path / "model", 1, problem_type="single_label_classification")
    with pytest.raises(Exception, match="requires `num_labels > 1`"):
        transformers.AutoConfig.from_pretrained(directory)


@pytest.mark.parametrize(
    ("num_classes", "problem_type", "activation"),
    [(11, None, "softmax"), (1, None, "sigmoid"), (11, "multi_label_classification", "sigmoid"), (11, "regression", "none")],
)
def test_timm_problem_type_as_transformers(tmp_path: Path, num_classes: int, problem_type: str | None, activation: str) -> None:
    save_for_hf(timm.create_model("vit_tiny_patch16_224", num_classes=num_classes), str(tmp_path), safe_serialization=True)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "problem_type": problem_type}))
    assert transformers.AutoConfig.from_pretrained(tmp_path).problem_type == problem_type
    assert load_checkpoint(tmp_path).activation == activation
    assert load_checkpoint(tmp_path, activation="none").activation == "none"


def test_softmax_equals_torch() -> None:
    logits = np.random.default_rng(0).normal(0, 30, (5, 1000)).astype(np.float32)
    np.testing.assert_allclose(softmax(logits), torch.softmax(torch.from_numpy(logits), -1), rtol=2e-5, atol=1e-12)
    np.testing.assert_allclose(softmax(logits).sum(axis=1), 1, rtol=1e-6)
    assert not np.isfinite(softmax(np.array([[np.inf, 1]], np.float32))).all()


def test_sigmoid_equals_torch() -> None:
    logits = np.array([[-1e30, -1e4, -100, -88, -3, -0.0, 0, 1e-7, 3, 88, 100, 1e4, 1e30]], np.float32)
    shares = sigmoid(logits)
    assert shares.dtype == np.float32
    np.testing.assert_allclose(shares, torch.sigmoid(torch.from_numpy(logits)), rtol=1e-6, atol=1e-37)
    assert sigmoid(np.array([[np.inf, -np.inf]], np.float32)).tolist() == [[1, 0]]
    assert np.isnan(sigmoid(np.array([[np.nan]], np.float32))).all()


def test_regression_has_no_probabilities() -> None:
    assert probabilities(np.zeros((2, 1), np.float32), "none") is None
