"""timm's config.json: its present form and the older flat one, with the defaults that timm reads it with."""

from dataclasses import dataclass
from typing import Any

from model.checkpoints.blueprint import integer, side, truth
from model.checkpoints.known_keys import KnownKeys, check_keys
from model.checkpoints.timm.config_keys import CONFIG, MODEL_ARGS, PRETRAINED_CFG

_INPUT_SIZE = [3, 224, 224]
"""`input_size` of `PretrainedCfg()`: channels, height, width."""


@dataclass(frozen=True, slots=True)
class TimmConfig:
    """Content of the file, with every key checked."""

    raw: dict[str, Any]
    """Content in the present form."""
    pretrained: dict[str, Any]
    """Preprocessing of the weights."""
    arguments: dict[str, Any]
    """Arguments of the model beside those of its architecture."""
    num_classes: int
    picture_size: int
    """Side of what the preprocessing makes, in pixels."""
    image_size: int
    """Side of what the model takes, in pixels."""


def read_config(content: dict[str, Any], model_args: KnownKeys = MODEL_ARGS) -> TimmConfig:
    """Check and sort the content of a config.json, as timm's `load_model_config_from_path` does.

    Args:
        content: content of the file.
        model_args: the arguments that are known of the architecture.

    Raises:
        KeyError, ValueError, TypeError: a key that is not known, or a value that is wrong.
    """
    raw = _present_form(content)
    pretrained, arguments = _object(raw, "pretrained_cfg"), _object(raw, "model_args")
    check_keys(raw, CONFIG)
    check_keys(pretrained, PRETRAINED_CFG, "pretrained_cfg")
    check_keys(arguments, model_args, "model_args")
    picture_size = _picture_size(pretrained, arguments)
    image_size = side(arguments["img_size"], "model_args.img_size") if "img_size" in arguments else picture_size
    return TimmConfig(raw, pretrained, arguments, _num_classes(raw, pretrained, arguments), picture_size, image_size)


def _present_form(content: dict[str, Any]) -> dict[str, Any]:
    """Part the flat form, which timm wrote until 2022, and bring labels under one name."""
    raw = dict(content)
    if "pretrained_cfg" not in raw and "model_type" in raw:
        raise ValueError(
            "pretrained_cfg is missing, which says how images are prepared, and transformers has no other image processor "
            "for this model: copy it from the config.json of the model that yours was tuned from"
        )
    if "pretrained_cfg" not in raw:
        flat = {key: raw.pop(key) for key in content if key in PRETRAINED_CFG.honoured | PRETRAINED_CFG.harmless}
        raw |= {"architecture": content["architecture"], "pretrained_cfg": flat}
    for name in ("labels", "id2label"):
        if raw.get("label_names") is None and raw.get(name) is not None:
            raw["label_names"] = raw[name]
    return raw


def _object(raw: dict[str, Any], key: str) -> dict[str, Any]:
    value = raw.get(key, {})
    if value is None and key == "model_args":
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{key} {value!r} is not an object of keys and values")
    return value


def _picture_size(pretrained: dict[str, Any], arguments: dict[str, Any]) -> int:
    size = pretrained.get("input_size", _INPUT_SIZE)
    if not isinstance(size, list) or len(size) != 3 or size[0] != 3:
        raise ValueError(f"input_size {size!r} is not [3, height, width]: images have three channels")
    fixed = truth(pretrained, "fixed_input_size", default=False) and not arguments.get("dynamic_img_size")
    if fixed and "img_size" in arguments:
        return side(arguments["img_size"], "model_args.img_size")
    return side(size[1:], "input_size")


def _num_classes(raw: dict[str, Any], pretrained: dict[str, Any], arguments: dict[str, Any]) -> int:
    """Return the number of classes of the weights; with another in `model_args`, timm starts with an untrained head."""
    count = integer(raw, "num_classes", integer(pretrained, "num_classes", 1000))
    if integer(arguments, "num_classes", count) != count:
        raise ValueError(f"model_args.num_classes is {arguments['num_classes']}, but the weights have num_classes {count}")
    return count
