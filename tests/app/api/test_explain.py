"""POST /explain: what it says, where that is in the uploaded image, and what it refuses."""

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
import torch
from PIL import Image

from app.serving.classifier import Classifier
from benchmarks.watch import metrics_of
from model.checkpoints.checkpoint import save_checkpoint
from model.relevance import RecordedModel
from tests.app.conftest import OpenClient
from tests.app.decoding.decoders import decoder, oriented
from tests.model.checkpoints.test_encoders import save
from tests.support.library_models import write_swin
from tests.support.models import TINY_LABELS, TINY_PREPROCESSING, encode, png, random_image, tiny_model
from tests.support.predict import assert_problem, base64_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

PICTURE = {"Accept": "image/png"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(open_client: OpenClient) -> AsyncIterator[httpx.AsyncClient]:
    async with open_client(exact_decode=True) as client:
        yield client


def classifier_behind(client: httpx.AsyncClient) -> Classifier:
    found: Classifier = client.app.state.vit_serve.service.ready_classifier()  # type: ignore[attr-defined] # by `open_client`
    return found


class HeldKeeper:
    """Stands in for the process of a service, and never answers."""

    def __init__(self, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = asyncio.Event()
        monkeypatch.setattr(classifier_behind(client).check_explainer()._keeper, "ask", self._ask)

    async def _ask(self, *_: object) -> Any:
        self.begun.set()
        await asyncio.Event().wait()


async def explained(client: httpx.AsyncClient, image: bytes, **parameters: str) -> dict[str, Any]:
    response = await client.post("/explain", params=parameters, content=image)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def expected(image: bytes, method: str, class_index: int) -> np.ndarray:
    """Compute relevance by the model itself, on the pixels of the plain decoder: (4, 4), the largest 1."""
    how = TINY_PREPROCESSING
    pixels = torch.from_numpy(decoder(how).decode(image))[None]
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (how.mean, how.std))
    recording = RecordedModel(tiny_model()).run((pixels / 255 - mean) / std)
    found = recording.rollout() if method == "rollout" else recording.relevance(class_index)
    return (found / found.max()).view(4, 4).numpy()


async def test_answer_says_what_and_where(service: httpx.AsyncClient) -> None:
    first = (await service.post("/predict?top_k=1", content=png(0))).json()["predictions"][0]
    response = await service.post("/explain", content=png(0))
    answer = response.json()
    assert list(answer) == ["model", "method", "class_index", "label", "probability", "image", "grid", "relevance"]
    assert (answer["model"], answer["method"]) == ("tiny-dinov2", "relevance")
    assert (answer["class_index"], answer["label"]) == (first["class_index"], first["label"])
    assert answer["probability"] == pytest.approx(first["probability"], rel=1e-4)
    assert answer["image"] == {"width": 40, "height": 36}
    # 40 x 36 is resized to 35 x 32, of which 28 x 28 remain from (3, 2): halves are rounded down
    box = {"left": 3 * 40 / 35, "top": 2 * 36 / 32, "right": 31 * 40 / 35, "bottom": 30 * 36 / 32}
    assert answer["grid"] == {"rows": 4, "columns": 4} | {side: pytest.approx(edge, abs=0.01) for side, edge in box.items()}
    assert [name.split(";")[0] for name in response.headers["server-timing"].split(", ")] == [
        "decode_wait",
        "decode",
        "queue",
        "inference",
        "total",
    ]


@pytest.mark.parametrize("method", ["relevance", "rollout"])
@pytest.mark.parametrize("class_index", [0, 7])
async def test_relevance_is_the_models(service: httpx.AsyncClient, method: str, class_index: int) -> None:
    for seed in range(2):
        answer = await explained(service, png(seed), method=method, **{"class": str(class_index)})
        assert (answer["method"], answer["class_index"]) == (method, class_index)
        np.testing.assert_allclose(answer["relevance"], expected(png(seed), method, class_index), rtol=1e-3, atol=1e-4)
        assert np.max(answer["relevance"]) == 1


async def test_coordinates_are_of_the_upright_image(service: httpx.AsyncClient) -> None:
    upright = random_image(3, 120, 64)
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    answer = await explained(service, encode(upright))
    assert answer["image"] == {"width": 120, "height": 64}
    assert answer["grid"] == {"rows": 4, "columns": 4, "left": 32, "top": 4, "right": 88, "bottom": 60}
    assert await explained(service, encode(stored, exif=oriented(6))) == answer
    jpeg = await explained(service, encode(stored, "JPEG", quality=95, subsampling=0, exif=oriented(6)))
    assert (jpeg["image"], jpeg["grid"]) == (answer["image"], answer["grid"])


async def test_all_forms_of_a_body_agree(service: httpx.AsyncClient) -> None:
    answer = await explained(service, png(0))
    for form in ({"files": {"image": png(0)}}, {"json": {"image": base64_of(png(0))}}):
        assert (await service.post("/explain", **form)).json() == answer


@pytest.mark.parametrize(("size", "shown"), [((40, 36), (40, 36)), ((1000, 500), (768, 384)), ((36, 900), (31, 768))])
async def test_picture_has_the_images_shape(service: httpx.AsyncClient, size: tuple[int, int], shown: tuple[int, int]) -> None:
    response = await service.post("/explain?class=class 3", content=encode(random_image(4, *size)), headers=PICTURE)
    assert (response.status_code, response.headers["content-type"]) == (200, "image/png")
    with Image.open(io.BytesIO(response.content)) as picture:
        assert (picture.format, picture.size) == ("PNG", shown)
        assert picture.info["Description"] == "relevance of class 3, by tiny-dinov2"


async def test_picture_darkens_what_was_cut_off(service: httpx.AsyncClient) -> None:
    white = encode(Image.new("RGB", (120, 64), "white"))
    response = await service.post("/explain?opacity=0", content=white, headers=PICTURE)
    with Image.open(io.BytesIO(response.content)) as picture:
        seen = np.asarray(picture).min(axis=2) == 255
    assert seen[4:60, 32:88].all()
    assert seen.sum() == 56 * 56


async def test_opacity_is_that_of_the_colours(service: httpx.AsyncClient) -> None:
    pictures = []
    for opacity in ("0", "0.5", "1"):
        response = await service.post("/explain", params={"opacity": opacity}, content=png(0), headers=PICTURE)
        with Image.open(io.BytesIO(response.content)) as picture:
            pictures.append(np.asarray(picture).astype(int))
    usual = (await service.post("/explain", content=png(0), headers=PICTURE)).content
    assert usual == (await service.post("/explain?opacity=0.6", content=png(0), headers=PICTURE)).content
    np.testing.assert_allclose(pictures[1], (pictures[0] + pictures[2]) / 2, atol=1)
    assert np.abs(pictures[0] - pictures[2]).max() > 50


@pytest.mark.parametrize("accepted", ["*/*", "image/*", "application/json", "image/png;q=0"])
async def test_json_is_the_usual_answer(service: httpx.AsyncClient, accepted: str) -> None:
    response = await service.post("/explain", content=png(0), headers={"Accept": accepted})
    assert response.headers["content-type"] == "application/json"


async def test_class_is_a_label_or_an_index(service: httpx.AsyncClient) -> None:
    by_label, by_index = [await explained(service, png(0), **{"class": named}) for named in ("class 3", "3")]
    assert by_label == by_index
    assert (by_label["class_index"], by_label["label"]) == (3, "class 3")


@pytest.mark.parametrize("named", ["", "cat", "10", "-1", "3.0", "٣", "1" * 5000], ids=lambda named: named[:8] or "empty")
async def test_unknown_class_is_refused(service: httpx.AsyncClient, named: str) -> None:
    problem = assert_problem(await service.post("/explain", params={"class": named}, content=png(0)), 422, "invalid_parameter")
    assert "There is no class" in problem["detail"]
    assert len(problem["detail"]) < 200


async def test_label_of_several_classes(open_client: OpenClient, tmp_path: Path) -> None:
    labels = ("crane", "dog", "crane", "1", *TINY_LABELS[4:])
    save_checkpoint(tmp_path / "cranes", tiny_model(), TINY_PREPROCESSING, labels, torch.float32)
    async with open_client(model=tmp_path / "cranes") as client:
        problem = assert_problem(await client.post("/explain?class=crane", content=png(0)), 422, "invalid_parameter")
        assert "2 classes have this label" in problem["detail"] and "class_index" in problem["detail"]
        assert (await explained(client, png(0), class_index="1"))["label"] == "dog"
        assert (await explained(client, png(0), **{"class": "2"}))["label"] == "crane"
        assert (await explained(client, png(0), **{"class": "1"}))["class_index"] == 3  # a label counts before an index


@pytest.mark.parametrize("query", ["class_index=10", "class_index=-1", "class_index=x", "class_index=1&class=cat"])
async def test_wrong_class_index_is_refused(service: httpx.AsyncClient, query: str) -> None:
    assert_problem(await service.post(f"/explain?{query}", content=png(0)), 422, "invalid_parameter")


@pytest.mark.parametrize("query", ["method=lime", "method=", "opacity=1.1", "opacity=-0.1", "opacity=nan", "opacity=x"])
async def test_wrong_parameter_is_refused(service: httpx.AsyncClient, query: str) -> None:
    problem = assert_problem(await service.post(f"/explain?{query}", content=png(0)), 422, "invalid_parameter")
    if query.startswith("method"):
        assert "relevance, rollout" in problem["detail"]


async def test_encoder_has_rollout_alone(open_client: OpenClient, tmp_path: Path) -> None:
    save("DINOv3ViTModel", tmp_path / "encoder")
    async with open_client(model=tmp_path / "encoder") as client:
        assert (await client.get("/model")).json()["explanations"] == ["rollout"]
        answer = await explained(client, png(0))
        assert (answer["method"], answer["class_index"], answer["label"], answer["probability"]) == (
            "rollout",
            None,
            None,
            None,
        )
        assert np.max(answer["relevance"]) == 1
        picture = await client.post("/explain", content=png(0), headers=PICTURE)
        with Image.open(io.BytesIO(picture.content)) as image:
            assert image.info["Description"] == "rollout, by encoder"
        for query in ("method=relevance", "class=0", "method=rollout&class=0"):
            problem = assert_problem(await client.post(f"/explain?{query}", content=png(0)), 501, "no_classes")
            assert "encoder" in problem["detail"]


async def test_models_of_a_library_are_refused(open_client: OpenClient, tmp_path: Path) -> None:
    async with open_client(model=write_swin(tmp_path)) as client:
        problem = assert_problem(await client.post("/explain", content=png(0)), 501, "no_explanation")
        assert "transformers" in problem["detail"]
        assert (await client.get("/model")).json()["explanations"] == []


async def test_explanations_can_be_switched_off(open_client: OpenClient) -> None:
    async with open_client(explain=False) as client:
        problem = assert_problem(await client.post("/explain", content=png(0)), 501, "no_explanation")
        assert "VIT_EXPLAIN" in problem["detail"]
        assert (await client.get("/model")).json()["explanations"] == []
        assert (await client.post("/predict", content=png(0))).status_code == 200


async def test_full_queue_is_refused(open_client: OpenClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_client(max_explained_images=1) as client:
        held = HeldKeeper(client, monkeypatch)
        first = asyncio.create_task(client.post("/explain", content=png(0)))
        await held.begun.wait()
        refused = await client.post("/explain", content=png(1))
        assert_problem(refused, 429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        assert (await client.post("/predict", content=png(0))).status_code == 200
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        monkeypatch.undo()
        await explained(client, png(0))  # the slot of who left is free
        counted = metrics_of((await client.get("/metrics")).content)
        outcomes = {name: counted[f'vit_explanations_total{{outcome="{name}"}}'] for name in ("ok", "cancelled")}
        assert outcomes == {"ok": 1, "cancelled": 1}
        assert counted["vit_explain_seconds_count"] == 1


async def test_deadline_is_kept(open_client: OpenClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_client(max_explained_images=1) as client:
        HeldKeeper(client, monkeypatch)
        for _ in range(2):  # the first one's slot is free again
            late = await client.post("/explain", content=png(0), headers={"X-Request-Timeout-Ms": "50"})
            assert_problem(late, 504, "deadline_exceeded")
        counted = metrics_of((await client.get("/metrics")).content)
        assert counted['vit_explanations_total{outcome="deadline_exceeded"}'] == 2


@pytest.mark.parametrize(
    ("image", "status", "code"),
    [
        (b"hello there", 415, "unsupported_image_format"),
        (png(0)[:200], 422, "undecodable_image"),
        (b"", 400, "malformed_request"),
    ],
    ids=["text", "truncated", "empty"],
)
async def test_bad_image_is_refused(service: httpx.AsyncClient, image: bytes, status: int, code: str) -> None:
    assert_problem(await service.post("/explain", content=image), status, code)


async def test_key_is_required(open_client: OpenClient) -> None:
    async with open_client(api_keys="secret") as client:
        assert_problem(await client.post("/explain", content=png(0)), 401, "unauthorized")
