"""Two runs' results beside each other: which cells moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from kvfidelity.analysis.claims import CELL
from kvfidelity.analysis.paper_tables import markdown
from kvfidelity.analysis.statistics import clustered_mean
from kvfidelity.analysis.words import interval, signed
from kvfidelity.artifacts import read_parquet
from kvfidelity.errors import UserError

PAIRED = ("dialogue_id", "seed", "turn")


def compare(one: Path, other: Path, options: dict[str, Any]) -> str:
    """Markdown: excess NLL of every cell that both runs have, B minus A, and what only one has.

    Where the runs share turns of the same dialogues (by the dialogue's own id) the difference is
    paired and has an interval; where they do not, only the two means are given.

    Args:
        one, other: results folders, A and B.
        options: confidence, resamples, seed.

    Raises:
        UserError: a folder without finished tables.
    """
    first, second = _turns(one), _turns(other)
    cells = [set(table.select(CELL).unique().rows()) for table in (first, second)]
    head = ["cell", "A", "B", "B − A", "interval", "shared dialogues"]
    rows = [_row(cell, first, second, options) for cell in sorted(cells[0] & cells[1])]
    text = f"Excess NLL, nats per reference token. A: {one}, B: {other}.\n\n"
    text += markdown(head, rows) if rows else "No cell is in both runs.\n"
    for name, only in (("A", cells[0] - cells[1]), ("B", cells[1] - cells[0])):
        if only:
            text += f"\nOnly in {name}: {'; '.join(', '.join(cell) for cell in sorted(only))}.\n"
    return text


def _row(
    cell: tuple[Any, ...], one: pl.DataFrame, other: pl.DataFrame, options: dict[str, Any]
) -> list[str]:
    same = [pl.col(name) == value for name, value in zip(CELL, cell, strict=True)]
    first, second = one.filter(same), other.filter(same)
    pairs = second.join(first.select(*PAIRED, before="excess_nll"), on=PAIRED)
    told = [", ".join(cell), signed(_mean(first)), signed(_mean(second))]
    if pairs.is_empty():
        return [*told, signed(None), "no shared turns", "0"]
    found = clustered_mean(
        (pairs["excess_nll"] - pairs["before"]).to_numpy(),
        pairs["reference_tokens"].cast(pl.Float64).to_numpy(),
        pairs["dialogue_id"].to_numpy().astype(str),
        **options,
    )
    span = interval({"low": found.low, "high": found.high})
    return [*told, signed(found.mean), span, str(found.n_dialogues)]


def _mean(turns: pl.DataFrame) -> float:
    weights = turns["reference_tokens"].to_numpy()
    return float(np.average(turns["excess_nll"].to_numpy(), weights=weights))


def _turns(folder: Path) -> pl.DataFrame:
    file = Path(folder) / "tables/turns.parquet"
    if not file.is_file():
        raise UserError(f"{folder} holds no finished run (no tables/turns.parquet): run it first")
    turns = read_parquet(file, kind="turns")
    return turns.filter(
        "after_eviction", "inside_window", pl.col("excess_nll").is_not_null()
    ).select(*CELL, *PAIRED, "excess_nll", "reference_tokens")
