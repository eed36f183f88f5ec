"""Claims on data with known effects find those effects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from kvfidelity.analysis.claims import Claim, evaluate_claims, read_claims
from kvfidelity.analysis.tables import build_tables
from kvfidelity.errors import UserError
from tests.analysis.empty import empty_tables
from tests.analysis.synthetic import settings, write

ROOT = Path(__file__).parents[2]
OPTIONS: dict[str, Any] = {"confidence": 0.95, "resamples": 300, "seed": 0}
EFFECTS = {
    ("attention_top", "stale"): 2.0,
    ("streaming_llm", "stale"): 3.0,
    ("sliding_window_gist", "stale"): 0.4,
    ("sliding_window_gist", "rerotated"): 0.4,
}


def claim(**changes: Any) -> Claim:
    parts: dict[str, Any] = {
        "claim": "X",
        "statement": "a claim",
        "quantity": "excess_nll",
        "of": {"kind": "attention_top", "positions": "stale"},
        "direction": "above",
        "margin": 0.5,
        "min_dialogues": 5,
    }
    return Claim(**parts | changes)


#: As in the default configuration: `paper` leaves its size to the policy.
THRESHOLDS = {
    "paper": {"at": "500tok", "trigger": "paper"},
    "half": {"at": "500tok", "trigger": "turn", "target": "250tok"},
}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pl.DataFrame]:
    results = tmp_path_factory.mktemp("expected")
    chosen = settings(24, thresholds=THRESHOLDS, grid={"positions": ["stale", "rerotated"]})
    write(results, chosen, EFFECTS, edge=0.3, noise=0.1, probes=3)
    return build_tables(chosen, results)


@pytest.fixture(scope="module")
def own_tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pl.DataFrame]:
    """The same losses in the model's own replies; past the window the baseline loses a nat."""
    results = tmp_path_factory.mktemp("own")
    chosen = settings(
        16,
        thresholds={"paper": THRESHOLDS["paper"]},
        grid={"positions": ["stale"]},
        session={"replies": "own"},
        judges={"gpt-4o-grounded": {"kind": "formula", "rubric": "formula"}},
        judging=["gpt-4o-grounded"],
    )
    write(results, chosen, EFFECTS, edge=1.0, noise=0.1)
    return build_tables(chosen, results)


def judged(tables: dict[str, pl.DataFrame], **changes: Any) -> list[dict[str, Any]]:
    rows = evaluate_claims([claim(**changes)], tables, OPTIONS)
    # `of` names no threshold: the cells of `half` are those that most tests are about.
    return rows.filter((pl.col("threshold") != "paper") | pl.col("threshold").is_null()).to_dicts()


def decided(rows: list[dict[str, Any]], *, tested: bool = True) -> dict[str, str]:
    """The decisions of the claims that the grid tests, or of the others."""
    known = [row for row in rows if (row["decision"] != "not tested here") == tested]
    return {row["claim"]: row["decision"] for row in known}


def test_the_projects_claims_on_planted_effects(tables: dict[str, pl.DataFrame]) -> None:
    rows = evaluate_claims(read_claims(ROOT / "config/claims.yaml"), tables, OPTIONS).to_dicts()
    supported = ("C1a", "C1b", "C1c", "C2", "C4a", "P1", "P2", "P4", "P6", "P7")
    expected = dict.fromkeys(supported, "supported")
    # A kept beginning costs 0.4 and the baseline 0.3 past the window; under two position modes the
    # same beginning differs here by its noise.
    assert decided(rows) == expected | {"C4b": "contradicted", "P3": "not decided"}
    by_name = {row["claim"]: row for row in rows}
    assert by_name["C2"]["estimate"] == pytest.approx(2 / 2, abs=0.08)  # the baseline's NLL is 2
    assert by_name["C1a"]["estimate"] == pytest.approx(0.3, abs=0.06)
    assert by_name["C1b"]["estimate"] == pytest.approx(0.3, abs=0.06)
    assert by_name["C1c"]["estimate"] == pytest.approx(0.3, abs=0.06)
    assert by_name["P1"]["estimate"] == pytest.approx(1, abs=0.05)
    assert by_name["C2"]["n_dialogues"] == 24
    assert {row["threshold"] for row in rows if row["claim"] == "P2"} == {"half"}


def test_the_projects_claims_on_planted_effects_in_own_replies(
    own_tables: dict[str, pl.DataFrame],
) -> None:
    rows = evaluate_claims(read_claims(ROOT / "config/claims.yaml"), own_tables, OPTIONS).to_dicts()
    expected = ("C1d", "C1e", "C2-likelihood", "C2-judge", "C2-repetition", "C2-echo", "C2-finish")
    expected += ("C4a-likelihood", "C4a-judge", "C4a-repetition", "C4b-judge")
    assert decided(rows) == dict.fromkeys(expected, "supported")
    others = set(decided(rows, tested=False))
    assert others >= {"C1a", "C2", "C3", "C4a", "P1", "P2", "P6"}
    by_name = {row["claim"]: row for row in rows}
    # Half of the turns are past the window: the baseline is at 1.5 nats, the run at 3.
    assert by_name["C2-likelihood"]["estimate"] == pytest.approx(1, abs=0.05)
    assert "config/config.yaml tests it" in by_name["C2"]["reason"]


@pytest.mark.parametrize(("overshoot", "decision"), [(0.3, "supported"), (0.01, "contradicted")])
def test_prompts_as_long_as_half_of_the_threshold_test_c3(
    own_tables: dict[str, pl.DataFrame], overshoot: float, decision: str
) -> None:
    [c3] = [one for one in read_claims(ROOT / "config/claims.yaml") if one.claim == "C3"]
    own = np.linspace(0.9, 1.1, own_tables["turns"].height)
    turns = own_tables["turns"].with_columns(
        prompt_tokens=pl.lit(260, pl.Int32), turn_overshoot_share=overshoot * pl.Series(own)
    )
    [row] = evaluate_claims([c3], own_tables | {"turns": turns}, OPTIONS).to_dicts()
    assert row["decision"] == decision
    assert (row["policy"], row["n_dialogues"]) == (None, 16)


def test_positions_are_compared_only_on_the_same_kept_tokens(
    tables: dict[str, pl.DataFrame],
) -> None:
    minus = {"kind": "attention_top", "positions": "rerotated"}
    asked = {"minus": minus, "same": ["policy"], "same_kept": True}
    [row] = judged(tables, **asked)
    assert row["n_dialogues"] == 24
    runs = tables["dialogues"]
    differs = (pl.col("positions") == "stale") & (pl.col("dialogue") < "014")
    changed = runs.with_columns(
        keep_sets=pl.when(differs).then(pl.lit("others")).otherwise("keep_sets")
    )
    [row] = judged(tables | {"dialogues": changed}, **asked)
    assert row["n_dialogues"] == 10
    [row] = judged(tables | {"dialogues": runs.with_columns(keep_sets=pl.col("run"))}, **asked)
    assert row["decision"] == "not tested here"


def test_too_few_dialogues_decide_nothing(tables: dict[str, pl.DataFrame]) -> None:
    [row] = judged(tables, min_dialogues=25)
    assert (row["decision"], row["reason"]) == (
        "not decided",
        "24 of the 25 dialogues that it takes",
    )


def test_no_claim_is_decided_by_fewer_than_ten(tables: dict[str, pl.DataFrame]) -> None:
    few = {name: tables[name] for name in ("verdicts", "baselines", "dialogues")}
    for name in ("turns", "recall", "window"):
        few[name] = tables[name].filter(pl.col("dialogue") < "009")
    rows = evaluate_claims(read_claims(ROOT / "config/claims.yaml"), few, OPTIONS)
    assert set(rows["decision"]) == {"not decided", "not tested here"}
    assert rows.filter(decision="not decided", claim="C2").height == 1


def test_what_the_baseline_guesses_is_not_forgotten(tables: dict[str, pl.DataFrame]) -> None:
    """The same losses, but the baseline is right in one of four, as guessing is."""
    of = {"kind": "sliding_window_gist", "positions": "stale", "depth": "middle"}
    asked = {"quantity": "margin_lost", "of": of, "turns": "after_eviction", "margin": 0.1}
    [row] = judged(tables, **asked)
    assert row["decision"] == "supported"
    guessed = (pl.col("probe") + pl.col("dialogue").cast(pl.Int32)) % 4 == 0
    recall = tables["recall"].with_columns(
        recall_lost=guessed.cast(pl.Float64) - pl.col("recalled")
    )
    [row] = judged(tables | {"recall": recall}, **asked)
    assert (row["decision"], row["reason"]) == (
        "not decided",
        "the baseline itself may be guessing",
    )


def test_a_model_that_knows_nothing_decides_nothing(tables: dict[str, pl.DataFrame]) -> None:
    silent = tables["baselines"].with_columns(knows_nothing=pl.lit(True))
    [row] = judged(tables | {"baselines": silent})
    assert row["decision"] == "not decided" and "knows nothing" in row["reason"]


def test_nothing_lost_in_few_dialogues_rules_nothing_out(tables: dict[str, pl.DataFrame]) -> None:
    """All answers of twelve dialogues as before: a share of up to 26% can still be lost."""
    recall = tables["recall"].filter(pl.col("dialogue") < "012").with_columns(recall_lost=0.0)
    of = {"kind": "streaming_llm", "positions": "rerotated", "depth": "recent"}
    asked = {"quantity": "recall_lost", "of": of, "turns": "after_eviction", "margin": 0.1}
    [row] = judged(tables | {"recall": recall}, **asked)
    assert row["decision"] == "not decided"
    assert row["high"] == pytest.approx(1 - 0.025 ** (1 / 12))


def test_an_effect_that_is_none_contradicts(tables: dict[str, pl.DataFrame]) -> None:
    of = {"kind": "attention_top", "positions": "rerotated"}
    [row] = judged(tables, of=of)
    assert row["decision"] == "contradicted"
    [row] = judged(tables, of=of, direction="below", margin=0)
    assert row["decision"] == "not decided"


def test_unequal_budgets_are_shown(tables: dict[str, pl.DataFrame]) -> None:
    turns = tables["turns"].with_columns(
        target_tokens=pl.when(pl.col("policy") == "gist").then(100).otherwise("target_tokens")
    )
    minus = {"kind": "sliding_window_gist", "positions": "stale"}
    [row] = judged(tables | {"turns": turns}, minus=minus)
    assert (row["budget_tokens"], row["against_budget_tokens"]) == (250, 100)


def test_scores_of_a_judge_are_a_quantity(tables: dict[str, pl.DataFrame]) -> None:
    positions = {"minus": {"kind": "attention_top", "positions": "rerotated"}}
    [row] = judged(
        tables, quantity="score.formula", direction="below", margin=1, turns="all", **positions
    )
    assert row["decision"] == "supported"
    assert row["estimate"] == pytest.approx(-4, abs=0.3)


def test_a_claim_about_a_policy_that_was_not_run_is_not_decided(
    tables: dict[str, pl.DataFrame],
) -> None:
    [row] = judged(tables, of={"kind": "h2o"})
    assert row["decision"] == "not tested here"
    assert row["n_dialogues"] == 0


def test_a_correlation_of_what_does_not_vary_is_undefined_and_says_so(
    tables: dict[str, pl.DataFrame],
) -> None:
    [row] = judged(tables, of={}, quantity="sinks_kept", correlated_with="excess_nll")
    assert (row["decision"], row["estimate"], row["n_dialogues"]) == ("not decided", None, 24)
    assert "does not vary" in row["reason"]


def test_an_unknown_quantity_is_an_error(tables: dict[str, pl.DataFrame]) -> None:
    with pytest.raises(UserError, match="no table holds a column 'exces_nll'"):
        judged(tables, quantity="exces_nll")


def test_a_thousand_null_claims_are_wrong_at_their_rate() -> None:
    """A thousand cells without an effect, 20 dialogues of six turns that share a level: those that
    are found above or below 0 are 3 to 7%, as a two-sided 95% interval promises."""
    rng = np.random.default_rng(7)
    cells, dialogues, turns = 1000, 20, 6
    shape = (cells, dialogues, turns)
    loss = rng.normal(0, 1, shape) + rng.normal(0, 1, (cells, dialogues, 1))
    cell, dialogue, turn = (part.ravel() for part in np.indices(shape))
    names = {"model": "m", "dataset": "d", "positions": "stale", "threshold": "t", "run": "r"}
    rows = pl.DataFrame(
        {
            "policy": [f"{number:04d}" for number in cell],
            "dialogue": [f"{number:03d}" for number in dialogue],
            "turn": turn,
            "excess_nll": loss.ravel(),
            "reference_tokens": rng.integers(50, 300, loss.size),
        }
    ).with_columns(
        **{name: pl.lit(value) for name, value in names.items()},
        kind=pl.lit("attention_top"),
        trigger=pl.lit("turn"),
        seed=pl.lit(0),
        target_tokens=pl.lit(100),
        after_eviction=pl.lit(True),
        inside_window=pl.lit(True),
    )
    tables = empty_tables() | {"turns": rows}
    asked = [claim(margin=0), claim(claim="Y", margin=0, direction="below")]
    found = evaluate_claims(asked, tables, OPTIONS)
    assert found.height == 2 * cells
    wrong = found.filter(decision="supported")
    assert 0.03 <= wrong.height / cells <= 0.07
    assert abs(wrong.filter(claim="X").height - wrong.height / 2) < 15


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("C1: {statement: a", "cannot be read as YAML: line 2"),
        ("C1: {statement: a}", "required property"),
        ("C1: {}\nC1: {}", "C1 is given twice, in lines 1 and 2"),
        (
            "C1: {statement: a, quantity: kl_baseline, setting: {replies: own}, of: {}, "
            "direction: up, margin: 0, min_dialogues: 2}",
            "up",
        ),
        (
            "C1: {statement: a, quantity: kl_baseline, setting: {trigger: paper}, of: {}, "
            "direction: above, margin: 0, min_dialogues: 2}",
            "replies",
        ),
        ("{}", "{}"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "claims.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_claims(tmp_path / "claims.yaml")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_claims(tmp_path / "none.yaml")
