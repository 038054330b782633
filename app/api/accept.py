"""Media types that a client names in its header `Accept`."""

import re

_NEVER = re.compile(r"\s*q=0(\.0*)?\s*")


def names(accepted: str, media_type: str) -> bool:
    """Return True if a header `Accept` names a media type itself; a range such as `*/*` does not."""
    ranges = [part.split(";") for part in accepted.lower().split(",")]
    return any(kind.strip() == media_type and not any(_NEVER.fullmatch(each) for each in more) for kind, *more in ranges)
