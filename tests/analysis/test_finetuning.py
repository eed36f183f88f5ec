"""The table of arms and the claims on them, on made-up runs of known effects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from kvfidelity.analysis.claims import evaluate_claims, read_claims
from kvfidelity.analysis.columns import TABLES, table_schema
from kvfidelity.analysis.finetuning import averaged_over_seeds, finetuning, with_arms
from kvfidelity.report.open_questions import open_questions
from tests.analysis.empty import empty_tables

ROOT = Path(__file__).parents[2]
OPTIONS = {"confidence": 0.95, "resamples": 200, "seed": 0}
DIALOGUES, SEEDS = 24, 3
#: Nats that a token costs beyond the base with its full cache, by arm and positions.
COSTS = {
    ("none", "stale"): 5.0,
    ("none", "rerotated"): 0.2,
    ("control", "stale"): 4.8,
    ("control", "rerotated"): 0.2,
    ("stale", "stale"): 0.5,
    ("stale", "rerotated"): 0.4,
    ("rerotated", "stale"): 4.0,
    ("rerotated", "rerotated"): 0.1,
    # By cross-entropy the control learns too: replies of this kind.
    ("control_cross_entropy", "stale"): 4.0,
    ("control_cross_entropy", "rerotated"): -0.3,
    ("stale_cross_entropy", "stale"): 1.0,
    ("stale_cross_entropy", "rerotated"): -0.1,
}
#: The same with nothing evicted.
TAXES = {
    "none": 0.0,
    "control": 0.01,
    "stale": 0.05,
    "rerotated": 0.02,
    "control_cross_entropy": -0.3,
    "stale_cross_entropy": -0.2,
}
MODELS: dict[str, dict[str, Any]] = {"base": {}} | {
    f"{arm}-{seed}": {"adapter": {"base": "base", "arm": arm, "seed": seed}}
    for arm in TAXES
    if arm != "none"
    for seed in range(SEEDS)
}


def turns() -> pl.DataFrame:
    rows = []
    for model, entry in MODELS.items():
        arm = entry.get("adapter", {}).get("arm", "none")
        seed = entry.get("adapter", {}).get("seed", 0)
        for positions in ("baseline", "stale", "rerotated"):
            baseline = positions == "baseline"
            cost = TAXES[arm] if baseline else COSTS[arm, positions]
            for number in range(DIALOGUES):
                level = float(np.random.default_rng(number).normal(2, 0.3))
                rng = np.random.default_rng([number, *f"{model} {positions}".encode()])
                # Trainings of an arm differ by more than its effects; their mean does not.
                own = 0.0 if arm == "none" else 0.3 * (seed - 1)
                nll = level + cost + own + float(rng.normal(0, 0.02))
                policy = "baseline" if baseline else "attention_top_99"
                row = dict.fromkeys(table_schema("turns"))
                row |= {
                    "run": f"{model}/{policy}/{positions}/{number}",
                    "model": model,
                    "dataset": "d",
                    "policy": policy,
                    "kind": "baseline" if baseline else "attention_top",
                    "parameters": "{}" if baseline else '{"keep_ratio": 0.99}',
                    "positions": "rerotated" if baseline else positions,
                    "threshold": "none" if baseline else "paper",
                    "trigger": "paper",
                    "threshold_tokens": None if baseline else 5600,
                    "replies": "reference",
                    "dialogue": f"{number:03}",
                    "seed": 0,
                    "turn": 1,
                    "reference_tokens": 50,
                    "reference_nll": nll,
                    "after_eviction": not baseline,
                    "inside_window": True,
                    "rep_3": 0.1 + cost / 50,
                }
                rows.append(row)
    kinds = {k: v for k, v in table_schema("turns").items() if k not in ARM_COLUMNS}
    frame = pl.DataFrame(rows, kinds | {"rep_3": pl.Float64}, strict=False)
    return with_arms(frame.select(list(kinds)), MODELS)


ARM_COLUMNS = ("base_model", "arm", "training_seed")


def questions() -> pl.DataFrame:
    frame = turns().with_columns(
        probe=pl.lit(0, pl.Int32),
        depth=pl.lit("middle"),
        margin=1 - pl.col("reference_nll") / 10,
    )
    names = ("model", "dataset", "policy", "positions", "threshold", "dialogue", "seed", "turn")
    return frame.select(*names, "probe", "depth", "margin")


def row(table: pl.DataFrame, **where: Any) -> dict[str, Any]:
    return table.filter(**where).row(0, named=True)


def test_arms_are_compared_with_what_was_put_in() -> None:
    table = finetuning(turns(), questions(), OPTIONS)
    assert table.columns == [column.name for column in TABLES["finetuning"]]
    cell = {"policy": "attention_top_99", "measure": "reference_nll"}
    own = cell | {"arm": "stale", "positions": "stale"}
    found = {
        (against, positions): row(table, **own, against=against, against_positions=positions)
        for against, positions in (("none", "stale"), ("control", "stale"), ("none", "rerotated"))
    }
    for (against, positions), one in found.items():
        expected = COSTS["stale", "stale"] - COSTS[against, positions]
        assert one["difference"] == pytest.approx(expected, abs=0.02)
        assert one["low"] < expected + 0.02 and one["high"] > expected - 0.02
        assert one["high"] - one["low"] < 0.05, "trainings are averaged within a dialogue"
        assert (one["n_dialogues"], one["n_seeds"]) == (DIALOGUES, SEEDS)
    tax = row(table, policy="baseline", measure="reference_nll", arm="stale", against="none")
    assert tax["difference"] == pytest.approx(0.05, abs=0.02)
    asked = row(table, measure="margin_middle", arm="stale", positions="stale", against="none")
    assert asked["difference"] == pytest.approx(0.45, abs=0.01)


def test_an_arm_is_compared_with_the_control_of_its_loss() -> None:
    table = finetuning(turns(), questions(), OPTIONS)
    pairs = set(table.select("arm", "against").unique().rows())
    names = {"control", "control_cross_entropy"}
    assert {(arm, other) for arm, other in pairs if other in names} == {
        ("stale", "control"),
        ("rerotated", "control"),
        ("stale_cross_entropy", "control_cross_entropy"),
    }


def test_an_untrained_grid_has_no_rows() -> None:
    bare = with_arms(turns().drop(ARM_COLUMNS).filter(model="base"), {"base": {}})
    assert bare["arm"].unique().to_list() == ["none"]
    assert finetuning(bare, questions().filter(model="base"), OPTIONS).is_empty()


def test_a_dialogue_counts_once_whatever_the_number_of_trainings() -> None:
    rows = averaged_over_seeds(turns().with_columns(probe=pl.lit(-1, pl.Int32)))
    assert rows.group_by("arm", "policy", "positions").len()["len"].unique().to_list() == [
        DIALOGUES
    ]
    assert set(rows["model"]) == {"base"}


def claims() -> dict[str, dict[str, Any]]:
    tables = empty_tables() | {"turns": turns()}
    chosen = [one for one in read_claims(ROOT / "config/claims.yaml") if one.claim[:2] == "FT"]
    found = evaluate_claims(chosen, tables, OPTIONS).to_dicts()
    assert len(found) == len(chosen) == 4, "one row for the base, not one for each training"
    return {one["claim"]: one for one in found}


def test_the_claims_are_decided_by_what_was_put_in() -> None:
    found = claims()
    assert found["FT1"]["decision"] == "supported"
    assert found["FT1"]["estimate"] == pytest.approx(-4.3, abs=0.02)
    assert found["FT2"]["decision"] == "contradicted", "re-rotating alone is better"
    assert found["FT3"]["decision"] == "supported"
    assert found["FT4"]["decision"] == "supported"
    assert found["FT4"]["estimate"] == pytest.approx(-3.0, abs=0.02), "each loss has its control"
    assert found["FT2"]["against"] == "attention_top_99, rerotated, arm none"
    assert {one["model"] for one in found.values()} == {"base"}


def test_the_page_says_it_in_three_sentences() -> None:
    tables = empty_tables() | {"finetuning": finetuning(turns(), questions(), OPTIONS)}
    [answer] = next(one for one in open_questions(tables) if one["number"] == 2)["answers"]
    assert len(answer["sentences"]) == 3
    against_control, against_rerotated, rerotated = answer["sentences"]
    assert "gives an NLL of 2.48 nats per token, −4.30 [−4.31, −4.29]" in against_control
    assert "24 dialogues and 3 trainings" in against_control
    assert "(cross-entropy) it gives 2.98, −3.00 [−3.01, −2.99] against its" in against_control
    assert "with nothing evicted that training changes the NLL by +0.05" in against_rerotated
    assert "against no training" in rerotated and "gives an NLL of 2.09" in rerotated
