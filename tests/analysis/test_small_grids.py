"""Every grid ends in a page: with one dialogue or six, with no policy or three, with no judge."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from kvfidelity.analysis.finite import not_finite
from kvfidelity.report.figure_registry import charts
from kvfidelity.report.theme import svg, with_theme
from tests.analysis.empty import empty_tables
from tests.analysis.pages import made, page, prose

#: `turns`: fifteen pass the trained window, eight end inside it, three reach no threshold.
FACTORS: dict[str, tuple[Any, ...]] = {
    "dialogues": (1, 2, 3, 6),
    "policies": (0, 1, 2, 3),
    "positions": (["stale"], ["rerotated"], ["stale", "rerotated"], "all"),
    "turns": (15, 8, 3),
    "probes": (0, 2),
    "noise": (0.0, 0.2),
    "memory_for": (None, 7, 0),
    "judged": (False, True),
    "tested": (False, True),
}


def covering(factors: Mapping[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """Few combinations that hold every two values of every two factors together."""
    rows = np.array(list(itertools.product(*(range(len(values)) for values in factors.values()))))
    most = rows.max() + 1
    two = np.array(list(itertools.combinations(range(len(factors)), 2)))
    # A pair of values as a number, for each combination and two factors.
    values = rows[:, two[:, 0]] * most + rows[:, two[:, 1]]
    pairs = values + np.arange(len(two)) * most**2
    missing = np.zeros(len(two) * most**2, dtype=bool)
    missing[pairs] = True
    while missing.any():
        best = missing[pairs].sum(axis=1).argmax()
        missing[pairs[best]] = False
        yield {name: factors[name][index] for name, index in zip(factors, rows[best], strict=True)}


@pytest.mark.parametrize(
    "grid", list(covering(FACTORS)), ids=lambda grid: "-".join(map(str, grid.values()))
)
def test_a_small_grid_ends_in_a_page(tmp_path: Path, grid: dict[str, Any]) -> None:
    text = page(tmp_path, made(tmp_path, grid), tested=grid["tested"])
    for table in (tmp_path / "results/tables").glob("*.parquet"):
        assert not_finite(pl.read_parquet(table)) == [], table.name
    shown = prose(text)
    assert text.rstrip().endswith("</html>")
    assert not re.search(r"\b(nan|inf|None|Undefined)\b", shown)
    assert ("No policy of this run evicts anything" in shown) == (grid["policies"] == 0)
    assert ("No judge was run" in shown) == (not grid["judged"])
    assert ("memory ran out in every first turn" in shown) == (grid["memory_for"] == 0)
    scored = grid["policies"] and grid["turns"] > 5 and grid["memory_for"] != 0
    assert ("there is no excess NLL" in shown) == (not scored)
    cells = json.loads(re.search(r'id="cells">(.*?)</script>', text)[1])  # type: ignore[index]
    modes = 3 if grid["positions"] == "all" else len(grid["positions"])
    assert len(cells["runs"]) == grid["dialogues"] * (1 + grid["policies"] * modes)


def test_a_figure_with_nothing_to_draw_says_so() -> None:
    for name, chart in charts(empty_tables()).items():
        assert "Nothing to draw: " in svg(with_theme(chart), name)
