"""Numbers as a reader sees them, and what stands where there is none."""

from __future__ import annotations

import pytest

from kvfidelity.report.formatting import decimal, extent, interval, percent, percent_range, signed


def test_what_is_missing_is_a_dash() -> None:
    for shown in (signed(None), percent(None), decimal(None), extent([]), extent([None])):
        assert shown == "–"
    assert percent_range([None, None]) == "–"


@pytest.mark.parametrize(
    ("values", "shown"),
    [([300], "300"), ([300, None, 200], "200 to 300"), ([300, 300], "300")],
)
def test_an_extent_is_that_of_what_is_known(values: list[int | None], shown: str) -> None:
    assert extent(values) == shown
    assert percent_range([0.25, None, 0.5]) == "25% to 50%"


def test_a_missing_interval_says_why_if_it_is_known() -> None:
    row = {"low": None, "high": None}
    assert interval(row | {"n_dialogues": 1}) == "no interval from one dialogue"
    assert interval(row | {"n_dialogues": 3}) == "no interval"
    assert interval({"low": 4.1, "high": 5.2, "n_dialogues": 3}, 1) == "[+4.1, +5.2]"
