"""Fine-tuning of a checkpoint on labelled images, as used for the bundled weights.

Training can be interrupted at any time: with the same output folder it resumes from the last saved step, with the same images
in the same order.
"""

import json
import math
import os
import random
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from model.checkpoints.checkpoint import load_backbone, save_checkpoint
from model.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from model.training.augment import random_view
from model.training.dataset import Decode, LabelledImages
from model.training.settings import TrainSettings
from model.vit import VisionTransformer


class TrainError(Exception):
    """Training cannot start or continue; the message says why."""


class AugmentedStream(Dataset[tuple[Tensor, int]]):
    """An endless shuffled, augmented stream over a data set; each item depends on its position and the seed alone."""

    def __init__(self, images: LabelledImages, decode: Decode, image_size: int, seed: int) -> None:
        self.images, self.decode, self.image_size, self.seed = images, decode, image_size, seed
        self._epoch, self._order = -1, torch.empty(0)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        epoch, offset = divmod(position, len(self.images))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            self._epoch, self._order = epoch, torch.randperm(len(self.images), generator=generator)
        index = int(self._order[offset])
        image_bytes, target = self.images.read(index)
        try:
            image = self.decode(image_bytes)
        except Exception as error:  # decoders raise exceptions of many types
            reason = str(error) or type(error).__name__
            raise TrainError(f"{self.images.name(index)} can no longer be decoded: {reason}") from error
        return random_view(image, self.image_size, random.Random(f"{self.seed}/{position}")), target


def train(
    start: Path,
    images: LabelledImages,
    decode: Decode,
    output: Path,
    preprocessing: Preprocessing,
    settings: TrainSettings,
) -> VisionTransformer:
    """Fine-tune the encoder of `start` with a new head, and save the result as a checkpoint in `output`.

    Also writes `recipe.json`, and `history.jsonl` with each step's loss, accuracy on the augmented batch and learning rate.

    Raises:
        CheckpointError: `start` has no readable encoder.
        TrainError: `output` has the state of a training with another recipe, or an unreadable one.
    """
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_backbone(start, len(images.labels), settings.image_size).to(device).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, settings), fused=device.type == "cuda")
    recipe = {"settings": asdict(settings), "labels": list(images.labels), "images": len(images), "start": str(start)}
    state_file, history_file = output / "training_state.pt", output / "history.jsonl"
    step = _restore(state_file, recipe, model, optimizer, device)
    _truncate_history(history_file, step)

    total = math.ceil(settings.epochs * len(images) / settings.batch_size)
    stream = AugmentedStream(images, decode, settings.image_size, settings.seed)
    with _progress() as progress, history_file.open("a", encoding="utf-8") as history:
        task = progress.add_task("training", total=total, completed=step, loss=math.nan, accuracy=math.nan)
        for pixels, targets in _batches(stream, settings, step, total):
            factor = _set_learning_rate(optimizer, settings, step, total)
            inputs = _normalise(pixels.to(device), preprocessing)
            loss, accuracy = _step(model, optimizer, inputs, targets.to(device), settings.label_smoothing)
            step += 1
            line = {"step": step, "loss": round(loss, 4), "accuracy": round(accuracy, 4), "learning_rate": factor}
            history.write(json.dumps(line) + "\n")
            progress.update(task, completed=step, loss=loss, accuracy=accuracy)
            if step % settings.save_every == 0 or step == total:
                history.flush()
                _save(state_file, recipe, model, optimizer, step)

    save_checkpoint(output, model, preprocessing, images.labels, torch.float16)
    (output / "recipe.json").write_text(json.dumps(asdict(settings), indent=2) + "\n", encoding="utf-8")
    return model


def _set_learning_rate(optimizer: torch.optim.Optimizer, settings: TrainSettings, step: int, total: int) -> float:
    """Set the learning rate of each group for this step; return its factor of the peak."""
    factor = schedule(step, total, settings.warmup)
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * factor * group["scale"]
    return factor


def training_preprocessing(image_size: int) -> Preprocessing:
    """Return the inference preprocessing of a model trained here, with ImageNet's mean and standard deviation, as DINOv2's."""
    return Preprocessing(
        resize=image_size,
        crop=(image_size, image_size),
        interpolation="bicubic",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def parameter_groups(model: VisionTransformer, settings: TrainSettings) -> list[dict[str, Any]]:
    """Return one group per block and kind: `scale` is multiplied by `layer_decay` per block towards the input, and only
    matrices have weight decay."""
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    depth = model.config.depth
    for name, parameter in model.named_parameters():
        match name.split("."):
            case ["blocks", number, *_]:
                layer = int(number) + 1
            case ["head" | "norm", *_]:
                layer = depth + 1
            case _:
                layer = 0
        decays = parameter.ndim >= 2 and name not in ("cls_token", "pos_embed")
        group = {
            "params": [],
            "scale": settings.layer_decay ** (depth + 1 - layer),
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        groups.setdefault((layer, decays), group)["params"].append(parameter)
    return list(groups.values())


def schedule(step: int, total: int, warmup: float) -> float:
    """Return the factor of the peak learning rate: linear warm-up, then a cosine to 0."""
    rise = max(1, round(total * warmup))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def _batches(stream: AugmentedStream, settings: TrainSettings, step: int, total: int) -> Iterator[tuple[Tensor, Tensor]]:
    size = settings.batch_size
    positions = [list(range(number * size, (number + 1) * size)) for number in range(step, total)]
    loader: DataLoader[Any] = DataLoader(stream, batch_sampler=positions, num_workers=settings.workers)
    yield from loader


def _normalise(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """(B, 3, H, W) uint8 -> normalised float32."""
    mean, std = (
        pixels.new_tensor(values, dtype=torch.float32).view(1, 3, 1, 1) for values in (preprocessing.mean, preprocessing.std)
    )
    return (pixels.float() * preprocessing.scale - mean) / std


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, targets: Tensor, label_smoothing: float
) -> tuple[float, float]:
    """Train on one batch; return its loss and accuracy."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
        logits = model(images)
    loss = F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach()), float((logits.argmax(dim=1) == targets).float().mean())


def _save(path: Path, recipe: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    temporary = path.with_suffix(".tmp")
    state = {"step": step, "recipe": recipe, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, temporary)
    os.replace(temporary, path)  # atomic: an interruption leaves the old state or the new one


def _restore(
    path: Path, recipe: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
) -> int:
    """Load the saved state, if there is one; return the number of steps done.

    Raises:
        TrainError: the state cannot be read, or its recipe differs.
    """
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        saved = state["recipe"]
    except Exception as error:
        raise TrainError(f"{path} cannot be read; remove it to start again") from error
    if saved != recipe:
        other = ", ".join(key for key in recipe if saved.get(key) != recipe[key])
        raise TrainError(f"{path} is from a training with other {other}; remove it, or write to another folder")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _truncate_history(history: Path, step: int) -> None:
    """Drop the lines of steps after the saved state, which will run again."""
    if history.exists():
        lines = history.read_text(encoding="utf-8").splitlines(keepends=True)
        history.write_text("".join(lines[:step]), encoding="utf-8")


def _progress() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  accuracy {task.fields[accuracy]:.0%}"),
        TimeRemainingColumn(),
    )
