"""Recall by depth: what the data forget is found to be forgotten, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import polars as pl
import pytest

from kvfidelity.analysis.claims import Claim, evaluate_claims
from kvfidelity.analysis.recall import by_depth, questions, recall_state, recall_statements
from kvfidelity.analysis.statistics import clustered_share
from kvfidelity.analysis.tables import build_tables
from kvfidelity.report.recall_figure import recall_figure
from kvfidelity.report.theme import with_theme
from tests.analysis.synthetic import settings, write

OPTIONS: dict[str, Any] = {"confidence": 0.95, "resamples": 300, "seed": 0}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pl.DataFrame]:
    folder = tmp_path_factory.mktemp("recall")
    write(folder, settings(12), {}, probes=3)
    return build_tables(settings(12), folder)


def cell(tables: dict[str, pl.DataFrame], policy: str, positions: str, depth: str) -> Any:
    return (
        tables["recall_by_depth"]
        .filter(policy=policy, positions=positions, depth=depth)
        .row(0, named=True)
    )


def test_a_kept_beginning_knows_the_beginning_only(tables: dict[str, pl.DataFrame]) -> None:
    full = cell(tables, "baseline", "original", "middle")
    assert full["recalled"] == pytest.approx(0.8, abs=0.15)
    assert full["recall_lost"] is None
    for positions in ("stale", "rerotated"):
        kept = cell(tables, "gist", positions, "gist")
        assert (kept["recall_lost"], kept["evidence_retained_share"]) == (0, 1)
        gone = cell(tables, "gist", positions, "middle")
        assert gone["recall_lost"] == pytest.approx(full["recalled"] - gone["recalled"])
        assert gone["recall_lost_low"] > 0.2
        assert gone["recalled_low"] < gone["chance"] == 0.25 < gone["recalled_high"]
        assert (gone["n_questions"], gone["n_dialogues"], gone["evidence_retained_share"]) == (
            36,
            12,
            0,
        )
        assert gone["margin_lost_low"] > 0
        assert gone["p_holm"] >= gone["p"]


def test_the_words_say_so(tables: dict[str, pl.DataFrame]) -> None:
    verdicts = {
        (entry["policy"], mode): {
            depth["depth"]: name for name, depths in entry["depths"].items() for depth in depths
        }
        for entry in recall_statements(tables["recall_by_depth"])
        for mode in entry["modes"]
    }
    lost = dict.fromkeys(("gist", "middle", "recent"), "forgotten")
    assert verdicts["attention_top", "stale"] == lost
    assert verdicts["attention_top", "original"] == dict.fromkeys(lost, "kept")
    assert verdicts["gist", "stale"] == lost | {"gist": "kept"}
    assert verdicts["streaming_llm", "rerotated"] == lost | {"recent": "kept"}


def test_what_the_model_never_knew_is_not_called_forgotten() -> None:
    row = {"recall_lost": 0.0, "recall_lost_low": -0.1, "recall_lost_high": 0.1, "changed": 2}
    assert recall_state(row, {"recalled_low": 0.2, "chance": 0.25}) == "untested"
    assert recall_state(row, {"recalled_low": 0.6, "chance": 0.25}) == "undecided"
    assert recall_state(row | {"changed": 0}, {"recalled_low": 0.6, "chance": 0.25}) == "unchanged"
    assert (
        recall_state(row | {"recall_lost_high": 0.09}, {"recalled_low": 0.6, "chance": 0.25})
        == "kept"
    )
    assert recall_state(row, None) == "untested"


def test_questions_before_any_eviction_are_not_counted(tables: dict[str, pl.DataFrame]) -> None:
    early = tables["recall"].with_columns(
        after_eviction=pl.col("after_eviction") & (pl.col("dialogue") > "003")
    )
    found = by_depth(early, OPTIONS).filter(policy="gist", positions="stale", depth="gist")
    assert found["n_dialogues"].item() == 8
    assert by_depth(early, OPTIONS).filter(policy="baseline")["n_dialogues"].unique().item() == 12


def test_no_question_asked_gives_empty_tables(tmp_path: Path) -> None:
    write(tmp_path, settings(1), {}, turns=6)
    found = build_tables(settings(1), tmp_path)
    assert found["recall"].height == found["recall_by_depth"].height == 0
    assert recall_statements(found["recall_by_depth"]) == []
    assert with_theme(recall_figure(found["recall_by_depth"]))


def test_without_a_never_evicted_run_nothing_is_lost(tables: dict[str, pl.DataFrame]) -> None:
    asked = tables["recall"].filter(pl.col("kind") != "baseline")
    raw = asked.with_columns(n_distractors=pl.lit(3)).drop(
        "trigger", "chance", "after_eviction", "inside_window", "recalled", "recall_lost",
        "margin_lost",
    )  # fmt: skip
    found = questions(raw, tables["turns"])
    assert found["recall_lost"].null_count() == found.height
    table = by_depth(found, OPTIONS)
    assert table["recalled"].null_count() == 0
    assert table["recall_lost"].null_count() == table.height
    assert all(len(entry["depths"]["untested"]) == 3 for entry in recall_statements(table))


def test_the_figure_draws_intervals_and_chance(tables: dict[str, pl.DataFrame]) -> None:
    chart = recall_figure(tables["recall_by_depth"])
    assert isinstance(chart, alt.FacetChart)
    spec = with_theme(chart)
    marks = [layer["mark"]["type"] for layer in spec["spec"]["layer"]]
    assert marks == ["rule", "rule", "point"]
    assert spec["facet"]["sort"] == ["gist (n = 36)", "middle (n = 36)", "recent (n = 36)"]


@pytest.mark.parametrize(("depth", "expected"), [("middle", "supported"), ("gist", "contradicted")])
def test_a_claim_is_about_a_depth(
    tables: dict[str, pl.DataFrame], depth: str, expected: str
) -> None:
    of = {"kind": "sliding_window_gist", "positions": "stale", "depth": depth}
    claim = Claim("X", "a claim", "recall_lost", of, "above", 0.1, 5, turns="after_eviction")
    [row] = evaluate_claims([claim], tables, OPTIONS).to_dicts()
    assert (row["decision"], row["n_dialogues"], row["n_turns"]) == (expected, 12, 36)


def test_a_claim_compares_policies_question_by_question(
    tables: dict[str, pl.DataFrame],
) -> None:
    of = {"kind": "streaming_llm", "positions": "rerotated", "depth": "recent"}
    minus = {"kind": "sliding_window_gist", "positions": "rerotated", "depth": "recent"}
    claim = Claim(
        "X", "a claim", "recalled", of, "above", 0.1, 5, minus=minus, turns="after_eviction"
    )
    [row] = evaluate_claims([claim], tables, OPTIONS).to_dicts()
    assert (row["decision"], row["n_turns"]) == ("supported", 36)


def test_a_share_of_all_or_none_has_an_interval_too() -> None:
    """Ten questions, all right: Clopper and Pearson's bound is the tenth root of 0.025."""
    names = np.repeat(list("abcde"), 2)
    found = clustered_share(np.ones(10), np.ones(10), names, resamples=100)
    assert (found.low, found.high) == (pytest.approx(0.025 ** (1 / 10)), 1)
    found = clustered_share(np.zeros(10), np.ones(10), names, resamples=100)
    reach = 1 - 0.025 ** (1 / 10)
    assert (found.low, found.high) == (0, pytest.approx(reach))
    lost = clustered_share(np.zeros(10), np.ones(10), names, resamples=100, paired=True)
    assert (lost.low, lost.high) == (pytest.approx(-reach), pytest.approx(reach))


def test_intervals_of_shares_cover() -> None:
    """Twenty dialogues of three questions that share a level around 0.7."""
    rng = np.random.default_rng(0)
    levels = 1 / (1 + np.exp(-rng.normal(1, 0.7, 100_000)))
    hits = 0
    for seed in range(200):
        drawn = rng.uniform(size=(20, 3)) < rng.choice(levels, (20, 1))
        names = np.repeat(np.arange(20).astype(str), 3)
        found = clustered_share(
            drawn.ravel().astype(float), np.ones(60), names, resamples=300, seed=seed
        )
        assert found.low is not None and found.high is not None
        hits += found.low <= levels.mean() <= found.high
    assert 0.9 <= hits / 200 <= 0.99
