"""The numbers of a figure as a table: what its marks say to a pointer, for readers without one.

They are the rows that the chart draws, and of those the columns that its tooltips name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl


def figure_rows(spec: dict[str, Any]) -> pl.DataFrame:
    """One row per mark with a tooltip, columns in the tooltips' order; without columns if none has.

    Args:
        spec: a Vega-Lite specification whose data is in it.
    """
    fields = list(dict.fromkeys(_tooltip_fields(spec)))
    for rows in spec.get("datasets", {}).values():
        known = [name for name in fields if any(name in row for row in rows)]
        if known:
            table = pl.DataFrame(
                [{name: row.get(name) for name in known} for row in rows],
                infer_schema_length=None,
            )
            # A dialogue's own dot has no mean; its value is in the table of dialogues.
            if "mean" in known:
                table = table.filter(pl.col("mean").is_not_null())
            return table.unique(maintain_order=True)
    return pl.DataFrame()


def _tooltip_fields(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        tooltip = part.get("encoding", {}).get("tooltip") if "encoding" in part else None
        for one in tooltip if isinstance(tooltip, list) else []:
            yield str(one["field"])
        for name, inner in part.items():
            if name not in ("datasets", "encoding"):
                yield from _tooltip_fields(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from _tooltip_fields(inner)
