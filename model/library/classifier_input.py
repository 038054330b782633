"""Features of a library's model: the vector that the last layer of its classifier reads."""

import torch
from torch import Tensor, nn

POOLED = "pooled"
"""Name of these features: `pooler_output` of most models of transformers, `forward_head(pre_logits=True)` of timm's."""


class WithInput(nn.Module):
    """A linear layer that gives its input behind its output: (B, F) -> (B, K + F).

    In the place of a classifier it carries the features out through whatever the library does with logits.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat((self.linear(features), features), dim=1)


def find_classifier(module: nn.Module) -> str:
    """Return the name of a library's linear layer for its classes: timm's `get_classifier()`, or transformers' `classifier`.

    Raises:
        ValueError: there is none, but several layers, or one of another kind.
    """
    ask = getattr(module, "get_classifier", None)
    layer = getattr(module, "classifier", None) if ask is None else ask()
    if isinstance(layer, nn.Sequential) and len(layer):
        layer = layer[-1]
    if not isinstance(layer, nn.Linear):
        raise ValueError(f"its classifier is of the type {type(layer).__name__}, not one linear layer")
    return next(name for name, each in module.named_modules() if each is layer)


class Watch:
    """Record of what a linear layer reads and gives, while a model runs.

    Args:
        module: the model.
        name: name of the layer in it.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        self._layer = module.get_submodule(name)
        self._runs: list[tuple[Tensor, Tensor]] = []

    def __enter__(self) -> "Watch":
        self._hook = self._layer.register_forward_hook(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _note(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._runs.append((inputs[0], output.clone()))  # what comes after it might change it in place

    def check(self, logits: Tensor) -> int:
        """Return F, the size of the vector that the layer made these logits (B, K) of.

        Raises:
            ValueError: the logits are not what the layer gave, or it did not read one vector for each image.
        """
        if len(self._runs) != 1:
            raise ValueError(f"its classifier runs {len(self._runs)} times, not once")
        ((features, output),) = self._runs
        if features.dim() != 2 or len(features) != len(logits):
            raise ValueError(f"its classifier reads {tuple(features.shape)}, not one vector for each image")
        if not torch.equal(output, logits):
            raise ValueError("its logits are not what the classifier gives")
        return features.shape[1]


def give_input(module: nn.Module, name: str) -> None:
    """Make a model give, behind its logits, what its linear layer of this name reads; in place."""
    parent, _, leaf = name.rpartition(".")
    layer = module.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    setattr(module.get_submodule(parent), leaf, WithInput(layer))
