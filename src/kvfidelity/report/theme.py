"""One look for all figures, and the files they are saved as."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from kvfidelity.atomic_files import replacing, write_text
from kvfidelity.errors import NotFiniteError
from kvfidelity.report.figure_rows import figure_rows
from kvfidelity.report.narrow import narrow, parts_of

FONT = "Inter, system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
#: `currentColor` is the colour of the text around an inline SVG, so figures follow the page from
#: light to dark; on its own an SVG takes it for black.
INK = "currentColor"
#: What stands behind a figure that is not on the page.
WHITE = '<rect width="100%" height="100%" fill="white"/>'


def with_theme(chart: alt.TopLevelMixin) -> dict[str, Any]:
    """The chart's Vega-Lite specification with the common look."""
    # Figures bound their rows themselves.
    with alt.data_transformers.disable_max_rows():
        spec: dict[str, Any] = chart.to_dict()
    for part in parts_of(spec):
        for definition in part.get("encoding", {}).values():
            axis = definition.get("axis") if isinstance(definition, dict) else None
            if axis and "values" in axis:
                # Else Vega leaves out every other one where the axis is short; of labels that
                # overlap some are left out anyway.
                axis["tickCount"] = len(axis["values"])
    lines = {"gridColor": INK, "gridOpacity": 0.12, "domainColor": INK, "tickColor": INK}
    domain_style = {"domainOpacity": 0.4, "tickOpacity": 0.4}
    text_style = {"labelColor": INK, "titleColor": INK, "labelFont": FONT, "titleFont": FONT}
    spec["background"] = "transparent"
    # Text is measured here with one font and drawn by a browser with another.
    spec["padding"] = {"left": 28, "right": 28, "top": 5, "bottom": 5}
    spec["config"] = {
        "font": FONT,
        "lineBreak": "\n",
        "numberFormat": ",.3~f",
        "axis": text_style
        | lines
        | domain_style
        | {
            "titleFontWeight": 500,
            "titlePadding": 8,
            "labelOverlap": "greedy",
            "labelSeparation": 6,
        },
        "legend": text_style | {"titleFontWeight": 600, "symbolStrokeWidth": 2, "symbolOpacity": 1},
        "header": text_style | {"labelFontWeight": 600, "labelFontSize": 12},
        "view": {"stroke": None},
        "text": {"color": INK},
        "point": {"opacity": 1},
    }
    return spec


def save(chart: alt.TopLevelMixin, folder: Path, name: str) -> None:
    """What `save_for_page` writes, NAME.png at 200 dots per inch, NAME.html to look around in.

    Nothing is fetched, then or later: the page holds its scripts.

    Raises:
        NotFiniteError: a number in the chart's data is not finite.
    """
    spec, drawn = save_for_page(chart, folder, name)
    # The chart is not drawn once more: that takes longer than making its pixels.
    drawn_on_white = re.sub("^<svg [^>]*>", rf"\g<0>{WHITE}", drawn)
    with replacing(folder / f"{name}.png") as temporary:
        temporary.write_bytes(vl_convert.svg_to_png(drawn_on_white, ppi=200))
    on_white = as_json(spec | {"background": "white"}, name)
    page = vl_convert.vegalite_to_html(on_white, bundle=True, renderer="svg")
    # A title with `</script>` must not end the script: in JSON `<` stands in texts only.
    embedded = re.compile("^ *const spec = .*$", re.MULTILINE)
    page = embedded.sub(lambda found: found[0].replace("<", "\\u003c"), page)
    write_text(folder / f"{name}.html", page)


def save_for_page(chart: alt.TopLevelMixin, folder: Path, name: str) -> tuple[dict[str, Any], str]:
    """NAME.svg for the page and papers, NAME.narrow.svg for phones, NAME.csv with its numbers.

    Returns:
        The specification that is drawn, and NAME.svg.

    Raises:
        NotFiniteError: a number in the chart's data is not finite.
    """
    spec = with_theme(chart)
    drawn = svg(spec, name)
    write_text(folder / f"{name}.svg", drawn)
    write_text(folder / f"{name}.narrow.svg", svg(narrow(spec), name))
    write_text(folder / f"{name}.csv", figure_rows(spec).write_csv())
    return spec, drawn


def svg(spec: dict[str, Any], name: str) -> str:
    """The figure of a specification that `with_theme` gives.

    Raises:
        NotFiniteError: a number in its data is not finite.
    """
    text: str = vl_convert.vegalite_to_svg(as_json(spec, name))
    return text


def as_json(spec: dict[str, Any], name: str) -> str:
    """A specification as JSON, which has no NaN and no infinity.

    Raises:
        NotFiniteError: it holds one; the figure and the field are named.
    """
    try:
        return json.dumps(spec, allow_nan=False)
    except ValueError:
        field = next(_not_finite(spec), "?")
        raise NotFiniteError(
            f"figure {name}: field {field} holds a value that is not finite. Its formula is "
            "at fault: please report this line"
        ) from None


def _not_finite(part: Any, field: str = "?") -> Iterator[str]:
    """The names under which numbers stand that are not finite."""
    if isinstance(part, Mapping):
        for name, inner in part.items():
            yield from _not_finite(inner, str(name))
    elif isinstance(part, Sequence) and not isinstance(part, str):
        for inner in part:
            yield from _not_finite(inner, field)
    elif isinstance(part, float) and not math.isfinite(part):
        yield field
