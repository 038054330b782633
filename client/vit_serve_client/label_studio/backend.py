"""Predictions for tasks, in Label Studio's words."""

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from vit_serve_client.client import VitClient
from vit_serve_client.errors import VitError
from vit_serve_client.label_studio.label_config import choices
from vit_serve_client.label_studio.origin import Origin, Refused
from vit_serve_client.results import Result

log = logging.getLogger(__name__)

MAX_TASKS = 1000
"""Most tasks of one request."""

CONCURRENCY = 8


@dataclass(frozen=True, slots=True)
class Names:
    """Names that a project's labelling configuration uses."""

    from_name: str
    """Name of the `Choices`."""
    to_name: str
    """Name of the `Image`."""
    value: str
    """Key of the image in a task's data."""


class Backend:
    """Answers to Label Studio's requests. Threads may share it."""

    def __init__(self, client: VitClient, origin: Origin, names: Names, top_k: int = 5) -> None:
        self._client = client
        self._origin = origin
        self._names = names
        self._top_k = top_k
        self._pool = ThreadPoolExecutor(CONCURRENCY, thread_name_prefix="vit-serve-task")

    def close(self) -> None:
        """End the threads, when their tasks are done."""
        self._pool.shutdown(cancel_futures=True)

    def version(self) -> str:
        """Return the name of the served model; `unknown` while the service cannot tell."""
        try:
            return self._client.model().name
        except VitError as error:
            log.warning("the model is unknown: %s", error)
            return "unknown"

    def predict(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return a prediction for each task of a request.

        Raises:
            ValueError: the request has no tasks or too many, or its labelling configuration is refused.
        """
        tasks, label_config = request.get("tasks"), request.get("label_config") or ""
        if not isinstance(tasks, list) or not isinstance(label_config, str):
            raise ValueError("The request must have a list of tasks, and a labelling configuration as a string.")
        if len(tasks) > MAX_TASKS:
            raise ValueError(f"The request must not have more than {MAX_TASKS} tasks.")
        known = choices(label_config, self._names.from_name) if label_config else {}
        results = list(self._pool.map(lambda task: self._predict_task(task, known), tasks))
        version = next((result["model_version"] for result in results if result["model_version"]), None) or self.version()
        return {"results": [{**result, "model_version": version} for result in results]}

    def _predict_task(self, task: object, known: Mapping[str, str]) -> dict[str, Any]:
        try:
            data = task.get("data") if isinstance(task, dict) else None
            image = self._origin.fetch(data.get(self._names.value) if isinstance(data, dict) else None)
            return self._prediction(self._client.classify(image, self._top_k), known)
        except (Refused, VitError) as error:
            log.warning("a task has no prediction: %s", error)
            return {"result": [], "score": 0.0, "model_version": None}

    def _prediction(self, result: Result, known: Mapping[str, str]) -> dict[str, Any]:
        """Return the best class that the project has."""
        for prediction in result.predictions:
            if prediction.label in known:
                choice = {
                    "from_name": self._names.from_name,
                    "to_name": self._names.to_name,
                    "type": "choices",
                    "value": {"choices": [known[prediction.label]]},
                }
                return {"result": [choice], "score": prediction.probability or 0.0, "model_version": result.model}
        return {"result": [], "score": 0.0, "model_version": result.model}
