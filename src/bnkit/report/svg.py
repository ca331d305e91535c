"""Drawings of the chart engine as SVG for a page: short, with text as text, hovered by titles."""

import re
from xml.etree import ElementTree as ET

SVG = "http://www.w3.org/2000/svg"
# The page's style sheet has the font; the words for screen readers are around the drawing.
LEFT_OUT = (
    "version class role font-family pointer-events aria-hidden aria-label aria-roledescription"
).split()
DEFAULTS = {
    "opacity": "1", "stroke-width": "1", "text-anchor": "start", "font-weight": "normal",
    "transform": "translate(0,0)", "x2": "0", "y2": "0",
}  # fmt: skip
NUMBERS = ("d", "transform", "x1", "y1", "x2", "y2", "width", "height", "stroke-width")
LONG = re.compile(r"-?\d+\.\d\d+(?:e-?\d+)?")


def inlined(svg: str, name: str, *, widest: float) -> str:
    """Return a drawing to be put into a page, where it is at most `widest` pixels wide.

    What a mark has for its description is shown under the pointer. `name` keeps the ids of the
    drawing apart from those of others on the page. Coordinates are rounded to a tenth of a pixel.
    """
    root = ET.fromstring(svg.replace(f' xmlns="{SVG}"', "", 1))  # noqa: S314  drawn by ourselves
    for element in root.iter():
        _shorten(element, name)
    _flatten(root)
    root.set("style", f"max-width:{widest:.0f}px")
    return ET.tostring(root, encoding="unicode")


def _shorten(element: ET.Element, name: str) -> None:
    attributes = element.attrib
    words = attributes.get("aria-label")
    for left_out in LEFT_OUT:
        attributes.pop(left_out, None)
    for key in NUMBERS:
        if key in attributes:
            attributes[key] = LONG.sub(lambda found: f"{float(found[0]):.1f}", attributes[key])
    for key, value in DEFAULTS.items():
        if attributes.get(key) == value:
            del attributes[key]
    if "id" in attributes:
        attributes["id"] = f"{name}-{attributes['id']}"
    for key, value in attributes.items():
        if value.startswith("url(#"):
            attributes[key] = f"url(#{name}-{value[5:]}"
    if words and element.tag != "g":  # a mark; groups have words that the engine makes up
        title = ET.Element("title")
        title.text = words
        element.insert(0, title)


def _flatten(element: ET.Element) -> None:
    """Leave out paths without a line, and groups without attributes but for what is in them."""
    children: list[ET.Element] = []
    for child in element:
        _flatten(child)
        if child.tag == "path" and child.get("d") in ("", "M0,0h0v0h0Z"):
            continue
        children += list(child) if child.tag == "g" and not child.attrib else [child]
    element[:] = children
