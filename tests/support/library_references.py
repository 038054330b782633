"""Comparison with models that transformers and timm run for the service: `python -m tests.support.library_references`.

Each is small, has lively random weights and measured statistics of BatchNorm, is saved by its own library, and is asked
about the same JPEG bytes: by its library with its own preprocessing, and by the service's decoder and engines.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from app.decoding.image import ImageDecoder
from app.engines.openvino import OpenVinoEngine
from app.engines.pixel_model import engine_model
from app.engines.torch_cpu import TorchCpuEngine
from app.pixels import Pixels
from app.process.logs import configure_logging
from model.checkpoints.checkpoint import Checkpoint, load_checkpoint
from tests.support.models import encode, random_image
from tests.support.references import Answer, Reference, _library_logits, photograph, timm_answer

import timm  # isort: skip
import transformers  # isort: skip
from safetensors.torch import save_file  # isort: skip
from timm.data.config import resolve_data_config  # isort: skip
from timm.data.transforms_factory import create_transform  # isort: skip
from timm.models import save_for_hf  # isort: skip

CLASSES = 11
"""Classes of each model."""


def lively(model: Any, size: int) -> Any:
    """Fill a model so that its answers depend on the image, and measure the statistics of its BatchNorm."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            _enliven(parameter, generator)
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.reset_running_stats()
                module.momentum = None  # the plain mean of all batches
        model.train()
        torch.manual_seed(0)  # of dropout
        model(torch.cat([_noise(detail, size, generator) for detail in (8, 16, 32, size)]))
    return model.eval()


def _noise(detail: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """Return normalised images between soft colours and the noise on which engines are compared at the start."""
    images = torch.randn(4, 3, detail, detail, generator=generator)
    return torch.nn.functional.interpolate(images, size=(size, size), mode="bilinear")


def _enliven(parameter: torch.Tensor, generator: torch.Generator) -> None:
    if parameter.dim() >= 2 and parameter.numel() > max(parameter.shape):
        fan_in = parameter[0].numel()
        parameter.normal_(0.0, (1.5 / fan_in) ** 0.5, generator=generator)
    elif bool((parameter == 1).all()):
        parameter.normal_(1.0, 0.1, generator=generator)
    elif bool((parameter == 0).all()):
        parameter.normal_(0.0, 0.1, generator=generator)
    else:  # the scale of a branch, near zero at first
        parameter.uniform_(0.2, 1.0, generator=generator)


def _transformers(family: str, processor: str, told: dict[str, Any], **config: Any) -> Reference:
    module = processor.lower().replace("mobilenetv", "mobilenet_v")
    path = f"transformers.models.{module}.image_processing_pil_{module}"
    architecture = f"{family}ForImageClassification"

    def write(directory: Path) -> tuple[Path, Answer]:
        made = getattr(__import__(path, fromlist=["x"]), f"{processor}ImageProcessorPil")(**told)
        config_class = getattr(transformers, f"{family}Config")
        model = getattr(transformers, architecture)(config_class(num_labels=CLASSES, **config))
        lively(model, 64).save_pretrained(directory)
        content = {**made.to_dict(), "image_processor_type": f"{processor}ImageProcessor"}
        (directory / "preprocessor_config.json").write_text(json.dumps(content))
        return directory, lambda image: model(**made(image, return_tensors="pt")).logits[0]

    return Reference("transformers", architecture, write)


def transformers_references() -> list[Reference]:
    """Return a small model of each family that transformers runs."""
    square: dict[str, Any] = {"size": {"height": 64, "width": 64}}
    edge: dict[str, Any] = {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}}
    shortest: dict[str, Any] = {"size": {"shortest_edge": 64}}
    pooled: dict[str, Any] = {**shortest, "crop_size": {"height": 64, "width": 64}}
    stages: dict[str, Any] = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}
    windows: dict[str, Any] = {"image_size": 64, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
    heads: dict[str, Any] = {"hidden_sizes": [16, 32, 40, 64], "depths": [1] * 4, "num_attention_heads": [1, 2, 5, 8]}
    necks = {"hidden_sizes": [24, 32, 40], "neck_hidden_sizes": [8, 12, 16, 24, 32, 40, 64], "num_attention_heads": 2}
    efficient = {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320}
    return [
        _transformers("Swin", "ViT", square, **windows),
        _transformers("Swinv2", "ViT", square, **windows),
        _transformers("ConvNext", "ConvNext", shortest, **stages),
        _transformers("ConvNextV2", "ConvNext", shortest, **stages),
        _transformers("ResNet", "ConvNext", shortest, embedding_size=16, **stages),
        _transformers("RegNet", "ConvNext", shortest, embedding_size=16, groups_width=8, **stages),
        _transformers("MobileNetV1", "MobileNetV1", edge, depth_multiplier=0.25, image_size=64),
        _transformers("MobileNetV2", "MobileNetV2", edge, depth_multiplier=0.35, image_size=64),
        _transformers("MobileViT", "MobileViT", edge, image_size=64, **necks),
        _transformers("MobileViTV2", "MobileViT", edge, image_size=64, width_multiplier=0.25),
        _transformers("EfficientNet", "EfficientNet", {**square, "rescale_offset": True, "resample": 0}, **efficient),
        _transformers("Pvt", "Pvt", square, image_size=64, **heads),
        _transformers("PvtV2", "Pvt", square, image_size=64, **heads),
        _transformers("Hiera", "Bit", edge, image_size=[64, 64], embed_dim=16, depths=[1, 1, 2, 1]),
        _transformers(
            "FocalNet", "Bit", edge, image_size=64, embed_dim=16, depths=[1, 1], focal_levels=[2, 2], focal_windows=[3, 3]
        ),
        _transformers("PoolFormer", "PoolFormer", pooled, hidden_sizes=[16, 32, 40, 64], depths=[1, 1, 2, 1]),
    ]


def _timm(architecture: str, size: int = 96, **arguments: Any) -> Reference:
    overlay = {"input_size": (3, size, size)}

    def write(directory: Path) -> tuple[Path, Answer]:
        made = timm.create_model(architecture, num_classes=CLASSES, pretrained_cfg_overlay=overlay, **arguments)
        model = lively(made, size)
        save_for_hf(model, str(directory), model_args=arguments, safe_serialization=True)
        return directory, timm_answer(model)

    return Reference("timm", architecture, write)


def _timm_file(architecture: str) -> Reference:
    def write(directory: Path) -> tuple[Path, Answer]:
        model = lively(timm.create_model(architecture, num_classes=CLASSES), 224)
        directory.mkdir(exist_ok=True)
        save_file(model.state_dict(), directory / "bare.safetensors")
        return directory / "bare.safetensors", timm_answer(model)

    return Reference("timm", f"{architecture}, bare file", write, (("architecture", f"timm/{architecture}"),))


def _timm_wrapper(architecture: str) -> Reference:
    said: dict[str, Any] = {"input_size": [3, 96, 96], "crop_pct": 0.9, "mean": [0.5] * 3, "std": [0.25] * 3}

    def write(directory: Path) -> tuple[Path, Answer]:
        told: dict[str, Any] = {"num_labels": CLASSES, "pretrained_cfg": said}
        config = transformers.TimmWrapperConfig(architecture=architecture, **told)
        model: Any = transformers.TimmWrapperForImageClassification(config)
        lively(model, 96).save_pretrained(directory)
        transform = create_transform(**resolve_data_config(pretrained_cfg=said))
        return directory, lambda image: model(transform(image)[None]).logits[0]

    return Reference("timm", f"{architecture}, TimmWrapper", write)


def timm_references() -> list[Reference]:
    """Return a small model of each family that timm runs."""
    windows: dict[str, Any] = {"img_size": 64, "embed_dim": 24, "depths": [2, 1], "num_heads": [2, 4], "window_size": 4}
    stages: dict[str, Any] = {"dims": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}
    return [
        _timm("swin_tiny_patch4_window7_224", 64, **windows),
        _timm("swinv2_tiny_window8_256", 64, **windows),
        _timm("convnext_atto", **stages),
        _timm("convnextv2_atto", **stages),
        _timm("resnet50", layers=[1, 1, 1, 1]),
        _timm("resnext50_32x4d", layers=[1, 1, 1, 1]),
        _timm("wide_resnet50_2", layers=[1, 1, 1, 1]),
        _timm("efficientnet_b0"),
        _timm("tf_efficientnetv2_b0"),
        _timm("mobilenetv3_small_050"),
        _timm("tf_mobilenetv3_small_minimal_100"),
        _timm("mobilenetv4_conv_small_035"),
        _timm("mobilenetv4_hybrid_medium"),
        _timm("fastvit_t8"),
        _timm("maxvit_pico_rw_256", 128, img_size=128, depths=[1, 1], embed_dim=[32, 64]),
        _timm_file("resnet10t"),
        _timm_wrapper("resnet10t"),
    ]


def library_references() -> list[Reference]:
    return [*transformers_references(), *timm_references()]


def jpegs() -> list[bytes]:
    """Return eight JPEGs of different sizes and contents."""
    return [photograph(), *(encode(random_image(seed, 120 + 16 * seed, 180 - 8 * seed), "JPEG") for seed in range(1, 8))]


@dataclass(frozen=True, slots=True)
class Measured:
    """Largest differences of logits, each as a part of the largest logit."""

    largest_logit: float
    spread: float
    """Largest difference between two images: near 0 it would show nothing."""
    alone: float
    """Difference of torch from the library, image by image."""
    batch: float
    """Difference of torch from the library, in a batch of eight."""
    neighbours: float
    """Difference between an image alone and in a batch, in torch."""
    openvino: float
    """Difference of OpenVINO from the library, alone and in a batch."""
    openvino_neighbours: float


def pixels_of(checkpoint: Checkpoint, images: list[bytes]) -> list[Pixels]:
    decoder = ImageDecoder(checkpoint.preprocessing, formats=frozenset({"jpeg"}), max_bytes=10**8, max_pixels=10**7, exact=True)
    return [decoder.decode(image) for image in images]


def measure(reference: Reference, directory: Path) -> Measured:
    """Write a model with its library, and compare the service's answers with its."""
    path, answer = reference.write(directory)
    images = jpegs()
    expected = np.stack([_library_logits(answer, image) for image in images])
    settings: dict[str, Any] = dict(reference.settings)
    checkpoint = load_checkpoint(path, **settings)
    pixels = pixels_of(checkpoint, images)
    largest = float(np.abs(expected).max())

    def difference(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
        return float(np.abs(one - other).max()) / largest

    def answers(engine: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        alone = np.concatenate([engine.run([image], use_all_cores=True) for image in pixels])
        return alone, engine.run(pixels, use_all_cores=False)

    model: Callable[[], Any] = lambda: engine_model(checkpoint)  # noqa: E731
    alone, batch = answers(TorchCpuEngine(model(), dtype="float32", max_batch_size=8, threads=1))
    converted = OpenVinoEngine(model(), dtype="float32", max_batch_size=8, threads=1, cache=directory.parent / "cache")
    openvino_alone, openvino_batch = answers(converted)
    return Measured(
        largest_logit=largest,
        spread=float((expected.max(axis=0) - expected.min(axis=0)).max()) / largest,
        alone=difference(alone, expected),
        batch=difference(batch, expected),
        neighbours=difference(alone, batch),
        openvino=max(difference(openvino_alone, expected), difference(openvino_batch, expected)),
        openvino_neighbours=difference(openvino_alone, openvino_batch),
    )


def main() -> None:
    configure_logging("error", "text")
    columns = ("library", "model", "largest logit", "between images", "torch", "OpenVINO", "alone and in a batch")
    sys.stdout.write(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n")
    for reference in library_references():
        with tempfile.TemporaryDirectory() as directory:
            found = measure(reference, Path(directory) / "model")
        differences = (max(found.alone, found.batch), found.openvino, found.openvino_neighbours)
        row = (reference.library, reference.name, f"{found.largest_logit:.2f}", f"{found.spread:.2f}")
        sys.stdout.write(f"| {' | '.join(row)} | {' | '.join(f'{value:.1e}' for value in differences)} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
