"""From matplotlib's SVG to one that sits inside a page: colours become CSS variables (light and dark), ids become unique,
fonts become the page's, everything that is not drawing goes, and an element that does not belong there is an error."""

from __future__ import annotations

import re
from xml.etree import ElementTree

LIGHT = {
    "paper": "#ffffff", "panel": "#f6f6f3", "ink": "#1b1e22", "muted": "#5a626d", "line": "#dddfdb", "accent": "#0b6e64",
    "warn": "#a8490a", "s0": "#1f4e9c", "s1": "#0b6e64", "s2": "#a8490a", "s3": "#7438a0", "s4": "#a3173f", "s5": "#4a7410",
    "s6": "#0b6c8a", "s7": "#6b5841",
}  # fmt: skip
DARK = {
    "paper": "#14171b", "panel": "#1c2026", "ink": "#e7e9eb", "muted": "#a3abb5", "line": "#333941", "accent": "#4fd0be",
    "warn": "#f2a45f", "s0": "#8cb5ff", "s1": "#4fd0be", "s2": "#f2a45f", "s3": "#cda2f4", "s4": "#ff90ac", "s5": "#b0d568",
    "s6": "#6bd2ee", "s7": "#cbbb9c",
}  # fmt: skip
SERIES = tuple(name for name in LIGHT if re.fullmatch(r"s\d", name))
STAND_IN = {name: f"#0000{i + 1:02x}" for i, name in enumerate(LIGHT)}  # what matplotlib draws with
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

_ALLOWED = {"svg", "g", "path", "use", "defs", "text", "tspan", "clipPath", "rect"}
_DROPPED = {"metadata", "style", "title", "desc"}
_NAMES = {code: name for name, code in STAND_IN.items()}


def tidy(source: str, key: str, label: str) -> str:
    """The drawing as an inline <svg>; `key` makes its ids its own, `label` is read out by screen readers."""
    root = ElementTree.fromstring(source)  # noqa: S314  our own renderer wrote it, never a file from outside
    _tidy_element(root, key)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", label)
    root.set("class", "figure")
    wide = float(root.get("viewBox", "0 0 0 0").split()[2])
    root.set("style", f"--wide:{wide:g}px")  # CSS cannot read it elsewhere
    return ElementTree.tostring(root, encoding="unicode")


def standalone(inline: str) -> str:
    """An inline figure as a file of its own that follows the reader's light or dark mode (for a README)."""
    rules = f":root{{{variables(LIGHT)}}}@media(prefers-color-scheme:dark){{:root{{{variables(DARK)}}}}}"
    style = f"<style>{rules}*{{stroke-linejoin:round;stroke-linecap:butt}}text{{paint-order:stroke;stroke:var(--paper);stroke-width:3px}}</style>"
    head, rest = inline.split(">", 1)
    return f'{head} xmlns="http://www.w3.org/2000/svg">{style}{rest}\n'


def variables(palette: dict[str, str]) -> str:
    """CSS custom properties of a palette."""
    return "".join(f"--{name}:{value};" for name, value in palette.items()) + f"--font:{FONT};"


def _tidy_element(element: ElementTree.Element, key: str) -> None:
    element.tag = _local(element.tag)
    if element.tag not in _ALLOWED:
        raise ValueError(f"a figure holds an element <{element.tag}> that figures do not have")
    for name in list(element.attrib):
        value = element.attrib.pop(name)
        element.set(_local(name), _tidy_value(_local(name), value, key))
    for child in list(element):
        if _local(child.tag) in _DROPPED:
            element.remove(child)
        else:
            _tidy_element(child, key)


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _tidy_value(name: str, value: str, key: str) -> str:
    if name == "id":
        return f"{key}-{value}"
    if name == "href":
        return f"#{key}-{value[1:]}"
    value = value.replace("url(#", f"url(#{key}-")
    if name != "style":
        return value
    value = re.sub(r"#0000[0-9a-f]{2}\b", lambda match: f"var(--{_NAMES.get(match[0], 'ink')})", value)
    value = re.sub(r"(font: [^;]*?[\d.]+px) [^;]+", r"\1 var(--font)", value)
    return re.sub(r"font-family: [^;]+", "font-family: var(--font)", value)
