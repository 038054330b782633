"""Size of an image, as headers state it and geometry computes it."""

Size = tuple[int, int]
"""(width, height) in pixels, in Pillow's order."""


def area(size: Size) -> int:
    """Return width times height."""
    return size[0] * size[1]
