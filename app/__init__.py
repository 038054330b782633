"""vit-serve: a REST inference service for trained Vision Transformers."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("vit-serve")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0.0.0"
