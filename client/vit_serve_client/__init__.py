"""Client of vit-serve, which serves a Vision Transformer over HTTP."""

from vit_serve_client.async_client import AsyncVitClient
from vit_serve_client.client import VitClient
from vit_serve_client.errors import (
    BadImage,
    ConnectionFailed,
    NotReady,
    Overloaded,
    RateLimited,
    Timeout,
    TooLarge,
    Unauthorized,
    VitError,
)
from vit_serve_client.images import SUFFIXES, Image
from vit_serve_client.results import Embedding, Explanation, Failure, Features, Model, Prediction, Result

__all__ = [
    "SUFFIXES",
    "AsyncVitClient",
    "BadImage",
    "ConnectionFailed",
    "Embedding",
    "Explanation",
    "Failure",
    "Features",
    "Image",
    "Model",
    "NotReady",
    "Overloaded",
    "Prediction",
    "RateLimited",
    "Result",
    "Timeout",
    "TooLarge",
    "Unauthorized",
    "VitClient",
    "VitError",
]
