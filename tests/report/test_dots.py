"""Figures of few dialogues show each of them."""

from __future__ import annotations

import polars as pl
import pytest

from kvfidelity.report.dots import FEW_DIALOGUES, ONE, with_dots
from kvfidelity.report.figures import excess
from kvfidelity.report.theme import with_theme
from tests.analysis.empty import empty_tables

CELL = {"model": "m", "dataset": "d", "policy": "p", "positions": "stale", "threshold": "t"}


def rows(dialogues: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The tables `policies` and `dialogues` of one cell."""
    empty = empty_tables()
    mean = CELL | {"mean": 1.0, "low": 0.5, "high": 1.5, "n_dialogues": dialogues, "n_turns": 9}
    each = [
        CELL | {"dialogue": f"{number:03d}", "excess_nll": number / 10, "seed": seed}
        for number in range(dialogues)
        for seed in (0, 1)
    ]
    return tuple(  # type: ignore[return-value]
        pl.concat([empty[name], pl.DataFrame(found)], how="diagonal_relaxed")
        for name, found in (("policies", [mean]), ("dialogues", each))
    )


@pytest.mark.parametrize(("dialogues", "dots"), [(6, 6), (FEW_DIALOGUES, 20), (21, 0)])
def test_a_figure_of_few_has_a_dot_per_dialogue(dialogues: int, dots: int) -> None:
    """Seeds of one dialogue are one dot."""
    spec = with_theme(excess(*rows(dialogues)))
    [data] = [part for part in spec["datasets"].values() if "policy" in part[0]]
    assert len([row for row in data if row.get(ONE) is not None]) == dots
    assert len([row for row in data if row["mean"] is not None]) == 1


def test_a_dialogue_without_a_mean_is_not_drawn() -> None:
    means = pl.DataFrame({"policy": ["a"], "mean": [1.0], "low": [None], "high": [None]})
    each = pl.DataFrame({"policy": ["a", "b"], ONE: [0.5, 7.0]})
    assert with_dots(means, each, ["policy"])[ONE].to_list() == [None, 0.5]
