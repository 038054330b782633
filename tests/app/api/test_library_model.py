"""A model that a library runs, served over HTTP."""

from pathlib import Path

from tests.app.conftest import OpenClient
from tests.support.library_models import write_swin
from tests.support.models import png


async def test_swin_is_served_over_http(open_client: OpenClient, tmp_path: Path) -> None:
    async with open_client(model=str(write_swin(tmp_path))) as client:
        model = (await client.get("/model")).json()
        assert model["served_by"].startswith("transformers 5.")
        answer = await client.post("/predict", content=png(0))
        assert answer.status_code == 200
        assert [len(answer.json()[key]) for key in ("predictions", "logits", "probabilities")] == [3, 3, 3]
        batch = await client.post("/predict/batch", files=[("images", png(0)), ("images", png(1))])
        logits = [result["logits"] for result in batch.json()["results"]]
        assert max(abs(a - b) for a, b in zip(logits[0], answer.json()["logits"], strict=True)) < 1e-5
