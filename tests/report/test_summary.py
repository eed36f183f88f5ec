"""The first screen says what the tables say, and what the claims say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from kvfidelity.analysis.claims import evaluate_claims, read_claims
from kvfidelity.analysis.tables import build_tables
from kvfidelity.report.summary import (
    budgets_run,
    causes,
    nearest,
    ranked_groups,
    without_partner,
)
from tests.analysis.synthetic import settings, write

ROOT = Path(__file__).parents[2]
OPTIONS: dict[str, Any] = {"confidence": 0.95, "resamples": 200, "seed": 0}
#: Loss of streaming_llm with stale and with rerotated positions.
LOSSES = {
    "positions": (2.0, 0.05),
    "tokens": (2.0, 1.95),
    "both": (2.0, 1.0),
    "small": (0.0, 0.0),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_headline_and_claims_do_not_contradict_each_other(loss: str, tmp_path: Path) -> None:
    stale, rest = LOSSES[loss]
    policies = {"baseline": {"kind": "baseline"}, "streaming_llm": {"kind": "streaming_llm"}}
    chosen = settings(24, policies=policies, grid={"positions": ["stale", "rerotated"]})
    effects = {("streaming_llm", "stale"): stale, ("streaming_llm", "rerotated"): rest}
    write(tmp_path, chosen, effects, turns=8, noise=0.05)
    tables = build_tables(chosen, tmp_path)
    tables["claims"] = evaluate_claims(read_claims(ROOT / "config/claims.yaml"), tables, OPTIONS)
    [headline] = [name for name, rows in causes(tables["attribution"]).items() if rows]
    decisions = dict(tables["claims"].select("claim", "decision").rows())
    if decisions["P2"] == "supported":
        assert headline in ("positions", "no difference", "open", "none")
    if headline == "positions":
        assert decisions["P2"] == "supported"
    if headline in ("tokens", "both"):
        assert decisions["P2"] != "supported"
    expected = {"positions": "positions", "tokens": "tokens", "both": "both"}
    assert headline == expected.get(loss, headline)


@pytest.mark.parametrize(
    ("budgets", "slots", "expected"),
    [
        ([320], 512, [320]),
        ([320, 640, 1280], 512, [320, 640]),
        ([640, 1280], 512, [640]),
        ([128, 320], 512, [320]),
        ([256, 512], 512, [512]),
        ([], 512, []),
    ],
)
def test_the_nearest_budgets_are_on_both_sides(
    budgets: list[int], slots: int, expected: list[int]
) -> None:
    assert nearest(budgets, slots) == expected


def group(dataset: str, budget: int | None) -> dict[str, Any]:
    named = {"model": "m", "dataset": dataset, "budget_tokens": budget}
    return named | {"equal": budget is not None}


def test_budgets_are_those_of_each_model_and_dataset() -> None:
    """The example of another number is one that was not run."""
    groups = [group("a", 640), group("b", 512), group("a", 320), group("a", None), group("c", None)]
    found = {row["dataset"]: row for row in budgets_run(groups)}
    assert found["a"]["budgets"] == [320, 640] and found["a"]["nearest"] == [320, 640]
    assert found["a"]["other"] == 512
    assert found["b"]["budgets"] == [512] and found["b"]["other"] == 1024
    assert found["c"]["budgets"] == [] and found["c"]["nearest"] == []


def row(cause: str, loses: str, positions_cost: str) -> dict[str, str]:
    return {"policy": "p", "cause": cause, "loses": loses, "positions_cost": positions_cost}


def test_what_is_undecided_says_what_is_open() -> None:
    rows = [
        row("undecided", "open", "no"),
        row("undecided", "yes", "open"),
        row("undecided", "open", "open"),
        row("none", "no", "no"),
    ]
    found = {name: len(part) for name, part in causes(pl.DataFrame(rows)).items() if part}
    assert found == {"no difference": 1, "parts": 1, "open": 1, "none": 1}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pl.DataFrame]:
    folder = tmp_path_factory.mktemp("summary")
    exclude = [{"policy": "gist", "positions": "rerotated"}]
    exclude += [{"policy": "streaming_llm", "positions": "stale"}]
    grid = {"positions": ["stale", "rerotated"], "exclude": exclude}
    chosen = settings(10, grid=grid)
    write(folder, chosen, {("attention_top", "stale"): 2.0}, turns=8, probes=2)
    return build_tables(chosen, folder)


def test_a_cell_without_a_partner_is_named(tables: dict[str, pl.DataFrame]) -> None:
    alone = without_partner(tables["policies"], tables["attribution"])
    found = [(one["policy"], one["positions"]) for one in alone]
    assert found == [("gist", "stale"), ("streaming_llm", "rerotated")]
    assert all(one["mean"] is not None for one in alone)


def test_every_cell_is_ranked_with_what_it_forgets(tables: dict[str, pl.DataFrame]) -> None:
    [group] = ranked_groups(tables["ranking"], tables["recall_by_depth"])
    assert group["equal"] and group["rows"][0]["rank"] == 1
    assert len(group["rows"]) == tables["policies"].height
    assert all(one["asked"] for one in group["rows"])
    worst = group["rows"][-1]
    assert (worst["policy"], worst["positions"]) == ("attention_top", "stale")
    assert worst not in group["unsure"]


def test_an_order_is_unsure_where_intervals_overlap() -> None:
    base = {"model": "m", "dataset": "d", "threshold": "t", "positions": "stale", "n_turns": 9}
    base |= {"budget_tokens": 9, "n_dialogues": 10}
    ranking = pl.DataFrame(
        [
            base | {"policy": "a", "rank": 1, "mean": 0.1, "low": 0.0, "high": 0.2},
            base | {"policy": "b", "rank": 2, "mean": 0.25, "low": 0.15, "high": 0.3},
            base | {"policy": "c", "rank": 3, "mean": 0.9, "low": 0.8, "high": 1.0},
        ]
    )
    recall = pl.DataFrame(schema={"kind": pl.String, **dict.fromkeys(KEYS, pl.String)})
    [group] = ranked_groups(ranking, recall)
    assert [one["policy"] for one in group["unsure"]] == ["b"]
    assert not any(one["asked"] for one in group["rows"])


KEYS = ("model", "dataset", "origin", "threshold", "policy", "positions", "depth")
