"""Recall by depth: what the data forget is found to be forgotten, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import altair as alt
import polars as pl
import pytest

from kvfidelity.analysis.claims import Claim, evaluate_claims
from kvfidelity.analysis.recall import by_depth, questions, recall_state, recall_statements
from kvfidelity.analysis.tables import build_tables
from kvfidelity.report.recall_figure import recall_figure
from kvfidelity.report.theme import with_theme
from tests.analysis.synthetic import settings, write

OPTIONS: dict[str, Any] = {"confidence": 0.95, "resamples": 300, "seed": 0}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pl.DataFrame]:
    folder = tmp_path_factory.mktemp("recall")
    write(folder, settings(24), {}, probes=3)
    return build_tables(settings(24), folder)


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
        kept = cell(tables, "gist", positions, "early")
        assert (kept["recall_lost"], kept["evidence_retained_share"]) == (0, 1)
        gone = cell(tables, "gist", positions, "middle")
        assert gone["recall_lost"] == pytest.approx(full["recalled"] - gone["recalled"])
        assert gone["recall_lost_low"] > 0.2
        assert gone["recalled_low"] < gone["chance"] == 0.25 < gone["recalled_high"]
        assert (gone["n_questions"], gone["n_dialogues"], gone["evidence_retained_share"]) == (
            72,
            24,
            0,
        )
        assert gone["margin_lost_low"] > 0


def test_the_words_say_so(tables: dict[str, pl.DataFrame]) -> None:
    verdicts = {
        (entry["policy"], mode): {
            depth["depth"]: name for name, depths in entry["depths"].items() for depth in depths
        }
        for entry in recall_statements(tables["recall_by_depth"])
        for mode in entry["modes"]
    }
    lost = dict.fromkeys(("early", "middle", "recent"), "forgotten")
    assert verdicts["attention_top", "stale"] == lost
    assert verdicts["attention_top", "original"] == dict.fromkeys(lost, "kept")
    assert verdicts["gist", "stale"] == lost | {"early": "kept"}
    assert verdicts["streaming_llm", "rerotated"] == lost | {"recent": "kept"}


def test_what_the_model_never_knew_is_not_called_forgotten() -> None:
    knows, guesses = ({"recalled_low": low, "chance": 0.25} for low in (0.6, 0.2))
    ends = {"margin_lost_low": -0.1, "margin_lost_high": 0.2, "margin_lost_strict_low": -0.2}
    row = ends | {"margin_lost_strict_high": 0.3, "changed": 2, "n_compared": 24}
    assert recall_state(row, guesses) == "untested"
    assert recall_state(row, None) == "untested"
    assert recall_state(row, knows) == "undecided"
    assert recall_state(row | {"changed": 0}, knows) == "unchanged"
    lost = {"margin_lost_strict_low": 0.2, "margin_lost_strict_high": 0.9}
    assert recall_state(row | lost, knows) == "forgotten"
    assert recall_state(row | lost | {"n_compared": 9}, knows) == "undecided"
    assert recall_state(row | lost, guesses) == "untested"
    small = {"margin_lost_strict_high": 0.09}
    assert recall_state(row | small, knows) == "kept"
    assert recall_state(row | small | {"n_compared": 19}, knows) == "undecided"


def test_questions_before_any_eviction_are_not_counted(tables: dict[str, pl.DataFrame]) -> None:
    early = tables["recall"].with_columns(
        after_eviction=pl.col("after_eviction") & (pl.col("dialogue") > "003")
    )
    found = by_depth(early, OPTIONS).filter(policy="gist", positions="stale", depth="early")
    assert found["n_dialogues"].item() == 20
    assert by_depth(early, OPTIONS).filter(policy="baseline")["n_dialogues"].unique().item() == 24


def test_no_question_asked_gives_empty_tables(tmp_path: Path) -> None:
    write(tmp_path, settings(1), {}, turns=6)
    found = build_tables(settings(1), tmp_path)
    assert found["recall"].height == found["recall_by_depth"].height == 0
    assert recall_statements(found["recall_by_depth"]) == []
    assert with_theme(recall_figure(found["recall_by_depth"], found["recall"]))


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
    chart = recall_figure(tables["recall_by_depth"], tables["recall"])
    assert isinstance(chart, alt.FacetChart)
    spec = with_theme(chart)
    marks = [layer["mark"]["type"] for layer in spec["spec"]["layer"]]
    assert marks == ["rule", "rule", "point", "point"]
    assert spec["facet"]["sort"] == [
        "the beginning (n = 72)",
        "the middle (n = 72)",
        "the latest (n = 72)",
    ]


@pytest.mark.parametrize(
    ("quantity", "depth", "expected"),
    [
        ("margin_lost", "middle", "supported"),
        ("margin_lost", "early", "contradicted"),
        ("recall_lost", "middle", "supported"),
        ("recall_lost", "early", "not decided"),
    ],
)
def test_a_claim_is_about_a_depth(
    tables: dict[str, pl.DataFrame], quantity: str, depth: str, expected: str
) -> None:
    """The margin decides what the share of right answers leaves open."""
    of = {"kind": "sliding_window_gist", "positions": "stale", "depth": depth}
    claim = Claim("X", "a claim", quantity, of, "above", 0.1, 5, turns="after_eviction")
    [row] = evaluate_claims([claim], tables, OPTIONS).to_dicts()
    assert (row["decision"], row["n_dialogues"], row["n_turns"]) == (expected, 24, 72)


def test_a_claim_compares_policies_question_by_question(
    tables: dict[str, pl.DataFrame],
) -> None:
    of = {"kind": "streaming_llm", "positions": "rerotated", "depth": "recent"}
    minus = {"kind": "sliding_window_gist", "positions": "rerotated", "depth": "recent"}
    claim = Claim(
        "X", "a claim", "recalled", of, "above", 0.1, 5, minus=minus, turns="after_eviction"
    )
    [row] = evaluate_claims([claim], tables, OPTIONS).to_dicts()
    assert (row["decision"], row["n_turns"]) == ("supported", 72)
