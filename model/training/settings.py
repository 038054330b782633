"""TrainSettings: the recipe of a training. Imports no torch, so that `--help` can show its defaults."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """The recipe. Defaults made the bundled weights."""

    epochs: float = 2.0
    batch_size: int = 64
    learning_rate: float = 4e-4
    """Peak, for the head; each block below learns `layer_decay` times slower than the one above it."""
    layer_decay: float = 0.8
    weight_decay: float = 0.05
    warmup: float = 0.05
    """Part of all steps in which the learning rate rises from 0; a cosine to 0 follows."""
    label_smoothing: float = 0.1
    image_size: int = 84
    """Side of the training images and of the model's input, in pixels."""
    seed: int = 0
    save_every: int = 50
    """Steps between two saved states."""
    workers: int = 0
    """Processes that decode images; 0 decodes in the training process itself."""
