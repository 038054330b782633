"""An encoder without a classifier: described, and refused by /predict before the body is read."""

from pathlib import Path

from tests.app.conftest import OpenClient
from tests.model.checkpoints.test_encoders import save
from tests.support.models import png


async def test_encoder_is_described_and_predict_is_501(open_client: OpenClient, tmp_path: Path) -> None:
    save("DINOv3ViTModel", tmp_path)
    async with open_client(model=str(tmp_path)) as client:
        model = (await client.get("/model")).json()
        assert (model["labels"], model["output_size"], model["activation"]) == ([], 96, "none")
        for path in ("/predict", "/predict/batch"):
            answer = await client.post(path, files=[("images", png(0))])
            assert (answer.status_code, answer.json()["code"]) == (501, "no_classes")
            assert "is an encoder without a classifier" in answer.json()["detail"]
        assert (await client.get("/health/ready")).status_code == 200
