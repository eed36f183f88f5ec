"""What policies forget at equal bytes, in order, with what their evictions cost."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest

from kvfidelity.analysis.leaderboard import leaderboard
from kvfidelity.analysis.tables import build_tables
from kvfidelity.report.leaderboard_figure import leaderboard_figure
from kvfidelity.report.narrow import WIDTH, narrow
from kvfidelity.report.theme import svg, with_theme
from tests.analysis.synthetic import settings, write

COSTS = {
    ("attention_top", "stale"): 2.0,
    ("attention_top", "rerotated"): 0.0,
    ("sliding_window_gist", "rerotated"): 0.4,
    ("streaming_llm", "rerotated"): 0.2,
}
OPTIONS = {"confidence": 0.95, "resamples": 200, "seed": 0}


def built(folder: Path, probes: int) -> dict[str, pl.DataFrame]:
    chosen = settings(10, session={"recall": {"needles_per_depth": probes}} if probes else {})
    write(folder, chosen, COSTS, probes=probes)
    return build_tables(chosen, folder)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pl.DataFrame]:
    return built(tmp_path_factory.mktemp("asked"), 4)


@pytest.fixture(scope="module")
def unasked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pl.DataFrame]:
    return built(tmp_path_factory.mktemp("unasked"), 0)


def corrected(table: pl.DataFrame) -> pl.DataFrame:
    return table.filter(positions="rerotated")


def test_needles_decide_where_they_were_asked_for(asked: dict[str, pl.DataFrame]) -> None:
    """What is put in: attention_top forgets nothing, the others what they do not keep."""
    table = corrected(asked["leaderboard"])
    assert table["ordered_by"].unique().to_list() == ["margin_lost"]
    assert table["margin_lost"].is_sorted() and table["rank"].to_list()[0] == 1
    assert table["policy"][0] == "attention_top"
    assert abs(table["margin_lost"][0]) < table["margin_lost"][1]
    questions = asked["recall"].filter("after_eviction", positions="rerotated")
    for row in table.to_dicts():
        own = questions.filter(policy=row["policy"])
        assert row["n_questions"] == own.height
        assert row["margin_lost"] == pytest.approx(own["margin_lost"].mean())
        assert row["recalled"] == pytest.approx(own["recalled"].mean())


def test_likelihood_decides_elsewhere(unasked: dict[str, pl.DataFrame]) -> None:
    table = corrected(unasked["leaderboard"])
    assert table["ordered_by"].unique().to_list() == ["mean"]
    assert table["policy"].to_list() == ["attention_top", "streaming_llm", "gist"]
    assert table["rank"].to_list() == [1, 2, 3]
    assert table["margin_lost"].is_null().all()


def test_position_modes_do_not_compete(unasked: dict[str, pl.DataFrame]) -> None:
    table = unasked["leaderboard"]
    firsts = table.filter(rank=1)["positions"].to_list()
    assert sorted(firsts) == sorted(set(table["positions"]))
    assert table.height == unasked["ranking"].height


def test_an_eviction_counts_once_whatever_its_keep_sets(unasked: dict[str, pl.DataFrame]) -> None:
    """A keep set per kv head has a row for each, with the same seconds."""
    evictions = unasked["evictions"].filter(pl.col("positions") == "rerotated")
    twice = pl.concat([evictions, evictions.with_columns(group=pl.lit("head:0:1"))])
    slow = pl.col("step") == 0
    twice = twice.with_columns(scoring_s=pl.when(slow).then(9.0).otherwise("scoring_s"))
    ranked = corrected(unasked["ranking"])
    table = leaderboard(ranked, unasked["recall"], twice, OPTIONS)
    for row in table.to_dicts():
        own = evictions.filter(policy=row["policy"])
        assert row["n_evictions"] == own.select("run", "step").n_unique() == own.height
        assert own.filter(slow).height < own.height / 2, "so the median is of the others"
        assert row["eviction_ms"] == pytest.approx(30) and row["scoring_ms"] == pytest.approx(20)
        assert (row["ranking_bytes"], row["held_bytes"]) == (4000, 900)


def test_policies_that_set_their_own_size_have_no_place(unasked: dict[str, pl.DataFrame]) -> None:
    ranked = unasked["ranking"].with_columns(budget_tokens=pl.lit(None, pl.Int64))
    table = leaderboard(ranked, unasked["recall"], unasked["evictions"], OPTIONS)
    assert table["rank"].is_null().all()
    assert "Nothing to draw" in leaderboard_figure(table).to_json()


def test_the_figure_shows_corrected_cells_in_the_order_of_their_rank(
    asked: dict[str, pl.DataFrame],
) -> None:
    drawn = leaderboard_figure(asked["leaderboard"]).to_dict()
    rows = next(iter(drawn["datasets"].values()))
    expected = corrected(asked["leaderboard"])
    assert [row["policy"] for row in rows] == expected["policy"].to_list()
    assert {row["measure"] for row in rows} == {"margin lost on needles"}
    assert [row["first"] for row in rows].count(True) >= 1
    assert rows[0]["memory_mb"] == pytest.approx(0.0049)


def test_the_figure_fits_a_phone(asked: dict[str, pl.DataFrame]) -> None:
    drawn = svg(narrow(with_theme(leaderboard_figure(asked["leaderboard"]))), "leaderboard")
    found = re.search(r'<svg[^>]* width="([\d.]+)"', drawn)
    assert found and float(found[1]) <= WIDTH + 30
    assert drawn.count("attention_top") >= 3, "each panel has the names"
