"""A policy that evicted nothing is not taken for one that loses nothing."""

from __future__ import annotations

from typing import Any

import polars as pl

from kvfidelity.analysis.not_evicted import cells_without_evictions

SCHEMA = {
    "model": pl.String,
    "dataset": pl.String,
    "policy": pl.String,
    "kind": pl.String,
    "positions": pl.String,
    "threshold": pl.String,
    "evictions": pl.Int32,
    "slots_peak": pl.Int32,
    "threshold_tokens": pl.Int32,
}


def turns(*rows: tuple[Any, ...]) -> pl.DataFrame:
    """Policy, threshold, evictions, peak and threshold in tokens of one turn each."""
    return pl.DataFrame(
        [
            ("m", "d", policy, "baseline" if policy == "baseline" else "x", "stale", name, *numbers)
            for policy, name, *numbers in rows
        ],
        schema=SCHEMA,
        orient="row",
    )


def test_a_threshold_that_no_dialogue_reaches_is_named_with_both_sizes() -> None:
    found = cells_without_evictions(
        turns(
            ("baseline", "none", 0, 900, None),
            ("a", "large", 0, 500, 1843),
            ("a", "large", 0, 685, 1843),
            ("b", "large", 0, 685, 1843),
            ("a", "small", 1, 685, 600),
            ("b", "small", 0, 685, 600),
            ("b", "small", 2, 700, 600),
        )
    )
    assert found == [
        {
            "model": "m",
            "dataset": "d",
            "threshold": "large",
            "reached": False,
            "policies": ["a", "b"],
            "all_policies": True,
            "longest": 685,
            "threshold_tokens": 1843,
        }
    ]


def test_a_policy_that_did_not_act_although_it_was_asked_is_told_from_that() -> None:
    [found] = cells_without_evictions(
        turns(("a", "small", 0, 685, 600), ("b", "small", 1, 685, 600))
    )
    assert (found["policies"], found["reached"], found["all_policies"]) == (["a"], True, False)


def test_runs_without_memory_say_nothing_of_a_threshold() -> None:
    assert cells_without_evictions(turns(("a", "small", None, None, None))) == []
