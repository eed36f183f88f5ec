"""What the columns of seconds contain, with a policy and an eviction that sleep."""

from __future__ import annotations

import time
from typing import Any

import polars as pl
import pytest

from kvfidelity.cache.managed import ManagedCache
from kvfidelity.decoding.engine import Engine
from kvfidelity.report.timeline import latency
from tests.generation import slow_policy
from tests.generation.slow_policy import SLEEP_S
from tests.generation.test_run import run

MOVE_S = 0.4


@pytest.fixture(scope="module", params=["turn", "prompt", "step"])
def turns(request: pytest.FixtureRequest, engine: Engine) -> pl.DataFrame:
    """A run that evicts before the prompt, after it, or while the reply is fed."""
    keep = ManagedCache.keep

    def slow_keep(cache: ManagedCache, *arguments: Any) -> None:
        time.sleep(MOVE_S)
        keep(cache, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ManagedCache, "keep", slow_keep)
        records = run(
            engine,
            kind="slow_policy",
            policy_files=(slow_policy.__file__,),
            trigger=request.param,
            at="150tok",
            max_new_tokens=2,
        )
    turns: pl.DataFrame = records.turns
    assert turns["evictions"].sum() > 1
    return turns


def test_each_part_of_a_turn_has_its_own_column(turns: pl.DataFrame) -> None:
    for row in turns.iter_rows(named=True):
        assert row["prefill_s"] < min(SLEEP_S, MOVE_S)
        assert row["scoring_s"] >= row["evictions"] * SLEEP_S
        assert row["eviction_s"] >= row["evictions"] * MOVE_S


def test_the_first_token_waits_for_the_evictions_before_it(turns: pl.DataFrame) -> None:
    evicting = turns.filter((pl.col("evictions") > 0) & (pl.col("trigger") != "step"))
    assert (evicting["ttft_s"] >= SLEEP_S + MOVE_S).all()


def test_the_latency_figure_shows_the_columns_as_they_are(turns: pl.DataFrame) -> None:
    """Also where an eviction takes longer than the prompt, which made prefill zero."""
    single = turns.filter(~pl.col("shared_prefix"))
    drawn = _medians(latency(turns).to_dict())
    assert drawn.keys() >= {"prefill", "scoring", "eviction"}
    for part in ("prefill", "scoring", "eviction"):
        assert drawn[part] == pytest.approx(1000 * single[f"{part}_s"].median())
    assert drawn["prefill"] > 0


def test_latency_is_over_dialogues(turns: pl.DataFrame) -> None:
    """One turn of a second dialogue weighs as much as all turns of the first."""
    single = turns.filter(~pl.col("shared_prefix"))
    seconds = pl.col("prefill_s") + 10
    other = single.head(1).with_columns(dialogue=pl.lit("another"), prefill_s=seconds)
    drawn = _medians(latency(pl.concat([turns, other])).to_dict())
    expected = 1000 * (single["prefill_s"].median() + other["prefill_s"].item()) / 2
    assert drawn["prefill"] == pytest.approx(expected)


def _medians(chart: Any) -> dict[str, float]:
    """The figure's medians by part of a turn, wherever its specification holds its rows."""
    if isinstance(chart, dict):
        if {"part", "median"} <= chart.keys() and isinstance(chart["median"], float):
            return {chart["part"]: chart["median"]}
        chart = list(chart.values())
    found: dict[str, float] = {}
    for child in chart if isinstance(chart, list) else []:
        found |= _medians(child)
    return found
