"""What judges are given of a run."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from kvfidelity.decoding.engine import Engine
from kvfidelity.generation.run import run_dialogue
from kvfidelity.judges.kinds.formula import FormulaJudge
from kvfidelity.judges.replies import read_turns
from kvfidelity.records.artifacts import write_parquet
from tests.engine import engine
from tests.generation.test_run import BASE, talk

__all__ = ["engine"]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("reply_nll", math.nan),
        ("reply_nll_baseline", math.inf),
        ("reference_nll", math.nan),
        ("kl_baseline", -math.inf),
        ("reference_token_nll", [1.0, math.nan]),
    ],
)
def test_replies_from_the_first_likelihood_that_is_not_finite_are_withheld(
    engine: Engine, tmp_path: Path, column: str, value: Any
) -> None:
    turns = run_dialogue(engine, talk(4), dataclasses.replace(BASE, max_new_tokens=3)).turns
    values = turns[column].to_list()
    values[2] = value
    damaged = turns.with_columns(pl.Series(column, values, turns.schema[column]))
    write_parquet(damaged, tmp_path / "turns.parquet", kind="turns")
    rows = read_turns(tmp_path / "turns.parquet")
    assert [row["reply"] is None for row in rows] == [False, False, True, True]
    assert [row["finish_reason"] for row in rows][2:] == ["not_finite"] * 2
    assert all(row["fed_reply"] == row["reference"] for row in rows)
    texts = dict.fromkeys(("rep_3", "echo_share", "chrf"), 0.0)
    judge = FormulaJudge("formula", Path("formula.md"), None)
    verdicts = judge.judge([row | texts for row in rows])
    assert [verdict.status for verdict in verdicts] == ["ok", "ok", "not_finite", "not_finite"]
    assert [verdict.score is None for verdict in verdicts] == [False, False, True, True]
