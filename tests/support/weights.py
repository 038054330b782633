"""Random weights under which answers depend on the image, for models that libraries initialise near zero."""

from typing import Any

import torch


def randomise(model: Any) -> Any:
    """Fill with weights as wide as trained ones; libraries start heads and tokens at zero and LayerScale near zero."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if "gamma" in name or "lambda" in name:
                parameter.uniform_(0.2, 1.0, generator=generator)
            elif "norm" in name or ".ln" in name:
                parameter.normal_(1.0 if name.endswith("weight") else 0.0, 0.1, generator=generator)
            else:
                parameter.normal_(0.0, 0.04, generator=generator)
    return model.eval()


def lively(model: Any) -> Any:
    """Fill with weights that keep the variance of activations, so that answers differ strongly between images."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            _enliven(parameter, generator)
    return model.eval()


def _enliven(parameter: torch.Tensor, generator: torch.Generator) -> None:
    if parameter.dim() == 3 and parameter.shape[0] == 1:  # tokens and position embeddings
        parameter.normal_(0.0, 0.3, generator=generator)
    elif parameter.dim() >= 2 and parameter.numel() > max(parameter.shape):
        fan_in = parameter[0].numel()
        parameter.normal_(0.0, (1.5 / fan_in) ** 0.5, generator=generator)
    elif bool((parameter == 1).all()):
        parameter.normal_(1.0, 0.1, generator=generator)
    elif bool((parameter == 0).all()):
        parameter.normal_(0.0, 0.1, generator=generator)
    else:  # the scale of a branch, near zero at first
        parameter.uniform_(0.2, 1.0, generator=generator)


def measure_batch_norm(model: Any, size: int) -> Any:
    """Measure the statistics of BatchNorm on images of `size` pixels, as training would."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean of all batches
    if norms:
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)  # of dropout
        with torch.no_grad():
            model.train()(torch.cat([_noise(detail, size, generator) for detail in (8, 16, 32, size)]))
    return model.eval()


def _noise(detail: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """Return normalised images between soft colours and the noise on which engines are compared at the start."""
    images = torch.randn(4, 3, detail, detail, generator=generator)
    return torch.nn.functional.interpolate(images, size=(size, size), mode="bilinear")
