"""Model of a request, by its name in every protocol."""

import base64
from typing import Any

import httpx

from tests.app.api.models.several import answer
from tests.support.models import png


async def test_each_model_answers_by_its_name(client: httpx.AsyncClient) -> None:
    assert [await answer(client, model) for model in (None, "a", "b", "c", "d")] == [1, 1, 2, 3, 404]
    for name, index in (("a", 1), ("b", 2), ("c", 3)):
        described = (await client.get("/model", params={"model": name})).json()
        assert (described["name"], described["image_size"]) == (name, 42 if name == "b" else 28)
        embedded = await client.post("/embed", content=png(0), params={"model": name})
        assert embedded.json()["model"] == name
        raw = await client.post(f"/models/{name}", content=png(0))
        assert raw.json()[0]["label"] == f"class {index}"
        predicted = await client.post(f"/predictions/{name}", content=png(0))
        assert next(iter(predicted.json())) == f"class {index}"
        tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [raw_base64()]}
        inferred = (await client.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]})).json()
        assert inferred["model_name"] == name
        assert max(range(10), key=inferred["outputs"][0]["data"].__getitem__) == index
        row = (await client.post(f"/v1/models/{name}:predict", json={"instances": [raw_base64()]})).json()["predictions"][0]
        assert max(range(10), key=row["logits"].__getitem__) == index
        vector = await client.post("/v1/embeddings", json={"model": name, "input": raw_base64()})
        assert vector.json()["model"] == name
        batch = await client.post("/predict/batch", params={"model": name}, json={"images": [raw_base64()] * 2})
        assert [each["predictions"][0]["class_index"] for each in batch.json()["results"]] == [index] * 2


def raw_base64() -> str:
    return base64.b64encode(png(0)).decode()


async def test_explanation_is_of_the_named_model(several: Any) -> None:
    async with several(request_timeout_s=180) as client:  # explanations take what nothing else wants
        for name, index in (("a", 1), ("b", 2)):
            explained = await client.post("/explain", content=png(0), params={"model": name})
            assert explained.status_code == 200, explained.text
            assert (explained.json()["model"], explained.json()["class_index"]) == (name, index)
            assert explained.json()["grid"]["rows"] == (42 if name == "b" else 28) // 7


async def test_lists_name_all_models(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/models")).json()["models"]
    assert [(each["name"], each["state"], each["default"]) for each in listed] == [
        ("a", "ready", True),
        ("b", "ready", False),
        ("c", "ready", False),
    ]
    assert (await client.get("/health/ready")).json() == {"status": "ready", "models": dict.fromkeys("abc", "ready")}
    assert (await client.get("/v1/models")).json()["models"] == ["a", "b", "c"]
    assert (await client.get("/v2/models")).json()["models"] == [each + end for each in "abc" for end in ("", "-pixels")]
    index = (await client.post("/v2/repository/index")).json()
    assert {(each["name"], each["state"]) for each in index} >= {("a", "READY"), ("c-pixels", "READY")}


async def test_metrics_have_the_name_of_the_model(client: httpx.AsyncClient) -> None:
    await answer(client, "b")
    text = (await client.get("/metrics")).text
    for line in (
        'vit_images_total{model="b",outcome="ok"} 1.0',
        'vit_images_total{model="a",outcome="ok"} 0.0',
        'vit_model_ready{model="c"} 1.0',
        'vit_inflight_images{model="b"} 0.0',
        'vit_model_loads_total{model="a",outcome="ok"} 1.0',
    ):
        assert line in text
