"""State dict of a model in what a training script saved: beside an optimizer and the like, and under wrappers' names."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

_AVERAGED = ("state_dict_ema", "model_ema")
"""Moving averages, which timm's loader prefers, in its order."""

_TRAINED = ("state_dict", "model", "model_state", "model_state_dict")
"""Keys of the model in files of timm's, DeiT's, MAE's, torchvision's and Lightning's scripts, in the order of timm's loader."""

_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of names from DataParallel and AveragedModel, torch.compile, FSDP and checkpointing."""

_COUNTER = "n_averaged"
"""Counter of torch's AveragedModel, beside the model."""

_MOST_NESTED = 4


@dataclass(frozen=True, slots=True)
class StateDict:
    """A model's tensors."""

    tensors: Mapping[str, Tensor]
    note: str | None = None
    """Choice that was made, if there was one."""


def choose(content: object) -> StateDict:
    """Find the model's state dict in what `torch.load` gave.

    Raises:
        ValueError: there is none, or there are several and no rule says which is meant.
    """
    keys: list[str] = []
    note = None
    for _ in range(_MOST_NESTED):
        if not isinstance(content, Mapping):
            raise ValueError(f"it holds a {type(content).__name__}, not a state dict (names with tensors)")
        key = _inner(content)
        if key is None:
            break
        if key in _AVERAGED and any(_is_filled(content.get(name)) for name in _TRAINED):
            note = f"the weights are the moving average ({key}), which timm's loader takes too"
        keys.append(key)
        content = content[key]
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}  # type: ignore[attr-defined]
    if not tensors:
        where = f" under {'.'.join(keys)}" if keys else ""
        raise ValueError(f"it has no names with tensors{where}; it has {_listed(content)}")
    if (nested := next((key for key, value in tensors.items() if value.is_nested), None)) is not None:
        raise ValueError(f"{nested} is a nested tensor, which has no one shape")
    return StateDict(tensors, note)


def unwrapped(keys: Iterable[str]) -> dict[str, str]:
    """Map names without those of wrappers to the names as they are, leaving out a wrapper's counter.

    Raises:
        ValueError: two become the same.
    """
    names: dict[str, str] = {}
    for key in keys:
        name = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
        if name == _COUNTER:
            continue
        if name in names:
            raise ValueError(f"{names[name]} and {key} are both {name}: save one of the two models by itself")
        names[name] = key
    return names


def _inner(content: Mapping[Any, Any]) -> str | None:
    """The key under which the state dict is; None if it is `content` itself."""
    for key in (*_AVERAGED, *_TRAINED):
        if _is_filled(content.get(key)):
            return key
    models = [str(key) for key, value in content.items() if _holds_model(value)]
    if len(models) > 1:
        raise ValueError(f"it holds several models ({', '.join(models)}): save the one you mean by itself")
    return models[0] if models else None


def _is_filled(value: object) -> bool:
    return isinstance(value, Mapping) and bool(value)


def _holds_model(value: object) -> bool:
    """Return True if a value is a state dict, or has one under a known name."""
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(item, Tensor) for item in value.values()) or any(
        _is_filled(value.get(key)) for key in (*_AVERAGED, *_TRAINED)
    )


def _listed(content: object) -> str:
    keys = [str(key) for key in content] if isinstance(content, Mapping) else []
    return ", ".join(keys[:8]) + (", ..." if len(keys) > 8 else "") if keys else "nothing"
