"""Question 3 in three sentences, with numbers or "not tested here"."""

from __future__ import annotations

import polars as pl

from kvfidelity.analysis.columns import table_schema
from kvfidelity.analysis.predictor_validation import FITTED
from kvfidelity.report.disruption import SHOWN, disruption_answers
from kvfidelity.report.page_environment import page_environment


def row(
    metric: str, value: float, factor: str = "none", group: str = "", cells: str = "all"
) -> dict[str, object]:
    return {
        "model": "m",
        "dataset": "d",
        "factor": factor,
        "group": group,
        "cells": cells,
        "metric": metric,
        "weight_tokens": 0.25 if metric == FITTED else None,
        "weight_positions": 0.0 if metric == FITTED else None,
        "weight_future": 0.75 if metric == FITTED else None,
        "correlation": value,
        "low": value - 0.02,
        "high": value + 0.02,
        "n_dialogues": 12,
        "n_turns": 40,
    }


def validation(rows: list[dict[str, object]]) -> pl.DataFrame:
    return pl.DataFrame(rows, table_schema("predictor_validation"))


NONE = pl.DataFrame(schema=table_schema("penalties"))
POLICIES = pl.DataFrame(schema=table_schema("policies"))


def test_numbers_next_to_the_strongest_simpler_measure_and_the_goals() -> None:
    table = validation(
        [
            row(FITTED, 0.95),
            row("disruption_positions", 0.9),
            row("future_share", 0.84),
            row("signed_offset_error", -0.88),
            row(FITTED, 0.7, "mode", "stale", "only"),
            row("collisions", 0.3, "mode", "stale", "only"),
            row("order_inversions", 0.99, "mode", "stale", "only") | {"n_dialogues": 1},
            row(FITTED, 0.9, "policy", "h2o", "only"),
            row(FITTED, 0.9, "policy", "h2o", "without"),
        ]
    )
    penalty = {
        "model": "m",
        "dataset": "d",
        "policy": "pen",
        "threshold": "half",
        "against": "zero",
        "weight": 1.0,
        "mean": -0.4,
        "low": -0.5,
        "high": -0.3,
        "n_dialogues": 12,
        "n_turns": 40,
        "p": 0.01,
        "p_holm": 0.02,
    }
    rows = [penalty | {"positions": mode} for mode in ("rerotated", "stale")]
    [answer] = disruption_answers(table, pl.DataFrame(rows, table_schema("penalties")), POLICIES)
    first, second, third = answer["sentences"]
    assert "(tokens 0.25, positions 0.00, future 0.75, fitted" in first
    assert "+0.95 [+0.93, +0.97]" in first and "at least the goal of 0.9" in first
    assert first.endswith("simpler measure there: signed offset error −0.88 [−0.90, −0.86].")
    assert "in 2 groups left out (by policy, mode) is +0.70" in second
    assert "of the mode stale, below the goal of 0.8" in second
    assert "collisions +0.30" in second and "by trigger, model: not tested here." in second
    assert third.index("under stale") < third.index("under rerotated")
    assert "−0.40 [−0.50, −0.30] under stale (weight 1.00, at half)" in third
    splits = {(one["factor"], one["group"], one["cells"]): one for one in answer["splits"]}
    assert splits["none", "", "all"]["values"][SHOWN.index("future_share")] == 0.84
    assert splits["mode", "stale", "only"]["values"][SHOWN.index("future_share")] is None


def test_what_was_not_tested_is_said() -> None:
    [answer] = disruption_answers(validation([row("future_share", 0.5)]), NONE, POLICIES)
    assert all("not tested here" in sentence for sentence in answer["sentences"])
    assert disruption_answers(validation([]), NONE, POLICIES) == []


def test_a_penalty_without_a_measured_disruption_is_said() -> None:
    empty = dict.fromkeys(table_schema("penalties"))
    about = {"model": "m", "dataset": "d", "policy": "pen", "threshold": "half", "weight": 4.0}
    found = {"positions": "stale", "mean": -0.4, "low": -0.5, "high": -0.3, "n_dialogues": 12}
    penalties = pl.DataFrame([empty | about | found], table_schema("penalties"))
    [answer] = disruption_answers(validation([]), penalties, POLICIES)
    first, second, third = answer["sentences"]
    assert first.endswith("not tested here: no run measured it.")
    assert second.endswith("not tested here.")
    assert "−0.40 [−0.50, −0.30] under stale (weight 4.00, at half)" in third
    assert answer["splits"] == []


def test_doses_stand_next_to_the_modes_of_their_policy() -> None:
    cell = dict.fromkeys(table_schema("policies")) | {"model": "m", "dataset": "d"}
    names = (("a", "shifted+64"), ("a", "stale"), ("a", "shifted-8"), ("b", "stale"))
    rows = [
        cell | {"threshold": "half", "policy": policy, "positions": mode} for policy, mode in names
    ]
    policies = pl.DataFrame(rows, table_schema("policies"))
    [answer] = disruption_answers(validation([row(FITTED, 0.5)]), NONE, policies)
    assert [(one["policy"], one["positions"]) for one in answer["doses"]] == [
        *(("a", "stale"), ("a", "shifted-8"), ("a", "shifted+64")),
    ]


def test_the_section_shows_sentences_measures_and_doses_or_that_nothing_was_tested() -> None:
    around = (
        "{% macro region(label) %}{{ caller() }}{% endmacro %}{% macro csv(name) %}{% endmacro %}"
        "{% set thresholds = 2 %}{% include 'disruption.html.j2' %}"
    )
    template = page_environment().from_string(around)
    cell = dict.fromkeys(table_schema("policies")) | {"model": "m", "dataset": "d", "mean": 1.25}
    doses = [cell | {"threshold": "half", "policy": "a", "positions": "shifted-8"}]
    rows = [row(FITTED, 0.95), row("future_share", 0.84, "mode", "stale", "without")]
    answers = disruption_answers(
        validation(rows), NONE, pl.DataFrame(doses, table_schema("policies"))
    )
    page = template.render(disruption=answers, disruption_measures=SHOWN)
    for shown in ("+0.95", "mode: stale", "+0.84", "shifted-8", "+1.25", "a at half"):
        assert shown in page
    assert "is not tested here" in template.render(disruption=[], disruption_measures=SHOWN)
