"""What the page says against reading too much into its numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from kvfidelity.analysis.decisions import SUPPORTED, UNDECIDED
from kvfidelity.findings import advice, sentences
from kvfidelity.findings.open_answers import disruption, training
from kvfidelity.findings.plan import QWEN, SMOLLM2
from kvfidelity.findings.published import PublishedRun, published_runs
from kvfidelity.findings.sources import RECALL, sources
from kvfidelity.findings.verdicts import claim_rows, verdict
from kvfidelity.report.formatting import signed

RUNS = published_runs(Path(__file__).parents[2] / "docs/findings")


def published(finding: str, model: str = SMOLLM2) -> PublishedRun:
    (run,) = (run for run in RUNS if run.finding.name == finding and run.model == model)
    return run


def test_scores_past_the_trained_window_are_left_out_and_counted() -> None:
    run = published("paper_own")
    cell = {"policy": "attention_top_99", "positions": "stale", "threshold": "5600tok"}
    whole = run.tables["own_replies"].filter(**cell)["n"][0]
    (scored,) = run.tables["verdict_means"].filter(**cell).to_dicts()
    assert scored["n"] < 0.9 * whole and scored["missing"] == whole - scored["n"]
    said = f"inside the trained window ({scored['n']} of {whole} with 99% by attention and stale"
    assert said in sentences.five(RUNS)[0] and said in sentences.own_replies(run)[-1]
    assert sentences.replies_inside_window(published("paper_own", QWEN)) == ""


def test_scores_are_said_to_differ_where_their_intervals_do() -> None:
    for model in (SMOLLM2, QWEN):
        run = published("paper_own", model)
        scores = run.tables["verdict_means"].filter(pl.col("threshold") == "5600tok")
        apart = (pl.col("difference_low") > 0) | (pl.col("difference_high") < 0)
        sure = scores.filter(apart).height
        assert f"where {sure or 'none'} of the {scores.height} " in sentences.own_scores(run)


def row(**other: Any) -> pl.DataFrame:
    ends = {"low": 0.2, "high": 0.9, "strict_low": -0.1, "strict_high": 1.2}
    whole = {"claim": "C", "estimate": 0.5, "n_dialogues": 25, "margin": 0.05, **ends}
    return pl.DataFrame([whole | {"decision": UNDECIDED, "label": ""} | other])


def test_a_verdict_shows_the_interval_and_the_margin_that_decided() -> None:
    assert "99% [−0.10, +1.20], margin +0.05, 25 dialogues" in verdict(row())
    assert "99%" not in verdict(row(low=-0.3)) and "margin +0.05" in verdict(row(low=-0.3))
    for plain in (row(margin=0.0), row(decision=SUPPORTED)):
        assert "99%" not in verdict(plain) and "margin" not in verdict(plain)
    assert verdict(row(label="small run")).endswith("25 dialogues (small run)")


def test_claims_of_a_labelled_run_carry_its_label() -> None:
    run = published("question2_replies")
    labelled = replace(run, facts={**run.facts, "label": "one training"})
    assert set(claim_rows([labelled], run.model)["label"]) == {"one training"}


@pytest.mark.parametrize("model", [SMOLLM2, QWEN])
def test_the_recommendation_names_the_next_policy_and_whether_it_is_surely_behind(
    model: str,
) -> None:
    run = published("equal_budgets", model)
    source = next(one for one in sources(RUNS, RECALL, "leaderboard") if one.run is run)
    board = run.tables["leaderboard"].filter(positions="rerotated", threshold="2000tok")
    pick = advice.chosen(source, "2000tok")
    assert pick is not None
    behind = board.filter(
        pl.col("margin_lost") >= pick["margin_lost"], pl.col("policy") != pick["policy"]
    ).sort("margin_lost", "mean")
    following = behind.row(0, named=True)
    sure = pick["margin_lost_high"] < following["margin_lost_low"]
    text = "\n".join(advice.section(RUNS)).split(f"- {run.name}: with 2,000")[1].split("\n")[0]
    assert f"The next by margin lost is `{following['policy']}`" in text
    assert ("their intervals do not overlap" in text) == sure


@pytest.mark.parametrize("model", [SMOLLM2, QWEN])
def test_of_the_policies_that_lose_less_than_the_beginning_the_sure_ones_are_counted(
    model: str,
) -> None:
    run = published("equal_budgets", model)
    rows = run.tables["policies"].filter(positions="rerotated", threshold="2000tok")
    gist = rows.filter(policy="gist").row(0, named=True)
    below = rows.filter(pl.col("mean") < gist["mean"])
    sure = below.filter(pl.col("high") < gist["low"]).height
    text = "\n".join(advice.section(RUNS)).split(f"- {run.name}: where positions")[1]
    said = f"{below.height} have a lower mean loss with 2,000 tokens kept ({sure or 'none'} with"
    assert said in text.split("\n")[0]
    assert f"- {run.name}, LoCoMo: where positions" in "\n".join(advice.section(RUNS))


def test_what_jumps_of_positions_gain_stands_next_to_what_evicted_states_do() -> None:
    run = published("question2")
    rows = run.tables["finetuning"].filter(
        measure="reference_nll",
        policy="attention_top_99",
        positions="stale",
        arm="skips",
        against="control",
        against_positions="stale",
    )
    assert f"with nothing evicted by {signed(rows['difference'][0], 2)} [" in training(run)


def test_the_strongest_measure_without_a_fit_stands_next_to_the_fitted_one() -> None:
    for model in (SMOLLM2, QWEN):
        run = published("disruption", model)
        rows = run.tables["predictor_validation"].filter(factor="none").drop_nulls("correlation")
        simple = rows.filter(pl.col("metric") != "disruption_fitted")
        best = simple.sort(pl.col("correlation").abs()).row(-1, named=True)
        said = f"`{best['metric']}`, reaches {signed(best['correlation'], 2)}"
        assert said in disruption(run)


def test_the_losses_of_the_window_say_which_turns_they_are_of() -> None:
    answers = sentences.window_answers(published("through_window"))
    assert [text.split(",")[1].split(" (")[0] for text in answers[1:]] == [" C1c", " C4b"]
