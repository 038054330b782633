"""Metadata, configuration and statistics of the model, as the protocol and Triton's extensions have them."""

from typing import Any

from app import __version__
from app.api.protocols.model_names import VERSION
from app.metrics import Statistics
from app.serving.classifier import Classifier

EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics")


def output_names(classifier: Classifier, *, pixels: bool) -> tuple[str, ...]:
    """Return the outputs of a name: clients of Triton expect one output where there is one input of pixels."""
    if pixels:
        return ("logits",)
    return ("logits", "labels") if classifier.model.activation == "none" else ("logits", "probabilities", "labels")


def server_metadata() -> dict[str, Any]:
    """Return the server's name, version and extensions of the protocol."""
    return {"name": "vit-serve", "version": __version__, "extensions": EXTENSIONS}


def model_metadata(classifier: Classifier, name: str, *, pixels: bool) -> dict[str, Any]:
    """Describe inputs and outputs, with the batch dimension."""
    size, classes = classifier.model.image_size, len(classifier.model.labels)
    image = {"name": "image", "datatype": "BYTES", "shape": [-1, 1]}
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": [-1, 3, size, size]}
    outputs = [
        {"name": output, "datatype": "BYTES" if output == "labels" else "FP32", "shape": [-1, classes]}
        for output in output_names(classifier, pixels=pixels)
    ]
    inputs = [tensor if pixels else image]
    return {"name": name, "versions": [VERSION], "platform": "vit-serve", "inputs": inputs, "outputs": outputs}


def model_config(classifier: Classifier, name: str, max_images: int, *, pixels: bool) -> dict[str, Any]:
    """Describe the model as Triton's configuration, whose shapes have no batch dimension."""
    size, classes = classifier.model.image_size, len(classifier.model.labels)
    image = {"name": "image", "data_type": "TYPE_STRING", "format": "FORMAT_NONE", "dims": [1]}
    tensor = {"name": "pixels", "data_type": "TYPE_UINT8", "format": "FORMAT_NCHW", "dims": [3, size, size]}
    outputs = [
        {"name": output, "data_type": "TYPE_STRING" if output == "labels" else "TYPE_FP32", "dims": [classes]}
        for output in output_names(classifier, pixels=pixels)
    ]
    described = {"name": name, "platform": "vit-serve", "backend": "vit-serve", "max_batch_size": max_images}
    return described | {"input": [tensor if pixels else image], "output": outputs, "dynamic_batching": {}}


def model_statistics(statistics: Statistics, name: str) -> dict[str, Any]:
    """Return counts and durations since the start, in nanoseconds. Both names of the model share them."""

    def duration(count: int, seconds: float) -> dict[str, int]:
        return {"count": count, "ns": round(seconds * 1e9)}

    images = statistics.images
    compute = statistics.decode_s + statistics.queue_s + statistics.inference_s
    return {
        "name": name,
        "version": VERSION,
        "last_inference": statistics.last_ms,
        "inference_count": images,
        "execution_count": statistics.batches,
        "inference_stats": {
            "success": duration(images, compute),
            "fail": duration(statistics.failed, 0.0),
            "queue": duration(images, statistics.queue_s),
            "compute_input": duration(images, statistics.decode_s),
            "compute_infer": duration(images, statistics.inference_s),
            "compute_output": duration(images, 0.0),
            "cache_hit": duration(0, 0.0),
            "cache_miss": duration(0, 0.0),
        },
        "batch_stats": [],
    }
