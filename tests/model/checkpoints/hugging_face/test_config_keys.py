"""Every key of transformers' configurations, as the library lists them: honoured as it does, or refused by name."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import GenerationConfig

from model.checkpoints.checkpoint import CheckpointError, load_checkpoint
from model.checkpoints.hugging_face.config_keys import DINOV2_WITH_REGISTERS, VIT
from tests.support.weights import randomise

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "id2label": {index: f"class {index}" for index in range(5)},
}
FAMILIES: dict[str, dict[str, Any]] = {
    "ViT": {"intermediate_size": 64},
    "DeiT": {"intermediate_size": 64},
    "Dinov2": {"mlp_ratio": 2, "drop_path_rate": 0.1},
    "Dinov2WithRegisters": {"mlp_ratio": 2, "num_register_tokens": 3},
    "ViTMSN": {"intermediate_size": 64},
    "IJepa": {"intermediate_size": 64},
    "Beit": {"intermediate_size": 64, "use_relative_position_bias": True},
    "Data2VecVision": {"intermediate_size": 64, "use_absolute_position_embeddings": True},
}

OTHERS: dict[str, Any] = {
    "architectures": ["BertModel"],
    "dtype": "bfloat16",
    "hidden_act": "relu",
    "id2label": {index: f"class {index}" for index in range(7)},
    "label2id": {"a": 1},
    "layer_norm_eps": 0.1,
    "mlp_ratio": 3,
    "model_type": "bert",
    "out_features": ["stage1"],
    "out_indices": [1],
    "pool_scales": [1, 2],
    "pooler_act": "relu",
    "problem_type": "multi_label_classification",
    "stage_names": ["stem", "stage2", "stage1"],
    "transformers_version": "4.1.0",
    "_name_or_path": "elsewhere",
    "_out_features": ["stage1"],
    "_out_indices": [1],
}

NAMES = {"architectures": "architecture"}
"""Names of keys in messages, where they differ."""

REFUSED = {"architectures", "is_encoder_decoder", "model_type", "num_channels", "use_shared_relative_position_bias"}
"""Keys that are refused with the other value; all others are answered."""

UNANSWERED = {"return_dict": True, "output_attentions": False, "add_fpn": False}
"""Keys with whose other value transformers 5 fails: they choose other outputs and do not change logits."""


def other(key: str, value: Any) -> Any:
    """Another value of the same kind."""
    if key in OTHERS:
        return OTHERS[key]
    match value:
        case bool():
            return not value
        case int():
            return value * 2 or 3
        case float():
            return value + 0.25
    raise AssertionError(f"transformers has a new key {key} = {value!r}: name another value here")


def library_config(family: str, **changes: Any) -> Any:
    return getattr(transformers, f"{family}Config")(**{**SMALL, **FAMILIES[family], **changes})


def keys_of(family: str) -> dict[str, Any]:
    """Return the keys of the library: those it writes, and the fields of the class."""
    config = library_config(family)
    listed = [*config.to_dict(), *(field.name for field in dataclasses.fields(config))]
    return {key: config.to_dict().get(key, getattr(config, key, None)) for key in dict.fromkeys(listed)}


CASES = [(family, key) for family in FAMILIES for key in keys_of(family)]


def write(directory: Path, config: Any, architecture: str, **changes: Any) -> None:
    """Save with the library, then change what the file says."""
    randomise(getattr(transformers, architecture)(config)).save_pretrained(directory)
    image_size = getattr(config, "vision_config", config).image_size
    size = image_size if isinstance(image_size, int) else image_size[0]
    edges = {"height": size, "width": size}
    processor = {"image_processor_type": "ViTImageProcessor", "size": edges}
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    change(directory, **changes)


def change(directory: Path, **changes: Any) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def assert_answered_as_the_library_does(directory: Path, architecture: str, key: str) -> bool:
    """Return True if it is, and False for a refusal, which must name the key."""
    try:
        ours = load_checkpoint(directory)
    except CheckpointError as error:
        assert NAMES.get(key, key) in str(error)
        return False
    if key in UNANSWERED:
        change(directory, **{key: UNANSWERED[key]})
    theirs: Any = getattr(transformers, architecture).from_pretrained(directory, dtype=torch.float32).eval()
    size = ours.model.config.image_size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, logits = theirs(images, return_dict=True).logits, ours.model(images)
    assert expected.abs().max() > 0.05
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()
    return True


@pytest.mark.parametrize(("family", "key"), CASES, ids=lambda word: word)
def test_other_value_is_honoured_or_refused(family: str, key: str, tmp_path: Path) -> None:
    present = keys_of(family)[key]
    value = None if present is None and key not in OTHERS else other(key, present)
    architecture = f"{family}ForImageClassification"
    try:
        write(tmp_path, library_config(family, **{key: value}), architecture)
    except (
        ValueError,
        TypeError,
        AttributeError,
        KeyError,
        StrictDataclassError,
    ):  # the library makes no such model, but the file can ask for it
        write(tmp_path, library_config(family), architecture, **{key: value})
    if key in ("architectures", "model_type"):  # which save_pretrained sets
        change(tmp_path, **{key: value})
    assert assert_answered_as_the_library_does(tmp_path, architecture, key) == (key not in REFUSED)


NESTED = {"Siglip": "SiglipForImageClassification", "CLIP": "CLIPForImageClassification"}
"""Families whose image encoder is configured in `vision_config`."""

VISION = {key: value for key, value in SMALL.items() if key != "id2label"} | {"intermediate_size": 64}
VISION_CASES = [
    (family, key)
    for family in NESTED
    for key in getattr(transformers, f"{family}VisionConfig")().to_dict()
    if key != "return_dict"  # with its other value transformers 5 fails
]


def nested_config(family: str, **changes: Any) -> Any:
    config = getattr(transformers, f"{family}Config")
    return config(vision_config={**VISION, **changes}, id2label={index: f"class {index}" for index in range(5)})


@pytest.mark.parametrize(("family", "key"), VISION_CASES, ids=lambda word: word)
def test_vision_config_is_honoured_or_refused(family: str, key: str, tmp_path: Path) -> None:
    present = getattr(transformers, f"{family}VisionConfig")(**VISION).to_dict()[key]
    value = None if present is None and key not in OTHERS else other(key, present)
    try:
        write(tmp_path, nested_config(family, **{key: value}), NESTED[family])
    except (ValueError, TypeError, AttributeError, KeyError, StrictDataclassError, RuntimeError):
        write(tmp_path, nested_config(family), NESTED[family])
    written = json.loads((tmp_path / "config.json").read_text())
    change(tmp_path, vision_config=written["vision_config"] | {key: value})
    assert assert_answered_as_the_library_does(tmp_path, NESTED[family], key) == (
        key not in ("num_channels", "is_encoder_decoder")
    )


@pytest.mark.parametrize("family", NESTED)
def test_unknown_vision_key_is_refused(family: str, tmp_path: Path) -> None:
    write(tmp_path, nested_config(family), NESTED[family])
    written = json.loads((tmp_path / "config.json").read_text())
    change(tmp_path, vision_config=written["vision_config"] | {"window_size": 7})
    with pytest.raises(CheckpointError, match=r"vision_config\.window_size 7 is not known"):
        load_checkpoint(tmp_path)


ODD = {"layer_norm_eps": 0.1, "hidden_act": "relu", "attention_probs_dropout_prob": 0.2}
"""Far from the defaults, so that it shows where one of those is taken instead."""


@pytest.fixture(scope="module", params=["ViT", "Dinov2WithRegisters"])
def odd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    directory = tmp_path_factory.mktemp(request.param)
    write(directory, library_config(request.param, **ODD), f"{request.param}ForImageClassification")
    return f"{request.param}ForImageClassification", directory


def check_edited(odd: tuple[str, Path], key: str, changes: dict[str, Any], without: str = "") -> None:
    architecture, directory = odd
    file = directory / "config.json"
    before = file.read_text()
    content = json.loads(before) | changes
    content.pop(without, None)
    file.write_text(json.dumps(content))
    try:
        assert_answered_as_the_library_does(directory, architecture, key)
    finally:
        file.write_text(before)


@pytest.mark.parametrize("key", ["hidden_act", "layer_norm_eps", "model_type", "num_channels", "qkv_bias", "patch_size"])
def test_missing_key_is_the_librarys_default(odd: tuple[str, Path], key: str) -> None:
    check_edited(odd, "does not fit" if key == "patch_size" else key, {}, without=key)


KINDS: dict[str, Callable[[Any], Any]] = {
    "str": str,
    "float": float,
    "null": lambda value: None,
    "pair": lambda value: [value] * 2,
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_type_is_read_alike_or_refused(odd: tuple[str, Path], kind: str) -> None:
    content = json.loads((odd[1] / "config.json").read_text())
    numbers = [key for key in VIT.honoured | DINOV2_WITH_REGISTERS.honoured if isinstance(content.get(key), bool | int | float)]
    assert len(numbers) > 8
    for key in numbers:
        changed = {key: KINDS[kind](content[key])}
        if (key, kind) != ("mlp_ratio", "float"):  # transformers 4 wrote it, and 5 does not read it
            check_edited(odd, key, changed)


OLD = """
bos_token_id pad_token_id eos_token_id sep_token_id decoder_start_token_id prefix finetuning_task tokenizer_class
task_specific_params bad_words_ids forced_bos_token_id forced_eos_token_id begin_suppress_tokens suppress_tokens
exponential_decay_length_penalty tie_word_embeddings tie_encoder_decoder use_bfloat16 tf_legacy_loss _commit_hash
gradient_checkpointing use_cache _num_labels padding
"""


def test_transformers_4_keys_change_nothing(odd: tuple[str, Path]) -> None:
    old = {key: 7 for key in [*GenerationConfig._get_default_generation_params(), *OLD.split()]} | {
        "torchscript": True,
        "is_decoder": False,
        "torch_dtype": "float16",
        "pruned_heads": {},
    }
    check_edited(odd, "nothing", old)


CONTRADICTIONS: dict[str, tuple[str, Any]] = {
    "fewer classes": ("num_labels", 3),
    "more classes": ("num_labels", 7),
    "classes in quotes": ("num_labels", "5"),
    "two architectures": ("architectures", ["ViTForImageClassification", "ViTModel"]),
    "remote pipeline": ("custom_pipelines", {"image-classification": {"impl": "pipeline.Mine", "pt": ["AutoModel"]}}),
    "remote model": ("auto_map", {"AutoModelForImageClassification": "modeling.Mine"}),
    "cut heads": ("pruned_heads", {"0": [1]}),
    "quantized": ("quantization_config", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "unknown": ("window_size", 7),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_unsupported_values_are_refused_by_name(odd: tuple[str, Path], case: str) -> None:
    key, value = CONTRADICTIONS[case]
    file = odd[1] / "config.json"
    before = file.read_text()
    change(odd[1], **{key: value})
    try:
        with pytest.raises(CheckpointError, match=rf"config\.json: {key} "):
            load_checkpoint(odd[1])
    finally:
        file.write_text(before)


def test_fitting_number_of_labels_is_accepted(odd: tuple[str, Path]) -> None:
    check_edited(odd, "nothing", {"num_labels": 5})
