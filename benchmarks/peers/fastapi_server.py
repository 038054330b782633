"""Plain FastAPI: a `def` endpoint, an upload, the model in the same process."""

from typing import Any

from common import model_from_environment
from fastapi import FastAPI, UploadFile

app = FastAPI()
model = model_from_environment()


@app.post("/predict")
def predict(image: UploadFile) -> dict[str, Any]:
    return model.classify(model.decode(image.file.read())[None])[0]
