"""Shifted modes in figures and tables: after the named ones, in the order of their shift."""

from __future__ import annotations

import polars as pl

from kvfidelity.report.figures import MODE_COLOURS, mode_colour, mode_shape
from kvfidelity.report.position_modes import SHIFTED, position_order


def test_shifted_modes_have_a_look_of_their_own_and_a_place() -> None:
    modes = ["shifted+64", "rerotated", "shifted-512", "stale", "shifted+0"]
    rows = pl.DataFrame({"positions": modes})
    ordered = ["stale", "rerotated", "shifted-512", "shifted+0", "shifted+64"]
    assert sorted(modes, key=position_order) == ordered
    colours, shapes = mode_colour(rows)["scale"], mode_shape(rows)["scale"]
    assert colours.domain == shapes.domain == ordered
    assert colours.range[2:] == [SHIFTED.colour] * 3 and shapes.range[2:] == [SHIFTED.marker] * 3
    assert SHIFTED.colour not in MODE_COLOURS.range
