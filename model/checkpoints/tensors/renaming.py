"""Renaming of tensors that training scripts or other versions of a library stored under other names."""

import re
from dataclasses import replace

from model.checkpoints.files import CheckpointError
from model.checkpoints.tensors.key_map import KeyMap
from model.checkpoints.tensors.weights_file import WeightsFile

_PATCHES = "patch_embed.proj.weight"
"""Tensor that every model has, and so tells under which prefix it is."""

_LIBRARIES: dict[str, tuple[str, str | None]] = {
    _PATCHES: ("its names are timm's: name its architecture, such as timm/vit_small_patch16_224", "architecture"),
    "conv_proj.weight": ("its names are torchvision's: name its architecture, such as torchvision/vit_b_16", "architecture"),
    "embeddings.patch_embeddings.projection.weight": (
        "its names are those of transformers: copy it as pytorch_model.bin into a folder with the model's config.json and "
        "preprocessor_config.json, and name that folder",
        None,
    ),
}
"""Key of the patch embedding's weights in each library, with the advice for a bare state dict and the field to set."""

_ENCODER = ("cls_token", "dist_token", "reg_token", "pos_embed", "patch_embed.proj.", "norm.", "norm_pre.", "fc_norm.")
"""Our names beside the blocks, and beginnings of them."""

_LOSS = re.compile(r"(^|[._])(criterion|loss|loss_fn|loss_func|loss_function)\.(weight|pos_weight)$")
"""The weights of classes in a loss, which a training module has beside its model and which no answer depends on."""


def rename_tensors(weights: WeightsFile, key_map: KeyMap) -> WeightsFile:
    """Give tensors the names that the key map expects: without a prefix, and with those of other versions and heads renewed.

    Raises:
        CheckpointError: there are several models in the file, parts of one beside it, or one for grey images.
    """
    weights = _apply_renames(_strip_prefix(weights, key_map), key_map)
    patches = weights.shapes.get(key_map.sources(_PATCHES)[0], ())
    if len(patches) == 4 and patches[1] != 3:
        raise CheckpointError(f"{weights.path} takes images of {patches[1]} channels; only models of three channels are served")
    return _rename_head(weights, key_map)


def count_classes(weights: WeightsFile, key_map: KeyMap) -> int:
    """Tell the number of classes from the head.

    Raises:
        ValueError: there is no head, or it is no Linear.
    """
    key, patches = key_map.sources("head.weight")[0], key_map.sources(_PATCHES)[0]
    if patches not in weights.shapes:
        raise ValueError(f"there is no {patches}, which every model of this architecture has; {how_to_serve(weights)[0]}")
    if (shape := weights.shapes.get(key)) is not None:
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"{key} has shape {shape}, expected that of a Linear (classes, width)")
        return shape[0]
    others = [other for other in weights.shapes if not _belongs_to_encoder(other, key_map)]
    if not others:
        raise ValueError(f"there is no {key}: all that it has is an encoder's, and a classifier is needed")
    raise ValueError(
        f"there is no {key}; beside the encoder it has {_listed(others)}: a classifier must be one Linear, under {key}"
    )


def how_to_serve(weights: WeightsFile) -> tuple[str, str | None]:
    """Return advice for a bare state dict, by its names, and the field of `CheckpointError` to set, if any."""
    for patches, advice in _LIBRARIES.items():
        if any(key == patches or key.endswith(f".{patches}") for key in weights.shapes):
            return advice
    return f"its names are those of no library that is read here: it has {_listed(list(weights.shapes))}", None


def _strip_prefix(weights: WeightsFile, key_map: KeyMap) -> WeightsFile:
    patches = key_map.sources(_PATCHES)[0]
    prefixes = [key.removesuffix(patches) for key in weights.shapes if key == patches or key.endswith(f".{patches}")]
    if len(prefixes) > 1:
        raise CheckpointError(
            f"{weights.path} holds several models, with {' and '.join(prefix + patches for prefix in prefixes)}: "
            "save the one you mean by itself"
        )
    prefix = prefixes[0] if prefixes else ""
    others = [key for key in weights.shapes if not key.startswith(prefix)]
    losses = [key for key in others if _LOSS.search(key) and len(weights.shapes[key]) <= 1]
    outside = [key for key in others if key not in losses]
    if outside:
        raise CheckpointError(
            f"{weights.path} holds a model under {prefix.removesuffix('.')} and beside it {_listed(outside)}: "
            "save the state dict of a model of the library"
        )
    renamed = weights.renamed({key.removeprefix(prefix): key for key in weights.shapes if key not in losses})
    return _noted(renamed, f"{_listed(losses)} is taken for a loss's, and left out") if losses else renamed


def _noted(weights: WeightsFile, note: str) -> WeightsFile:
    return replace(weights, note=f"{weights.note}; {note}" if weights.note else note)


def _apply_renames(weights: WeightsFile, key_map: KeyMap) -> WeightsFile:
    names: dict[str, str] = {}
    for key in weights.shapes:
        name = key
        for pattern, newer in key_map.renames:
            name = re.sub(pattern, newer, name)
        names[key if name in weights.shapes or name in names else name] = key
    return weights.renamed(names)


def _rename_head(weights: WeightsFile, key_map: KeyMap) -> WeightsFile:
    """Find the one Linear that somebody put in the head's place, or in a Sequential there."""
    head = key_map.sources("head")[0]
    root = head.partition(".")[0]
    under = [key for key in weights.shapes if key.startswith(f"{root}.")]
    modules = [
        module
        for place in dict.fromkeys((head, root))
        for module in (place, f"{place}.0", f"{place}.1")
        if len(weights.shapes.get(f"{module}.weight", ())) == 2
    ]
    if len(modules) != 1 or modules[0] == head or set(under) - {f"{modules[0]}.weight", f"{modules[0]}.bias"}:
        return weights  # as it should be, or with keys that the key map does not know and will name
    renamed = weights.renamed({key.replace(modules[0], head, 1) if key in under else key: key for key in weights.shapes})
    if modules[0].endswith((".0", ".1")):
        note = f"{modules[0]} is the head; what else was in its Sequential has no tensors, and is taken for dropout"
        return _noted(renamed, note)
    return renamed


def _belongs_to_encoder(key: str, key_map: KeyMap) -> bool:
    blocks = key_map.sources("blocks.0.norm1.weight")[0].partition("0")[0]
    ours = (*_ENCODER, blocks)
    theirs = [key_map.sources(name.removesuffix("."))[0] for name in _ENCODER]
    return key.startswith((*ours, *theirs, *key_map.ignored))


def _listed(keys: list[str]) -> str:
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
