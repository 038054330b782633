"""Activation and labels of heads: the service against transformers' own pipeline, through HTTP."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from PIL import Image

from tests.app.conftest import OpenClient
from tests.support.comparison import EXACT
from tests.support.models import png, random_image
from tests.support.small_vit import PROCESSOR, write_small_vit
from tests.support.weights import randomise

import timm  # isort: skip
from timm.models import save_for_hf  # isort: skip

REGRESSION, SINGLE, MULTI = "regression", "single_label_classification", "multi_label_classification"


def library_answers(directory: Path, image_bytes: bytes) -> list[tuple[str, float]]:
    model = transformers.AutoModelForImageClassification.from_pretrained(directory)
    pipeline = transformers.pipeline("image-classification", model=model, image_processor=PROCESSOR)
    with Image.open(io.BytesIO(image_bytes)) as image:
        return [(answer["label"], answer["score"]) for answer in pipeline(image.convert("RGB"), top_k=1000)]


CASES = [
    pytest.param(1, {}, "sigmoid", id="one"),
    pytest.param(1, {"problem_type": None}, "sigmoid", id="one-null"),
    pytest.param(1, {"problem_type": MULTI}, "sigmoid", id="one-multi"),
    pytest.param(1, {"problem_type": REGRESSION}, "none", id="one-regression"),
    pytest.param(2, {}, "softmax", id="two"),
    pytest.param(2, {"problem_type": None}, "softmax", id="two-null"),
    pytest.param(2, {"problem_type": SINGLE}, "softmax", id="two-single"),
    pytest.param(2, {"problem_type": MULTI}, "sigmoid", id="two-multi"),
    pytest.param(2, {"problem_type": REGRESSION}, "none", id="two-regression"),
    pytest.param(5, {}, "softmax", id="five"),
    pytest.param(5, {"problem_type": SINGLE}, "softmax", id="five-single"),
    pytest.param(5, {"problem_type": MULTI}, "sigmoid", id="five-multi"),
    pytest.param(5, {"problem_type": REGRESSION}, "none", id="five-regression"),
    pytest.param(5, {"function_to_apply": "sigmoid"}, "softmax", id="five-function-to-apply"),
    pytest.param(1, {"function_to_apply": "none"}, "sigmoid", id="one-function-to-apply"),
    pytest.param(5, {"function_to_apply": "none", "problem_type": MULTI}, "sigmoid", id="five-multi-function-to-apply"),
    pytest.param(3, {"id2label": {"0": "cat", "1": "dog", "2": "cat"}}, "softmax", id="three-a-name-twice"),
]


@pytest.mark.parametrize(("num_labels", "config", "activation"), CASES)
async def test_scores_are_those_of_the_pipeline(
    open_client: OpenClient, tmp_path: Path, num_labels: int, config: dict[str, Any], activation: str
) -> None:
    directory = write_small_vit(tmp_path / "model", num_labels, **config)
    expected = library_answers(directory, png(0))
    async with open_client(model=str(directory), **EXACT) as client:
        answer = (await client.post("/predict", params={"top_k": 1000}, content=png(0))).json()
        batch = (await client.post("/predict/batch", files=[("images", png(0))])).json()
        model = (await client.get("/model")).json()
    assert answer["activation"] == batch["activation"] == model["activation"] == activation
    predictions = answer["predictions"]
    scores = [row["logit"] if row["probability"] is None else row["probability"] for row in predictions]
    assert [row["label"] for row in predictions] == [label for label, _ in expected]
    assert scores == pytest.approx([score for _, score in expected], rel=1e-4)
    assert (answer["probabilities"] is None) == all(row["probability"] is None for row in predictions) == (activation == "none")
    assert set(batch["results"][0]) == {"predictions", "logits", "probabilities"}


@pytest.mark.parametrize(("num_classes", "activation"), [(1, "sigmoid"), (11, "softmax"), (1000, "softmax")])
async def test_timm_directory_matches_the_pipeline(
    open_client: OpenClient, tmp_path: Path, num_classes: int, activation: str
) -> None:
    save_for_hf(
        randomise(timm.create_model("vit_tiny_patch16_224", num_classes=num_classes)), str(tmp_path), safe_serialization=True
    )
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    del config["model_args"]  # transformers cannot read what timm now writes there
    file.write_text(json.dumps(config))
    pipeline = transformers.pipeline("image-classification", model=str(tmp_path))
    expected = pipeline(random_image(0), top_k=1000)
    async with open_client(model=str(tmp_path), **EXACT) as client:
        answer = (await client.post("/predict", params={"top_k": 1000}, content=png(0))).json()
    assert answer["activation"] == activation
    assert [row["probability"] for row in answer["predictions"]] == pytest.approx([row["score"] for row in expected], rel=1e-3)
    assert sorted(row["label"] for row in answer["predictions"]) == sorted(row["label"] for row in expected)
    assert answer["predictions"][0]["label"] == expected[0]["label"]


@pytest.mark.parametrize("top_k", [1, 2, 3])
async def test_measured_values_are_ranked_as_they_are(open_client: OpenClient, tmp_path: Path, top_k: int) -> None:
    directory = write_small_vit(tmp_path / "model", 3, problem_type=REGRESSION)
    async with open_client(model=str(directory)) as client:
        answer = (await client.post("/predict", params={"top_k": top_k}, content=png(0))).json()
    assert [row["logit"] for row in answer["predictions"]] == sorted(answer["logits"], reverse=True)[:top_k]


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
async def test_the_setting_wins_over_the_configuration(open_client: OpenClient, tmp_path: Path, activation: str) -> None:
    directory = write_small_vit(tmp_path / "model", 5, problem_type="of an unknown kind")
    async with open_client(model=str(directory), activation=activation) as client:
        answer = (await client.post("/predict", content=png(0))).json()
    assert answer["activation"] == activation
    assert (answer["probabilities"] is None) == (activation == "none")
    if answer["probabilities"] is not None:
        assert (sum(answer["probabilities"]) == pytest.approx(1, abs=1e-6)) == (activation == "softmax")
