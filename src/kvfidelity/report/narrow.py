"""A figure's second form, for screens as narrow as a phone's and pages at 400% zoom.

A figure that is made for 560 pixels and shrunk to 350 cannot be read, and one that scrolls shows
its labels and no data. So the same chart is drawn again: panels below each other, the legend below
them, long titles on several lines.
"""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Iterator
from typing import Any

#: Pixels of a narrow figure, with its labels.
WIDTH = 330
#: Of them, for the names on a vertical axis, and for its numbers; padding is in both.
NAMES, NUMBERS = 140, 66
TITLE_LETTERS = 34


def narrow(spec: dict[str, Any]) -> dict[str, Any]:
    """The narrow form of a specification that `theme.with_theme` gives; that one stays as it is."""
    found = copy.deepcopy(spec)
    found["padding"] = {"left": 18, "right": 14, "top": 5, "bottom": 5}
    names = _has_names(found)
    width = WIDTH - (NAMES if names else NUMBERS)
    for part in parts_of(found):
        if "columns" in part:
            part["columns"] = 1
        if isinstance(part.get("width"), int | float):
            part["width"] = min(part["width"], width)
        for channel, definition in part.get("encoding", {}).items():
            if isinstance(definition, dict):
                _shorten(channel, definition)
        if isinstance(part.get("facet"), dict):
            part["facet"].setdefault("header", {})["labelLimit"] = width
    stacked = {"bottom": {"direction": "vertical"}}
    legend = {"orient": "bottom", "columns": 2, "labelLimit": 110, "layout": stacked}
    # A browser draws with a wider font than the one that places the columns.
    legend["columnPadding"] = 24
    found["config"]["legend"] |= legend
    return found


def parts_of(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The specification and those inside of it."""
    yield spec
    for name in ("spec", "layer", "concat", "hconcat", "vconcat"):
        inner = spec.get(name, [])
        for part in inner if isinstance(inner, list) else [inner]:
            yield from parts_of(part)


def _has_names(spec: dict[str, Any]) -> bool:
    """Whether a vertical axis holds names, which take more room than numbers."""
    vertical = (part.get("encoding", {}).get("y", {}) for part in parts_of(spec))
    return any(one.get("type") == "nominal" for one in vertical)


def _shorten(channel: str, definition: dict[str, Any]) -> None:
    title = definition.get("title")
    if channel in ("x", "y") and title:
        lines = title if isinstance(title, list) else [title]
        wrapped = (textwrap.wrap(line, TITLE_LETTERS) for line in lines)
        definition["title"] = [line for one in wrapped for line in one]
    if channel == "y" and definition.get("type") == "nominal":
        # "policy, threshold" on two lines.
        axis = definition.get("axis") or {}
        definition["axis"] = axis | {
            "labelLimit": NAMES - 24,
            "labelExpr": "split(datum.label, ', ')",
        }
    if channel == "x" and isinstance(definition.get("axis"), dict):
        # Few ticks are left anyway: what overlaps is left out.
        definition["axis"].setdefault("labelOverlap", "greedy")
