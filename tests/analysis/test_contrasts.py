"""Contrasts and causes of losses, on planted effects and on data without any."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from kvfidelity.analysis.attribution import MOST, attribution
from kvfidelity.analysis.claims import read_claims
from kvfidelity.analysis.contrasts import contrasts
from kvfidelity.analysis.tables import build_tables
from kvfidelity.atomic_files import write_json
from tests.analysis.synthetic import settings, write

ROOT = Path(__file__).parents[2]
OPTIONS: dict[str, Any] = {"confidence": 0.95, "resamples": 400, "seed": 0}
POLICIES = {"a": {"kind": "h2o"}, "top": {"kind": "attention_top"}, "z": {"kind": "streaming_llm"}}
MODES = ("stale", "original", "rerotated")
#: Loss with stale and with corrected positions, and the cause that it has.
PLANTED = {
    "positions": (2.0, 0.05),
    "tokens": (1.5, 1.45),
    "both": (2.0, 1.0),
    "none": (0.0, 0.0),
}


def scored(
    losses: dict[tuple[str, str], float], dialogues: int, seed: int = 0, noise: float = 0.1
) -> pl.DataFrame:
    """Turns of cells, (policy, positions) -> mean loss; a dialogue and a turn add their own."""
    rng = np.random.default_rng(seed)
    rows = []
    for (policy, mode), loss in losses.items():
        levels = rng.normal(0, noise, dialogues)
        for dialogue, turn in itertools.product(range(dialogues), range(4)):
            rows.append(
                {
                    "model": "m",
                    "dataset": "d",
                    "threshold": "t",
                    "policy": policy,
                    "positions": mode,
                    "dialogue": f"{dialogue:03d}",
                    "seed": 0,
                    "turn": turn,
                    "target_tokens": 100,
                    "reference_tokens": int(rng.integers(50, 300)),
                    "excess_nll": loss + levels[dialogue] + float(rng.normal(0, noise)),
                    "kept_spans": 5.0,
                }
            )
    return pl.DataFrame(rows)


def test_families_are_small_and_no_contrast_follows_from_others() -> None:
    table = contrasts(
        scored(dict.fromkeys(itertools.product(POLICIES, MODES), 0.0), 12), POLICIES, OPTIONS
    )
    found = table.group_by("family", maintain_order=True).agg(
        "policy", "positions", "first", "second"
    )
    by_family = {row["family"]: row for row in found.to_dicts()}
    assert set(by_family) == {
        "positions",
        "correction",
        "policies, stale",
        "policies, rerotated",
    }
    assert by_family["positions"]["first"] == ["stale"] * 3
    assert by_family["positions"]["second"] == ["rerotated"] * 3
    assert sorted(by_family["positions"]["policy"]) == ["a", "top", "z"]
    for mode in ("stale", "rerotated"):
        family = by_family[f"policies, {mode}"]
        assert (family["first"], family["second"]) == (["a", "z"], ["top", "top"])
        assert family["positions"] == [mode, mode]


def test_without_rerotated_runs_original_is_the_corrected_mode() -> None:
    cells = dict.fromkeys(itertools.product(POLICIES, ("stale", "original")), 0.0)
    table = contrasts(scored(cells, 12), POLICIES, OPTIONS)
    assert set(table["family"]) == {"positions", "policies, stale", "policies, original"}
    assert set(table.filter(family="positions")["second"]) == {"original"}


def test_planted_differences_are_found_and_p_is_of_a_family() -> None:
    cells = dict.fromkeys(itertools.product(POLICIES, MODES), 0.1) | {("z", "stale"): 3.1}
    table = contrasts(scored(cells, 12), POLICIES, OPTIONS)
    row = table.filter(family="positions", policy="z").row(0, named=True)
    assert row["mean"] == pytest.approx(3, abs=0.1)
    assert row["low"] > 2.8 and row["p"] < 0.01
    assert row["p_holm"] == pytest.approx(min(1, 3 * row["p"]))
    rest = table.filter(pl.col("mean") < 1)
    assert (rest["p_holm"] > 0.01).all()


def test_with_few_dialogues_there_is_no_p() -> None:
    cells = dict.fromkeys(itertools.product(POLICIES, MODES), 0.0)
    table = contrasts(scored(cells, 9), POLICIES, OPTIONS)
    assert table["p"].null_count() == table["p_holm"].null_count() == table.height
    assert table["low"].null_count() == 0


def test_turns_that_one_side_lacks_are_counted() -> None:
    rows = scored(dict.fromkeys(itertools.product(POLICIES, MODES), 0.0), 12)
    lacking = (pl.col("policy") == "a") & (pl.col("positions") == "stale") & (pl.col("turn") > 1)
    table = contrasts(rows.filter(~(lacking & (pl.col("dialogue") < "003"))), POLICIES, OPTIONS)
    row = table.filter(family="positions", policy="a").row(0, named=True)
    assert (row["n_unpaired"], row["n_turns"]) == (6, 42)
    assert table.filter(family="positions", policy="z")["n_unpaired"].item() == 0


def test_null_contrasts_are_significant_at_their_rate() -> None:
    """600 differences of policies that are alike, 14 dialogues: 3 to 7% have p below 0.05."""
    small, total = 0, 0
    for seed in range(100):
        cells = dict.fromkeys(itertools.product(POLICIES, ("stale", "rerotated")), 0.5)
        table = contrasts(scored(cells, 14, seed), POLICIES, OPTIONS)
        small += table.filter(pl.col("p") < 0.05).height
        total += table.height
    assert total == 700
    assert 0.03 <= small / total <= 0.07


@pytest.mark.parametrize("cause", PLANTED)
def test_planted_losses_have_their_causes(cause: str) -> None:
    stale, rest = PLANTED[cause]
    rows = scored({("z", "stale"): stale, ("z", "rerotated"): rest}, 24, noise=0.03)
    [row] = attribution(rows, frozenset(), OPTIONS).to_dicts()
    assert row["cause"] == cause, row["reason"]
    assert row["difference"] == pytest.approx(stale - rest, abs=0.06)


def test_a_cause_is_named_by_one_cutoff_that_the_claims_share() -> None:
    claims = {one.claim: one for one in read_claims(ROOT / "config/claims.yaml")}
    assert {claims["P1"].margin, claims["P2"].margin} == {MOST}
    most = scored({("z", "stale"): 2.0, ("z", "rerotated"): 2.0 * (0.97 - MOST)}, 24, noise=0.03)
    less = scored({("z", "stale"): 2.0, ("z", "rerotated"): 2.0 * (1.05 - MOST)}, 24, noise=0.03)
    assert attribution(most, frozenset(), OPTIONS)["cause"].item() == "positions"
    assert attribution(less, frozenset(), OPTIONS)["cause"].item() == "both"


def test_turns_of_one_position_mode_alone_are_counted_in_causes() -> None:
    rows = scored({("z", "stale"): 2.0, ("z", "rerotated"): 0.0}, 12)
    stale = (pl.col("positions") == "stale") & (pl.col("turn") > 1) & (pl.col("dialogue") < "003")
    other = (pl.col("positions") == "rerotated") & (pl.col("turn") == 0)
    kept = rows.filter(~stale & ~(other & (pl.col("dialogue") == "005")))
    [row] = attribution(kept, frozenset(), OPTIONS).to_dicts()
    assert (row["n_unpaired"], row["n_turns"]) == (7, 41)


@pytest.mark.parametrize(
    ("dialogues", "cause"), [(6, "undecided"), (9, "undecided"), (10, "positions")]
)
def test_a_cause_takes_as_many_dialogues_as_a_claim(dialogues: int, cause: str) -> None:
    rows = scored({("z", "stale"): 2.0, ("z", "rerotated"): 0.0}, dialogues)
    assert attribution(rows, frozenset(), OPTIONS)["cause"].item() == cause


def test_that_nothing_is_lost_takes_twenty() -> None:
    cells = {("z", "stale"): 0.0, ("z", "rerotated"): 0.0}
    [few] = attribution(scored(cells, 19, noise=0.02), frozenset(), OPTIONS).to_dicts()
    assert few["cause"] == "undecided" and "takes 20 dialogues" in few["reason"]
    [enough] = attribution(scored(cells, 20, noise=0.02), frozenset(), OPTIONS).to_dicts()
    assert enough["cause"] == "none"


def test_equal_losses_with_both_positions_leave_only_the_loss_open() -> None:
    """A kept beginning is the same under stale and rerotated: positions cost nothing, however few
    the dialogues; whether the policy loses anything is another question."""
    rows = scored({("z", "stale"): 0.1}, 10, noise=0.3)
    same = rows.with_columns(positions=pl.lit("rerotated"), excess_nll=pl.col("excess_nll") + 1e-7)
    [row] = attribution(pl.concat([rows, same]), frozenset(), OPTIONS).to_dicts()
    assert (row["cause"], row["positions_cost"], row["loses"]) == ("undecided", "no", "open")


def test_what_is_sure_is_said_of_the_loss_and_of_positions() -> None:
    [row] = attribution(
        scored({("z", "stale"): 2.0, ("z", "rerotated"): 0.0}, 12), frozenset(), OPTIONS
    ).to_dicts()
    assert (row["positions_cost"], row["loses"]) == ("yes", "yes")


def test_a_share_near_its_bound_is_not_decided() -> None:
    """Positions cost 83% of the loss, with an interval on both sides of 80%."""
    cells = {("z", "stale"): 2.0, ("z", "rerotated"): 0.34}
    [row] = attribution(scored(cells, 12, noise=0.8), frozenset(), OPTIONS).to_dicts()
    assert row["cause"] not in ("positions", "tokens")


@pytest.mark.parametrize(("vocabulary", "silent"), [(8, True), (5000, False), (None, False)])
def test_a_model_that_knows_nothing_is_called_out(
    tmp_path: Path, vocabulary: int | None, silent: bool
) -> None:
    """The synthetic baseline takes 2 nats a token, and guessing among eight tokens 2.08."""
    chosen = settings(12)
    write(tmp_path, chosen, {("attention_top", "stale"): 2.0})
    if vocabulary:
        folder = tmp_path / "dialogues/synthetic/made/tokenizer"
        write_json(folder / "config.json", {"vocab_size": vocabulary})
    tables = build_tables(chosen, tmp_path)
    [row] = tables["baselines"].to_dicts()
    assert row["knows_nothing"] == silent
    assert row["mean"] == pytest.approx(2, abs=0.1)
    causes = dict(zip(tables["attribution"]["policy"], tables["attribution"]["cause"], strict=True))
    assert causes["attention_top"] == ("undecided" if silent else "positions")
