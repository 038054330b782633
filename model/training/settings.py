"""TrainSettings: hyperparameters of a training. Imports no torch, so that `--help` can show its defaults."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Hyperparameters; the bundled weights were trained with the defaults."""

    epochs: float = 2.0
    batch_size: int = 64
    learning_rate: float = 4e-4
    """Peak learning rate of the head; that of each block is `layer_decay` times that of the block above."""
    layer_decay: float = 0.8
    weight_decay: float = 0.05
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises from 0; a cosine to 0 follows."""
    label_smoothing: float = 0.1
    image_size: int = 84
    """Side of the training images and of the model's input, in pixels."""
    seed: int = 0
    save_every: int = 50
    """Number of steps between two saved states."""
    workers: int = 0
    """Number of processes that decode images; 0 decodes in the training process."""
