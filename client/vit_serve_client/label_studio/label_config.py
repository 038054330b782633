"""Choices in a project's labelling configuration, which is XML from elsewhere."""

import re
from xml.parsers import expat

_DECLARATION = re.compile(r"<!\s*(DOCTYPE|ENTITY)", re.IGNORECASE)


def choices(label_config: str, from_name: str) -> dict[str, str]:
    """Return the choices of the control of that name: a label, by value or alias -> what a result holds for it.

    Raises:
        ValueError: this is not XML, or XML with declarations, which could name other files or grow without end.
    """
    if _DECLARATION.search(label_config):
        raise ValueError("The labelling configuration has a DOCTYPE or an ENTITY.")
    found: dict[str, str] = {}
    inside: list[bool] = []
    """For each open element, whether it is in the control."""

    def start(tag: str, attributes: dict[str, str]) -> None:
        is_control = tag == "Choices" and attributes.get("name") == from_name
        inside.append(is_control or bool(inside and inside[-1]))
        if inside[-1] and tag == "Choice" and "value" in attributes:
            value, alias = attributes["value"], attributes.get("alias")
            found[value] = alias or value
            if alias:
                found.setdefault(alias, alias)

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: inside.pop()
    try:
        parser.Parse(label_config, True)
    except (expat.ExpatError, UnicodeError) as error:
        raise ValueError(f"The labelling configuration is not XML: {error}.") from None
    return found
