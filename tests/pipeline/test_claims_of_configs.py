"""Each claim has data in the configuration that it says tests it, as far as a plan can say that."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from kvfidelity.analysis.claim_rows import WINDOW_CHANGES, conditions, run_settings
from kvfidelity.analysis.claims import Claim, read_claims
from kvfidelity.pipeline.settings import read_settings
from kvfidelity.records.arms import NO_ARM, arm_name
from kvfidelity.records.grid import BASELINE, NO_THRESHOLD, RunKey, run_keys
from kvfidelity.sizes import size_in_tokens

ROOT = Path(__file__).parents[2]
CLAIMS = read_claims(ROOT / "config/claims.yaml")
#: Of the models that these configurations run: bytes of a token in the cache, trained window.
SIZES = {"smollm2-135m": (46_080, 8192), "llama-3-8b-instruct": (131_072, 8192)}


@cache
def settings_of(config: str) -> dict[str, Any]:
    return read_settings([ROOT / config], default=ROOT / "config/config.yaml")


@cache
def planned(config: str) -> pl.DataFrame:
    """One row per run of the plan, with what a claim can ask of a run."""
    settings = settings_of(config)
    rows = []
    for run in run_keys(settings):
        key = RunKey.from_path(run)
        policy = dict(settings["policies"][key.policy])
        adapter = settings["models"][key.model].get("adapter", {})
        arm = arm_name(adapter["arm"], adapter["loss"]) if adapter else NO_ARM
        row = {name: getattr(key, name) for name in ("policy", "positions", "dialogue")}
        row |= {"run": run, "kind": policy.pop("kind"), "parameters": json.dumps(policy)}
        row |= {"replies": settings["session"]["replies"], "trigger": None}
        row |= {"arm": arm}
        row |= {"target_tokens": None, "threshold_tokens": None}
        if key.threshold != NO_THRESHOLD:
            entry = settings["thresholds"][key.threshold]
            token_bytes, window = SIZES[adapter.get("base", key.model)]
            row["trigger"] = entry["trigger"]
            for name, size in (("threshold", "at"), ("target", "target")):
                if size in entry:
                    row[f"{name}_tokens"] = size_in_tokens(
                        entry[size], token_bytes=token_bytes, window=window
                    )
        rows.append(row)
    types = dict.fromkeys(("target_tokens", "threshold_tokens"), pl.Int64)
    runs = pl.DataFrame(rows, schema_overrides=types | {"trigger": pl.String})
    return runs.drop("replies", "trigger").join(run_settings(runs), on="run")


def dialogues_of(config: str, wanted: dict[str, Any]) -> int:
    # These are of a turn or a question, not of a run.
    of_questions = ("prompt_share", "depth", "evicted")
    of_run = {name: value for name, value in wanted.items() if name not in of_questions}
    return planned(config).filter(*conditions(of_run))["dialogue"].n_unique()


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.claim)
def test_the_plan_has_the_runs_of_a_claim(claim: Claim) -> None:
    """Enough dialogues of what is measured and of what is subtracted."""
    assert claim.tested_in is not None
    sides = [claim.rows_of(), *([claim.rows_of_minus()] if claim.minus else [])]
    for wanted in sides:
        assert dialogues_of(claim.tested_in, wanted) >= claim.min_dialogues, wanted


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.claim)
def test_the_configuration_measures_the_quantity(claim: Claim) -> None:
    settings = settings_of(str(claim.tested_in))
    session = settings["session"]
    if claim.quantity.startswith("score."):
        assert claim.quantity.removeprefix("score.") in settings["judging"]
    elif claim.quantity in ("margin_lost", "recall_lost", "overconfidence"):
        [dataset] = {RunKey.from_path(run).dataset for run in planned(str(claim.tested_in))["run"]}
        questions = session["recall"]["needles_per_depth"] * settings["datasets"][dataset]["count"]
        assert questions >= max(1, claim.min_questions)
    elif claim.quantity in ("excess_nll", "reference_nll", "early_excess_nll", *WINDOW_CHANGES):
        assert session["replies"] == "reference"
    else:
        assert session["replies"] == "own" and session["max_new_tokens"] > 0


def test_every_run_of_the_papers_setting_evicts() -> None:
    """However short the own replies are: the prompts alone exceed the largest threshold."""
    settings = settings_of("config/paper.yaml")
    prompts = settings["datasets"]["sharegpt-long"]["select"]["min_prompt_tokens"]
    assert prompts > max(planned("config/paper.yaml")["threshold_tokens"].drop_nulls()) > 5000


def test_a_claim_without_runs_would_be_noticed() -> None:
    assert dialogues_of("config/config.yaml", {"kind": "h2o"}) == 0
    assert dialogues_of("config/config.yaml", {"kind": BASELINE}) == 10
    other = {"kind": "attention_top", "history": "accumulated"}
    assert dialogues_of("config/config.yaml", other) == 0
    assert dialogues_of("config/experiments/paper_small.yaml", other) == 20
