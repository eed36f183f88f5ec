"""The figures of the page, with their numbers, by section."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from kvfidelity.report.embedding import inline_svg
from kvfidelity.report.figure_registry import FIGURES, SECTIONS
from kvfidelity.report.formatting import cell_text

#: Of a figure's numbers, as many rows stand in the page; its CSV has all.
FIGURE_ROWS = 40


def figures_by_section(folder: Path, report: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The figures of each section of the page: `name`, `svg`, `narrow` (for narrow screens),
    `alt_text`, `caption`, and of its numbers `head`, `rows` (the first FIGURE_ROWS) and `n_rows`.
    """
    sections: dict[str, list[dict[str, Any]]] = {name: [] for name in SECTIONS}
    for figure in FIGURES:
        entry: dict[str, Any] = {"name": figure.name, "alt_text": figure.alt_text}
        entry["caption"] = figure.caption_with(report["confidence"])
        for form, ending in (("svg", "svg"), ("narrow", "narrow.svg")):
            text = (folder / f"{figure.name}.{ending}").read_text("utf-8")
            entry[form] = inline_svg(text, f"{figure.name}-{form}")
        file = folder / f"{figure.name}.csv"
        rows = pl.read_csv(file, glob=False) if file.read_text("utf-8").strip() else pl.DataFrame()
        shown = [[cell_text(value) for value in row] for row in rows.head(FIGURE_ROWS).rows()]
        entry |= {"head": rows.columns, "rows": shown, "n_rows": rows.height}
        sections[figure.section].append(entry)
    return sections
