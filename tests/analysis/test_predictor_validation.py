"""Measures are validated on cells that were not looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from kvfidelity.analysis.penalties import penalties
from kvfidelity.analysis.predictor_validation import (
    FITTED,
    WEIGHTS,
    fitted_weights,
    predictor_validation,
)
from kvfidelity.records.columns import DISRUPTION, INTEGRITY

OPTIONS = {"confidence": 0.95, "resamples": 200, "seed": 0}
POLICIES, MODES, TRIGGERS = (
    ("a", "b", "c", "d"),
    ("stale", "original", "shifted+8"),
    ("turn", "step"),
)


def turns(
    loss: Any, models: tuple[str, ...] = ("m",), dialogues: int = 10, seed: int = 0
) -> pl.DataFrame:
    """Cells of a cross; `loss` takes tokens and positions and gives the excess."""
    rng, rows = np.random.default_rng(seed), []
    for model in models:
        for dialogue in range(dialogues):
            for turn in range(2):
                level = rng.normal(0, 20)
                for policy in POLICIES:
                    for positions in MODES:
                        for trigger in TRIGGERS:
                            tokens, moved = rng.uniform(0, 1, 2)
                            rows.append(
                                dict.fromkeys(INTEGRITY, 0.0)
                                | {
                                    "model": model,
                                    "dataset": "d",
                                    "dialogue": f"{dialogue:03d}",
                                    "seed": 0,
                                    "turn": turn,
                                    "policy": policy,
                                    "kind": "snapkv",
                                    "parameters": "{}",
                                    "positions": positions,
                                    "trigger": trigger,
                                    "after_eviction": True,
                                    "inside_window": True,
                                    "disruption_tokens": tokens,
                                    "disruption_positions": moved,
                                    "future_attention_share": rng.uniform(0, 1),
                                    "excess_nll": level + loss(tokens, moved, policy, model),
                                }
                            )
    return pl.DataFrame(rows)


def test_the_twin_of_a_policy_does_not_stay_when_it_is_left_out() -> None:
    """A penalty of weight 0 keeps what the policy inside keeps; of another weight it is its own."""
    known = turns(lambda tokens, moved, *_: tokens + 3 * moved)
    penalised = (
        known.filter(policy="a").with_columns(
            policy=pl.lit(f"penalty_{weight}"),
            kind=pl.lit("disruption_penalty"),
            parameters=pl.lit(f'{{"weight": {weight}}}'),
        )
        for weight in (0, 4)
    )
    found = predictor_validation(pl.concat([known, *penalised]), OPTIONS)
    groups = set(found.filter(factor="policy")["group"])
    assert groups == {*POLICIES, "penalty_4"}


def test_a_law_that_holds_everywhere_is_found_in_every_group_left_out() -> None:
    found = predictor_validation(turns(lambda tokens, moved, *_: tokens + 3 * moved), OPTIONS)
    fitted = found.filter(metric=FITTED)
    assert fitted["correlation"].min() > 0.98
    groups = set(fitted.filter(cells="only").select("factor", "group").rows())
    assert groups == {
        *(("policy", name) for name in POLICIES),
        *(("mode", name) for name in ("stale", "original", "shifted")),
        *(("trigger", name) for name in TRIGGERS),
    }
    whole = found.filter(factor="none")
    assert whole["metric"].to_list()[:2] == [FITTED, "disruption_positions"]
    first, second, *_ = whole.to_dicts()
    assert first["weight_positions"] / first["weight_tokens"] == pytest.approx(4)
    assert first["weight_future"] < 0.1
    assert second["weight_tokens"] is None
    assert set(whole["metric"]) == {FITTED, *DISRUPTION}, "constant measures order nothing"


def test_the_weight_of_a_group_comes_from_the_others() -> None:
    """In policy d tokens cost and positions help nothing; in all others it is the reverse."""

    def loss(tokens: float, moved: float, policy: str, _: str) -> float:
        return tokens if policy == "d" else moved

    found = predictor_validation(turns(loss), OPTIONS).filter(factor="policy", metric=FITTED)
    alone = {row["group"]: row for row in found.filter(cells="only").to_dicts()}
    assert alone["d"]["weight_positions"] > 0.85 and abs(alone["d"]["correlation"]) < 0.4
    without = {row["group"]: row for row in found.filter(cells="without").to_dicts()}
    assert without["d"]["weight_positions"] > 0.85 and without["d"]["correlation"] > 0.98


def test_a_model_is_predicted_with_the_weight_of_the_others() -> None:
    def loss(tokens: float, moved: float, _: str, model: str) -> float:
        return tokens if model == "m" else moved

    found = predictor_validation(turns(loss, ("m", "n")), OPTIONS).filter(factor="model")
    rows = {(row["model"], row["group"]): row for row in found.filter(metric=FITTED).to_dicts()}
    assert set(rows) == {("m", "m"), ("n", "n")}
    assert rows["m", "m"]["weight_positions"] > 0.85 < rows["n", "n"]["weight_tokens"]
    assert all(abs(row["correlation"]) < 0.4 for row in rows.values())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_within_one_turn_the_correlation_is_that_of_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = turns(lambda tokens, moved, *_: moved + rng.normal(0, 0.5), dialogues=1, seed=seed)
    one = rows.filter(turn=0)
    found = predictor_validation(one, OPTIONS).filter(factor="none", metric="disruption_positions")
    expected = stats.spearmanr(one["disruption_positions"], one["excess_nll"]).statistic
    assert found["correlation"].item() == pytest.approx(expected, abs=1e-9)
    assert found["n_dialogues"].item() == 1 and found["low"].item() is None


def test_nothing_is_validated_where_nothing_was_measured() -> None:
    rows = turns(lambda tokens, moved, *_: moved, dialogues=1)
    without = rows.with_columns(disruption_positions=pl.lit(None, pl.Float64))
    assert predictor_validation(without, OPTIONS).is_empty()
    assert fitted_weights(without) in (None, *WEIGHTS)


def test_a_penalty_is_compared_with_the_same_policy_without_it() -> None:
    rows = []
    parameters = '{{"policy": {{"kind": "{}"}}, "weight": {}}}'
    for dialogue in range(12):
        for name, inner, weight, loss in (
            ("zero", "h2o", 0.0, 2.0),
            ("one", "h2o", 1.0, 1.5 + 0.01 * dialogue),
            ("other", "keydiff", 1.0, 0.0),
        ):
            rows.append(
                {
                    "model": "m",
                    "dataset": "d",
                    "threshold": "half",
                    "positions": "stale",
                    "policy": name,
                    "kind": "disruption_penalty",
                    "parameters": parameters.format(inner, weight),
                    "dialogue": f"{dialogue:03d}",
                    "seed": 0,
                    "turn": 1,
                    "after_eviction": True,
                    "inside_window": True,
                    "excess_nll": loss,
                    "reference_tokens": 10,
                }
            )
    [row] = penalties(pl.DataFrame(rows), OPTIONS).to_dicts()
    assert (row["policy"], row["against"], row["weight"]) == ("one", "zero", 1.0)
    assert row["mean"] == pytest.approx(-0.445) and row["high"] < 0
    assert row["n_dialogues"] == 12
    assert penalties(pl.DataFrame(rows).filter(policy="one"), OPTIONS).is_empty()
