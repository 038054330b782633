"""`model_args`: the arguments with which timm made a model, where they differ from those of its architecture."""

from typing import Any, TypedDict

from model.checkpoints.blueprint import integer, number, truth
from model.config import Activation, Pooling, ViTConfig

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""`act_layer` as timm's get_act_layer names it."""


class Sizes(TypedDict):
    """Sizes of a `ViTConfig`."""

    embed_dim: int
    depth: int
    num_heads: int
    mlp_dim: int


def sizes(own: tuple[int, int, int, int], arguments: dict[str, Any], *, gated: bool) -> Sizes:
    """Return the sizes of an architecture, `own`, with those that the arguments change.

    Raises:
        ValueError: one of them is no number.
    """
    own_dim, own_depth, own_heads, own_mlp_dim = own
    embed_dim = integer(arguments, "embed_dim", own_dim)
    mlp_dim = own_mlp_dim
    if "mlp_ratio" in arguments:
        mlp_dim = int(embed_dim * number(arguments, "mlp_ratio")) // (2 if gated else 1)
    elif embed_dim != own_dim:
        mlp_dim = embed_dim * own_mlp_dim // own_dim
    return Sizes(
        embed_dim=embed_dim,
        depth=integer(arguments, "depth", own_depth),
        num_heads=integer(arguments, "num_heads", own_heads),
        mlp_dim=mlp_dim,
    )


def activation(arguments: dict[str, Any], own: Activation) -> Activation:
    """Return what `act_layer` names, or the architecture's own.

    Raises:
        ValueError: one that is not supported.
    """
    if arguments.get("act_layer") is None:
        return own
    name = arguments["act_layer"]
    if not isinstance(name, str) or name.lower() not in _ACTIVATIONS:
        raise ValueError(f"model_args.act_layer {name!r} is not supported; supported are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name.lower()]


def layer_norm_eps(arguments: dict[str, Any], own: float) -> float:
    """Return the epsilon of the norm that `norm_layer` names, or the architecture's own.

    Raises:
        ValueError: another norm than LayerNorm.
    """
    name = arguments.get("norm_layer") or ""
    if name == "":
        return own
    if name != "layernorm":
        raise ValueError(f"model_args.norm_layer {name!r} is not supported; supported is 'layernorm'")
    return 1e-6


def pooling(arguments: dict[str, Any], own: Pooling) -> Pooling:
    """Return what `global_pool` names, or the architecture's own.

    Raises:
        ValueError: one that is not supported.
    """
    match arguments.get("global_pool", own):
        case "token":
            return "token"
        case "avg":
            return "avg"
        case "map" if own == "map":
            return "map"
        case other:
            raise ValueError(f"model_args.global_pool {other!r} is not supported; supported are 'token' and 'avg'")


def check_choices(arguments: dict[str, Any], config: ViTConfig, *, plain_mean: bool) -> None:
    """Refuse arguments that make other tensors than those that are there.

    Args:
        arguments: the content of `model_args`.
        config: as the tensors show.
        plain_mean: whether the architecture's own pooling is the mean of patches that were normalised before.

    Raises:
        ValueError: one of them; the message names it.
    """
    shown = {"class_token": config.class_token, "pre_norm": config.pre_norm, "qkv_bias": config.qkv_bias}
    if config.num_prefix_tokens:
        shown["no_embed_class"] = config.pos_embed_coverage == "patches"
    if arguments.get("fc_norm") is not None:
        shown["fc_norm"] = config.fc_norm
    elif "global_pool" in arguments and config.fc_norm != (config.pooling == "avg" and not plain_mean):
        norm = "fc_norm" if config.fc_norm else "norm"
        raise ValueError(f"model_args.global_pool {arguments['global_pool']!r} does not go with a final norm called {norm}")
    for key, value in shown.items():
        if truth(arguments, key, value) != value:
            raise ValueError(f"model_args.{key} is {arguments[key]!r}, but the tensors are those of {value!r}")
    if integer(arguments, "reg_tokens", config.reg_tokens) != config.reg_tokens:
        raise ValueError(
            f"model_args.reg_tokens is {arguments['reg_tokens']}, but the tensors are those of {config.reg_tokens}"
        )
    if "init_values" in arguments and (arguments["init_values"] is not None) != config.layer_scale:
        has = "have a" if config.layer_scale else "have no"
        raise ValueError(f"model_args.init_values is {arguments['init_values']!r}, but the tensors {has} LayerScale")
    truth(arguments, "dynamic_img_size", default=False)
    if config.dist_token and arguments.get("global_pool", "token") != "token":
        raise ValueError("model_args.global_pool must be 'token' in a distilled model, as in timm")
