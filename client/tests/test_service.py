"""Both clients against the real service."""

import asyncio
import io
import os
import threading
from contextlib import aclosing
from pathlib import Path

import httpx2
import pytest
from PIL import Image as PillowImage

from client.tests.conftest import KEY, MakeClient
from client.tests.scripted_server import OK, Reply, answering
from tests.support.models import TINY_LABELS, png, random_image
from tests.support.server import Server
from vit_serve_client import AsyncVitClient, BadImage, Failure, Image, Result, TooLarge, Unauthorized, VitClient, VitError


def seen(outcomes: list[Result | Failure]) -> list[str]:
    """Return the best logit of each result, which tells images apart, or the code of its error."""
    return [
        str(outcome.error.code) if isinstance(outcome, Failure) else f"{outcome.predictions[0].logit:.3f}"
        for outcome in outcomes
    ]


def test_image_is_classified(make_client: MakeClient, service: Server, tmp_path: Path) -> None:
    client = make_client(service.url, api_key=KEY)
    (tmp_path / "a.png").write_bytes(png(1))
    result = client.classify(tmp_path / "a.png", top_k=2, vectors=True)
    assert result.logits is not None and result.probabilities is not None
    assert [prediction.logit for prediction in result.predictions] == sorted(result.logits, reverse=True)[:2]
    assert sum(result.probabilities) == pytest.approx(1)
    assert {"total", "decode", "queue", "inference"} <= result.timings.keys()
    assert (result.activation, bool(result.request_id)) == ("softmax", True)
    for image in (png(1), io.BytesIO(png(1)), random_image(1)):
        other = client.classify(image)
        assert (other.predictions[:2], len(other.predictions), other.logits) == (result.predictions, 5, None)


def test_named_model_answers(make_client: MakeClient, service: Server) -> None:
    name = make_client(service.url, api_key=KEY).model().name
    assert make_client(service.url, api_key=KEY, model=name).classify(png(1)).predictions
    other = make_client(service.url, api_key=KEY, model="none")
    for call in (other.model, lambda: other.classify(png(1)), lambda: other.embed(png(1)), lambda: other.explain(png(1))):
        with pytest.raises(VitError, match="There is no model 'none'"):
            call()


def test_image_is_embedded(make_client: MakeClient, service: Server) -> None:
    client = make_client(service.url, api_key=KEY)
    embedding = client.embed(png(1))
    assert (embedding.pooling, len(embedding.vector), embedding.normalized) == ("token+avg", 64, False)
    unit = client.embed(png(1), pooling="avg", normalize=True)
    assert (unit.pooling, unit.normalized, bool(unit.request_id)) == ("avg", True, True)
    assert sum(number**2 for number in unit.vector) == pytest.approx(1)
    with pytest.raises(VitError, match="token\\+avg, token, avg"):
        client.embed(png(1), pooling="map")
    with pytest.raises(BadImage):
        client.embed(b"no image")


def test_image_is_explained(make_client: MakeClient, service: Server) -> None:
    client = make_client(service.url, api_key=KEY)
    explanation = client.explain(png(1))
    first = client.classify(png(1), top_k=1).predictions[0]
    assert (explanation.class_index, explanation.label) == (first.class_index, first.label)
    assert explanation.probability == pytest.approx(first.probability, rel=1e-4)
    assert (explanation.method, explanation.size, bool(explanation.request_id)) == ("relevance", (40, 36), True)
    assert [len(row) for row in explanation.relevance] == [4] * 4
    assert max(map(max, explanation.relevance)) == 1
    assert explanation.box == pytest.approx((3.43, 2.25, 35.43, 33.75))
    by_label, by_index = client.explain(png(1), "class 5"), client.explain(png(1), 5)
    assert by_label.relevance == by_index.relevance != explanation.relevance
    assert client.explain(png(1), method="rollout").method == "rollout"
    with pytest.raises(VitError, match="relevance, rollout"):
        client.explain(png(1), method="lime")
    with pytest.raises(BadImage):
        client.explain(b"no image")


def test_explanation_is_drawn(make_client: MakeClient, service: Server) -> None:
    client = make_client(service.url, api_key=KEY)
    with PillowImage.open(io.BytesIO(client.explain_picture(png(1), 3))) as picture:
        assert (picture.format, picture.size) == ("PNG", (40, 36))
        assert picture.info["Description"] == "relevance of class 3, by tiny-dinov2"
    pictures = {client.explain_picture(png(1), 3, opacity=opacity) for opacity in (None, 0.6, 0)}
    assert len(pictures) == 2  # 0.6 is the default
    with pytest.raises(VitError, match="opacity"):
        client.explain_picture(png(1), opacity=2)
    with pytest.raises(BadImage):
        client.explain_picture(b"no image")


def test_many_images_keep_their_order(make_client: MakeClient, service: Server, tmp_path: Path) -> None:
    client = make_client(service.url, api_key=KEY)
    images = [png(seed) for seed in range(35)]
    single = seen([client.classify(image) for image in images])
    assert len(set(single)) > 30
    assert seen(client.classify_many(images)) == single
    mixed: list[Image] = [images[0], b"no image", tmp_path / "missing.png", b"", images[1]]
    expected = [single[0], "unsupported_image_format", "None", "malformed_request", single[1]]
    assert seen(client.classify_many(mixed, batch_size=2)) == expected
    assert client.classify_many([]) == []
    assert seen(client.classify_many([tmp_path / "missing.png"])) == ["None"]


def test_failed_request_fails_its_images(make_client: MakeClient, service: Server) -> None:
    outcomes = make_client(service.url, api_key="wrong").classify_many([png(0), png(1)], batch_size=1)
    assert seen(outcomes) == ["unauthorized", "unauthorized"]


def test_errors_are_those_of_the_service(make_client: MakeClient, service: Server) -> None:
    with pytest.raises(Unauthorized) as refused:
        make_client(service.url).classify(png(0))
    assert (refused.value.status, refused.value.code) == (401, "unauthorized")
    assert refused.value.request_id
    client = make_client(service.url, api_key=KEY)
    for image in (b"no image", b"", png(0)[:100]):
        with pytest.raises(BadImage):
            client.classify(image)
    with pytest.raises(VitError) as wrong:
        client.classify(png(0), top_k=0)
    assert (type(wrong.value), wrong.value.code) == (VitError, "invalid_parameter")


def test_too_many_bytes_are_told_apart(make_client: MakeClient, service: Server) -> None:
    client = make_client(service.url, api_key=KEY)
    large = bytes(11 * 2**20)
    with pytest.raises(TooLarge) as refused:
        client.classify(large)
    assert (refused.value.status, refused.value.code) == (413, "image_too_large")
    assert seen(client.classify_many([large, png(0), large]))[::2] == ["image_too_large", "image_too_large"]
    many = [large] * 9  # more than one request may have
    assert seen(client.classify_many(many)) == ["image_too_large"] * 9


def test_model_is_described(make_client: MakeClient, service: Server) -> None:
    client = make_client(service.url, api_key=KEY)
    model = client.model()
    assert (model.labels, model.image_size, model.engine) == (TINY_LABELS, 28, "torch")
    assert client.ready()


def test_folder_with_bad_files_is_classified(make_client: MakeClient, service: Server, folder: Path) -> None:
    (folder / "deep").mkdir()
    for seed in range(12):
        (folder / "deep" / f"{seed}.png").write_bytes(png(seed))
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "dangling.png").symlink_to(folder / "nothing")
    (folder / "directory.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    client = make_client(service.url, api_key=KEY)
    outcomes = {path.name: outcome for path, outcome in client.classify_folder(folder, concurrency=3, top_k=1)}
    failed = {name for name, outcome in outcomes.items() if isinstance(outcome, Failure)}
    assert failed == {"broken.jpg", "dangling.png", "pipe.png"}
    assert len(outcomes) == 12 + 3
    best = [outcomes[f"{seed}.png"] for seed in range(12)]
    assert seen(best) == seen(client.classify_many([png(seed) for seed in range(12)]))


def test_folder_arguments_are_checked_at_once(make_client: MakeClient, tmp_path: Path) -> None:
    with VitClient("http://127.0.0.1:1") as client:
        with pytest.raises(NotADirectoryError):
            client.classify_folder(tmp_path / "missing")
        with pytest.raises(ValueError, match="concurrency must be at least 1"):
            client.classify_folder(tmp_path, concurrency=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        make_client("http://127.0.0.1:1").classify_many([], batch_size=0)


def test_folder_is_read_as_it_is_classified(make_client: MakeClient, folder: Path) -> None:
    for index in range(20):
        (folder / f"{index:02}.png").write_bytes(b"image")
    with answering(OK) as server:
        outcomes = make_client(server.url).classify_folder(folder, concurrency=2)
        next(outcomes)
        assert len(server.received) <= 2
        outcomes.close()
        assert len(server.received) <= 2


def test_closed_folder_leaves_no_threads(service: Server, folder: Path) -> None:
    for seed in range(6):
        (folder / f"{seed}.png").write_bytes(png(seed))
    with VitClient(service.url, KEY) as client:
        outcomes = client.classify_folder(folder, concurrency=2)
        next(outcomes)
        outcomes.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vit-serve-client")]


async def test_closed_folder_cancels_requests(folder: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        (folder / name).write_bytes(b"image")
    with answering(OK, Reply(silent=True)) as server:
        async with AsyncVitClient(server.url, timeout=600) as client:
            async with aclosing(client.classify_folder(folder, concurrency=2)) as outcomes:
                await anext(outcomes)
                await asyncio.to_thread(server.arrived.acquire)
                await asyncio.to_thread(server.arrived.acquire)
            assert len(asyncio.all_tasks()) == 1
        assert len(server.received) == 2


def test_given_http_client_stays_open() -> None:
    with answering(OK) as server, httpx2.Client(headers={"X-Mine": "1"}) as http:
        with VitClient(server.url, http_client=http) as client:
            client.classify(b"image")
        assert not http.is_closed
        assert server.received[0].headers["X-Mine"] == "1"
