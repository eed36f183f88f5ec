"""Which verdicts are missing, and whether that depends on the cell."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest
from scipy import stats

from kvfidelity.analysis.columns import table_schema
from kvfidelity.analysis.verdicts import missing_by_cell, missing_verdicts, verdict_means

OPTIONS: dict[str, Any] = {"confidence": 0.95, "resamples": 500, "seed": 0}
CELLS = (("baseline", "original", "none"), ("gist", "stale", "half"), ("random", "stale", "half"))
DIALOGUES, TURNS = 6, 10


def verdicts(status: Callable[[str, int, int], str], **more: Any) -> pl.DataFrame:
    """A judge's verdicts; `status` is given policy, dialogue and turn."""
    rows = [
        {"run": f"{policy}/{dialogue}", "turn": turn, "judge": "j", "model": "m", "dataset": "d"}
        | {"dialogue": f"{dialogue:03d}", "policy": policy, "positions": positions, "seed": 0}
        | {"threshold": threshold, "status": status(policy, dialogue, turn)}
        | {name: value(turn) for name, value in more.items()}
        for policy, positions, threshold in CELLS
        for dialogue in range(DIALOGUES)
        for turn in range(TURNS)
    ]
    frame = pl.DataFrame(rows).with_columns(
        score=pl.when(pl.col("status") == "ok").then(7), seed=pl.col("seed").cast(pl.Int64)
    )
    schema = table_schema("verdicts")
    missing = [name for name in schema if name not in frame.columns]
    return frame.with_columns(pl.lit(None).alias(name) for name in missing).cast(dict(schema))


def test_missing_verdicts_are_counted_by_reason_and_turn() -> None:
    def status(policy: str, dialogue: int, turn: int) -> str:
        if turn == 9:
            return "truncated" if policy == "gist" else "no_reply"
        return "refused" if turn == 3 and dialogue == 0 else "ok"

    found = missing_verdicts(verdicts(status)).to_dicts()
    about = {"judge": "j"}
    assert found == [
        about | {"status": "refused", "turn": 3, "missing": 3, "replies": 18},
        about | {"status": "truncated", "turn": 9, "missing": 6, "replies": 6},
    ]


def test_a_cell_that_misses_more_than_others_is_told() -> None:
    def late_turns_of_one_policy(policy: str, dialogue: int, turn: int) -> str:
        return "failed" if policy == "gist" and turn > 6 else "ok"

    [found] = missing_by_cell(verdicts(late_turns_of_one_policy), OPTIONS).to_dicts()
    assert (found["most"], found["most_share"]) == ("gist stale half", pytest.approx(0.3))
    assert found["fewest_share"] == 0 and found["turns"] == DIALOGUES * TURNS
    assert found["p"] < 0.01


def test_verdicts_that_are_missing_everywhere_or_by_chance_are_no_sign() -> None:
    def late_turns(policy: str, dialogue: int, turn: int) -> str:
        return "failed" if turn > 6 else "ok"

    [same] = missing_by_cell(verdicts(late_turns), OPTIONS).to_dicts()
    assert same["p"] is None and same["most_share"] == same["fewest_share"]
    below = 0
    for seed in range(20):
        drawn = random.Random(seed)
        frame = verdicts(lambda *_, drawn=drawn: "failed" if drawn.random() < 0.2 else "ok")
        below += missing_by_cell(frame, OPTIONS)["p"][0] < 0.05
    assert below <= 4  # about one of twenty; these seeds are fixed
    assert missing_by_cell(verdicts(lambda *_: "ok"), OPTIONS).is_empty()


def test_p_is_that_of_cochrans_q() -> None:
    """Against chi-squared with two degrees of freedom, which Q tends to."""
    drawn = random.Random(1)

    def status(policy: str, dialogue: int, turn: int) -> str:
        return "failed" if drawn.random() < (0.4 if policy == "gist" else 0.25) else "ok"

    frame = verdicts(status)
    [found] = missing_by_cell(frame, OPTIONS | {"resamples": 4000}).to_dicts()
    absent = frame.with_columns(absent=(pl.col("status") != "ok").cast(pl.Int64))
    table = absent.pivot("policy", index=["dialogue", "turn"], values="absent")
    rows = table.drop("dialogue", "turn").to_numpy()
    k, of_column, of_row = rows.shape[1], rows.sum(0), rows.sum(1)
    q = (k - 1) * (k * (of_column**2).sum() - rows.sum() ** 2)
    q = q / (k * rows.sum() - (of_row**2).sum())
    assert found["p"] == pytest.approx(stats.chi2.sf(q, k - 1), abs=0.06)


def test_replies_whose_history_was_cut_are_counted() -> None:
    frame = verdicts(lambda *_: "ok", messages_cut=lambda turn: max(0, turn - 7))
    found = verdict_means(frame, OPTIONS)
    assert found["history_cut"].to_list() == [2 * DIALOGUES] * 3
    assert found["messages_cut"].to_list() == [3 * DIALOGUES] * 3
