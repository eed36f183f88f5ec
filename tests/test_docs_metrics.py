"""docs/metrics.md has an entry for every metric, and its example is what the library computes."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
import torch

from kvfidelity.cache.positions import PositionMode
from kvfidelity.cache.slots import SlotTable
from kvfidelity.metrics.positions import integrity
from kvfidelity.metrics.text import text_metrics
from kvfidelity.records.columns import INTEGRITY_AT_END, RECALL, TURNS

PAGE = (Path(__file__).parents[1] / "docs/metrics.md").read_text(encoding="utf-8")
ENTRIES = re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE)
# Columns of the tables that are computed from those of the records.
DERIVED = {"baseline_nll", "excess_nll", "prefill_overshoot_share", "turn_overshoot_share"}
DERIVED |= {"early_nll", "early_excess_nll", "confidence", "overconfidence"}


def measured(schema: dict[str, Any]) -> set[str]:
    """Columns that hold a measured number rather than a name, a count or a size."""
    floats = (pl.Float64, pl.List(pl.Float64), pl.List(pl.Float32))
    return {name for name, dtype in schema.items() if dtype in floats}


def metrics() -> set[str]:
    text = set(asdict(text_metrics("a reply", "a prompt", "a reference")))
    recall = measured(RECALL) | {"chosen", "answered"}
    # The page says once that each integrity metric also exists at the end of a reply.
    return (measured(TURNS) - set(INTEGRITY_AT_END)) | recall | text | DERIVED


def test_every_metric_has_one_entry_and_no_entry_is_of_another_column() -> None:
    assert sorted(ENTRIES) == sorted(metrics())


def test_entries_say_formula_range_and_reading() -> None:
    for name in ENTRIES:
        [line] = [row for row in PAGE.splitlines() if row.startswith(f"| `{name}` |")]
        _, _, formula, range_, _, _ = re.split(r"(?<!\\)\|", line)
        assert formula.strip() and range_.strip(), name


def example(mode: PositionMode) -> dict[str, Any]:
    slots = SlotTable(mode)
    slots.append(8)
    slots.keep(torch.tensor([0, 1, 5, 6, 7]))
    return asdict(integrity(slots, torch.tensor([1.0, 0.1]), trained_window=8))


def example_rows() -> list[str]:
    by_mode = [example(mode) for mode in PositionMode]
    return [
        f"| {name.replace('_', ' ')} | "
        + " | ".join(f"{values[name]:.3f}".rstrip("0").rstrip(".") for values in by_mode)
        + " |"
        for name in by_mode[0]
        if by_mode[0][name] is not None
    ]


def test_the_example_is_what_the_library_computes() -> None:
    _, after = PAGE.split("| metric | stale | original | rerotated |\n|---|---|---|---|\n")
    assert after.split("\n\n")[0].splitlines() == example_rows()
