"""All that a worker calls, also what the service itself does not import: loaded once, by the zygote or for threads."""

from app.decoding import preprocessors, resizing

__all__ = ["preprocessors", "resizing"]
