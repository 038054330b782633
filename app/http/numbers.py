"""Parser of whole numbers in requests, bounded."""

MOST = 2**63 - 1
"""The largest number that any of them may be, where nothing smaller is said."""


def whole_number(text: str | bytes, most: int = MOST) -> int | None:
    """Return the number, or None if the text is not ASCII digits alone, has more of them than `most`, or says more than it.

    `int()` takes signs, blanks, underscores and the digits of every script, and raises ValueError at 4,301 of them.
    """
    if not (text.isascii() and text.isdigit()) or len(text) > len(str(most)):
        return None
    number = int(text)
    return number if number <= most else None
