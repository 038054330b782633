"""Fine-tune a checkpoint on a labelled image set. Made the bundled weights.

Interrupt it at any time: called again with the same output folder it goes on from the last saved step, through the very
same pictures.
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
from model.preprocessing import Preprocessing
from model.training.augment import random_view
from model.training.dataset import Decode, LabelledImages
from model.training.learning_curve import draw_learning_curve
from model.training.settings import TrainSettings
from model.vit import VisionTransformer


class TrainError(Exception):
    """A training that cannot go on; the message says why."""


class AugmentedStream(Dataset[tuple[Tensor, int]]):
    """An endless shuffled, augmented reading of a data set: what stands at a position depends on it and the seed alone."""

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
        except Exception as error:  # decoders raise whatever they like
            raise TrainError(
                f"{self.images.name(index)} cannot be decoded any more: {error or type(error).__name__}"
            ) from error
        return random_view(image, self.image_size, random.Random(f"{self.seed}/{position}")), target


def train(
    start: Path,
    images: LabelledImages,
    decode: Decode,
    output: Path,
    preprocessing: Preprocessing,
    settings: TrainSettings,
) -> VisionTransformer:
    """Fine-tune the encoder in `start` with a new head, and save it as a checkpoint in `output`.

    Writes `history.jsonl` (a line a step: loss, accuracy on the augmented batch, learning rate) as it goes, and at the end
    `learning_curve.svg`, drawn from it, and `recipe.json`.

    Raises:
        CheckpointError: `start` holds no encoder that can be read.
        TrainError: `output` holds an interrupted training of another kind, or one that cannot be read.
    """
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_backbone(start, len(images.labels), settings.image_size).to(device).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, settings), fused=device.type == "cuda")
    state_file = output / "training_state.pt"
    total = math.ceil(settings.epochs * len(images) / settings.batch_size)
    recipe = {"settings": asdict(settings), "labels": list(images.labels), "images": len(images), "start": str(start)}
    step = _restore(state_file, recipe, model, optimizer, device)
    _forget_after(output / "history.jsonl", step)

    stream = AugmentedStream(images, decode, settings.image_size, settings.seed)
    with _progress() as progress, (output / "history.jsonl").open("a", encoding="utf-8") as history:
        task = progress.add_task("training", total=total, completed=step, loss=math.nan, accuracy=math.nan)
        for pixels, targets in _batches(stream, settings, step, total):
            learning_rate = schedule(step, total, settings.warmup)
            _set_learning_rate(optimizer, settings.learning_rate * learning_rate)
            loss, accuracy = _step(model, optimizer, _normalise(pixels.to(device), preprocessing), targets.to(device), settings)
            step += 1
            line = {"step": step, "loss": round(loss, 4), "accuracy": round(accuracy, 4), "learning_rate": learning_rate}
            history.write(json.dumps(line) + "\n")
            progress.update(task, completed=step, loss=loss, accuracy=accuracy)
            if step % settings.save_every == 0 or step == total:
                history.flush()
                _save(state_file, recipe, model, optimizer, step)

    save_checkpoint(output, model, preprocessing, images.labels, torch.float16)
    draw_learning_curve(output / "history.jsonl", output / "learning_curve.svg")
    (output / "recipe.json").write_text(json.dumps(asdict(settings), indent=2) + "\n", encoding="utf-8")
    return model


def _set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["scale"]


def training_preprocessing(image_size: int) -> Preprocessing:
    """Return the preprocessing at inference of a model that was trained here; ImageNet's mean and deviation, as DINOv2."""
    return Preprocessing(
        resize=image_size,
        crop=(image_size, image_size),
        interpolation="bicubic",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )


def parameter_groups(model: VisionTransformer, settings: TrainSettings) -> list[dict[str, Any]]:
    """One group for each depth and kind: `scale` falls by `layer_decay` a block towards the input; only matrices decay."""
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
    """Share of the peak learning rate: a linear rise, then a cosine to 0."""
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
    """(B, 3, H, W) uint8 -> float32 as the model takes it."""
    mean, std = (
        pixels.new_tensor(values, dtype=torch.float32).view(1, 3, 1, 1) for values in (preprocessing.mean, preprocessing.std)
    )
    return (pixels.float() * preprocessing.scale - mean) / std


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, targets: Tensor, settings: TrainSettings
) -> tuple[float, float]:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
        logits = model(images)
    loss = F.cross_entropy(logits.float(), targets, label_smoothing=settings.label_smoothing)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach()), float((logits.argmax(dim=1) == targets).float().mean())


def _save(path: Path, recipe: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    temporary = path.with_suffix(".tmp")
    state = {"step": step, "recipe": recipe, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, temporary)
    os.replace(temporary, path)  # an interruption leaves the old state or the new one, never half a file


def _restore(
    path: Path, recipe: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
) -> int:
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        begun = state["recipe"]
    except Exception as error:
        raise TrainError(f"{path} cannot be read; remove it to begin again") from error
    if begun != recipe:
        other = ", ".join(key for key in recipe if begun.get(key) != recipe[key])
        raise TrainError(f"{path} is of a training with other {other}; remove it, or write to another folder")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _forget_after(history: Path, step: int) -> None:
    """Keep a line for each of the steps that the saved state has seen; later ones will be made again."""
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
