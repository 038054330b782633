"""ModelCopy: the checkpoint by torch in float32 on the CPU, with its attention kept; the work of the process that explains."""

import socket
import time
import traceback
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.explaining import messages
from app.explaining.overlay import draw_overlay
from app.explaining.question import Question
from app.process.cpu import available_cpus
from model.checkpoints.checkpoint import Checkpoint, load_checkpoint
from model.head import probabilities
from model.relevance import RecordedModel
from model.vit import VisionTransformer

Grid = NDArray[np.float32]
"""Relevance by row and column of the patches; the largest is 1, unless all are 0."""


class ModelCopy:
    """A model that explains itself.

    Raises:
        ValueError: a library runs the model.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        if not isinstance(checkpoint.model, VisionTransformer):
            raise ValueError("only a model of our own can be explained")
        self._checkpoint = checkpoint
        self._config = checkpoint.model.config
        self._model = RecordedModel(checkpoint.model)

    def explain(self, question: Question, pixels: bytes, photograph: bytes) -> bytes:
        """Explain one image.

        Args:
            question: what is asked.
            pixels: (C, H, W) uint8 of the model's input.
            photograph: (3, height, width) uint8, of the size that `question.overlay` says.

        Returns:
            A message: `class_index`, `probability` and `seconds`, the grid as float32, and the picture; or `failed`.
        """
        began = time.perf_counter()
        recording = self._model.run(self._normalised(pixels), gradients=question.method == "relevance")
        logits = recording.output.detach().numpy()
        if not np.isfinite(logits).all():
            return messages.pack({"failed": "The model's outputs for this image are not finite."})
        index = question.class_index
        if index is None and self._checkpoint.labels:
            index = int(logits.argmax())
        if question.method == "rollout":
            found = recording.rollout()
        else:
            assert index is not None, "an encoder has no class to explain"
            found = recording.relevance(index)
        if not found.isfinite().all():
            return messages.pack({"failed": "The gradients for this image are not finite."})
        side = self._config.grid_size
        grid = (found / found.max().clamp(min=torch.finfo(found.dtype).tiny)).view(side, side).numpy()
        overlay = self._draw(question, grid, index, photograph)
        seconds = time.perf_counter() - began
        fields = {"class_index": index, "probability": self._probability(logits, index), "seconds": seconds}
        return messages.pack(fields, grid.tobytes(), overlay)

    def _normalised(self, pixels: bytes) -> Tensor:
        preprocessing = self._checkpoint.preprocessing
        shape = (1, self._config.num_channels, self._config.image_size, self._config.image_size)
        image = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(shape)
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
        return ((image.flip(1) if preprocessing.bgr else image) * preprocessing.scale - mean) / std

    def _probability(self, logits: NDArray[np.float32], class_index: int | None) -> float | None:
        computed = probabilities(logits[None], self._checkpoint.activation)
        return None if class_index is None or computed is None else float(computed[0, class_index])

    def _draw(self, question: Question, grid: Grid, class_index: int | None, photograph: bytes) -> bytes:
        if question.overlay is None:
            return b""
        width, height = question.overlay.size
        shown = np.frombuffer(photograph, np.uint8).reshape(3, height, width)
        about = "" if class_index is None else f" of {self._checkpoint.labels[class_index]}"
        return draw_overlay(shown, grid, question.overlay, f"{question.method}{about}, by {self._checkpoint.name}")


def serve(connection: socket.socket) -> None:
    """Load the checkpoint that the first message names, and answer the others until the connection is closed."""
    torch.set_num_threads(max(1, available_cpus() // 2))
    with connection.makefile("rb") as requests:
        model: ModelCopy | None = None
        while (message := messages.read(requests)) is not None:
            try:
                if model is None:
                    model = _load(*message[0]["checkpoint"])
                    answer = messages.pack({})
                else:
                    answer = model.explain(Question.of(message[0]), *message[1:])
            except Exception:  # the service logs it; the next image may do better
                answer = messages.pack({"error": traceback.format_exc()})
            connection.sendall(answer)


def _load(model: str, architecture: str | None, image_size: int | None, activation: Any) -> ModelCopy:
    return ModelCopy(load_checkpoint(model, architecture, image_size, activation=activation, library="none"))
