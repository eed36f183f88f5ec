"""Figures have a form for phones, and their numbers as a table."""

from __future__ import annotations

import re

import altair as alt
import polars as pl
import pytest

from kvfidelity.report.figure_rows import figure_rows
from kvfidelity.report.figures import MAX_ROWS, excess, thinned
from kvfidelity.report.narrow import WIDTH, narrow
from kvfidelity.report.theme import svg, with_theme
from kvfidelity.report.timeline import latency
from tests.report.test_dots import rows


def chart() -> alt.TopLevelMixin:
    """Panels side by side, with long names and a long title."""
    data = pl.DataFrame(
        {
            "name": ["attention_top_99, half", "b, half"] * 3,
            "panel": ["one", "one", "two", "two", "three", "three"],
            "x": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        }
    )
    bars = alt.Chart(data).mark_bar(color="#0072B2")
    title = "a title that is too long for a screen as narrow as a phone's"
    bars = bars.encode(
        x=alt.X("x:Q", title=title), y=alt.Y("name:N", title=None), tooltip=["panel", "x"]
    )
    return bars.properties(width=560, height=60).facet("panel:N", columns=3)


def width(text: str) -> float:
    found = re.search(r'<svg[^>]* width="([\d.]+)"', text)
    assert found
    return float(found[1])


def test_the_narrow_form_fits_a_phone_and_leaves_the_wide_one_alone() -> None:
    spec = with_theme(chart())
    wide = svg(spec, "x")
    small = svg(narrow(spec), "x")
    assert width(wide) > 1000
    assert width(small) <= WIDTH + 30
    assert svg(spec, "x") == wide
    assert small.count("<rect") or small.count("<path") >= 6
    # What is left of the plot is more than its labels.
    assert "attention_top_99" in small and "…" not in small


@pytest.mark.parametrize("dialogues", [1, 6])
def test_the_main_figure_fits_a_phone(dialogues: int) -> None:
    assert width(svg(narrow(with_theme(excess(*rows(dialogues)))), "excess")) <= WIDTH + 30


def test_the_numbers_are_those_of_the_tooltips() -> None:
    table = figure_rows(with_theme(chart()))
    assert table.columns == ["panel", "x"]
    assert table["x"].to_list() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_dots_of_dialogues_are_not_among_the_numbers() -> None:
    table = figure_rows(with_theme(excess(*rows(6))))
    assert table.height == 1
    assert table["mean"].to_list() == [1.0]


def test_a_figure_without_marks_has_no_numbers() -> None:
    empty = alt.Chart(pl.DataFrame({"x": [1]})).mark_point().encode(x="x:Q")
    assert figure_rows(with_theme(empty)).is_empty()


def test_seconds_are_milliseconds_and_a_slow_first_turn_moves_nothing() -> None:
    turns = pl.DataFrame(
        {
            "model": "m",
            "dataset": "d",
            "policy": ["a"] * 9 + ["b"] * 9,
            "kind": ["x"] * 18,
            "threshold": "t",
            "dialogue": (["0"] * 3 + ["1"] * 3 + ["2"] * 3) * 2,
            "shared_prefix": False,
            "concurrency": 1,
            "prefill_s": [9.0, 0.002, 0.002] * 3 + [0.004] * 9,
            "scoring_s": 0.0001,
            "eviction_s": 0.0002,
            "tpot_s": 0.01,
            "reply_token_count": 10,
        }
    )
    table = figure_rows(with_theme(latency(turns)))
    found = {
        (row["row"], row["part"]): row["median"] for row in table.drop_nulls("median").to_dicts()
    }
    assert found["a", "prefill"] == pytest.approx(2)
    assert found["b", "prefill"] == pytest.approx(4)
    assert found["a", "decode"] == pytest.approx(100)
    assert table["n"].drop_nulls().unique().to_list() == [3]
    together = turns.with_columns(concurrency=4)
    assert "session.batch_size: 1" in str(with_theme(latency(together)))


def test_a_long_dialogue_is_thinned_and_drawn() -> None:
    """Altair refuses more than 5,000 rows where nothing is said."""
    turns = pl.DataFrame({"turn": [turn for turn in range(3000) for _ in range(16)]})
    kept = thinned(turns)
    assert 0 < kept.height <= MAX_ROWS
    assert kept["turn"].unique().sort().head(3).to_list() == [0, 10, 20]
    assert thinned(turns.head(MAX_ROWS)).height == MAX_ROWS
    points = alt.Chart(turns.head(5001)).mark_point().encode(x="turn:Q")
    [rows] = with_theme(points)["datasets"].values()
    assert len(rows) == 5001


def test_a_short_axis_has_all_ticks_that_its_figure_names() -> None:
    """How large the largest loss is can be read on a phone too."""
    axis = alt.Axis(values=[-0.1, -0.01, 0, 0.01, 0.1, 1, 10], format="~g")
    scale = alt.Scale(type="symlog", constant=0.01)
    data = pl.DataFrame({"loss": [-0.1, 2.4], "name": ["a", "b"]})
    base = alt.Chart(data).encode(y="name:N")
    marks = base.mark_point().encode(x=alt.X("loss:Q", scale=scale, axis=axis))
    zero = base.mark_rule().encode(x=alt.datum(0))
    spec = with_theme(alt.layer(zero, marks).properties(width=560))
    labels = re.findall(">(\u2212?[0-9.]+)</text>", svg(narrow(spec), "ticks"))
    assert {"\u22120.1", "0", "0.1", "1"} <= set(labels)
