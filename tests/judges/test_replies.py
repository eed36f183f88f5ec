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
from kvfidelity.judges.history import conversation
from kvfidelity.judges.kinds.formula import FormulaJudge
from kvfidelity.judges.replies import read_replies, read_turns
from kvfidelity.records.artifacts import write_parquet
from kvfidelity.records.columns import METRICS
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


def test_all_runs_are_judged_after_the_baselines_history(engine: Engine, tmp_path: Path) -> None:
    """Both feed their own replies; a judge sees one conversation, and each run's own last reply."""
    own = dataclasses.replace(BASE, replies="own", max_new_tokens=3)
    baseline = run_dialogue(engine, talk(3), own).turns
    ruined = baseline.with_columns(reply=pl.lit("la ") + pl.col("turn").cast(pl.String))
    runs = ("tiny/own/random/stale/small/0/000", "tiny/own/none/original/none/0/000")
    files = [tmp_path / "generate" / run / "turns.parquet" for run in runs]
    metrics = pl.DataFrame([{"run": run, "turn": turn} for run in runs for turn in range(3)])
    measured = metrics.with_columns(
        pl.lit(None, dtype).alias(name)
        for name, dtype in METRICS.items()
        if name not in ("run", "turn")
    )
    texts = tmp_path / "metrics.parquet"
    write_parquet(measured.cast({"turn": METRICS["turn"]}), texts, kind="metrics")
    for file, table in zip(files, (ruined, baseline), strict=True):
        write_parquet(table, file, kind="turns")
    alone = read_replies(files, texts, baseline_history=False)[runs[0]]
    shown = read_replies(files, texts, baseline_history=True)[runs[0]]
    assert [row["reply"] for row in shown] == ["la 0", "la 1", "la 2"]
    assert "assistant: la 1" in conversation(alone[:2])
    assert conversation(shown[:2]) == conversation(read_turns(files[1])[:2])

    # Past the trained window in either conversation, likelihood is no measure for either judge.
    assert not any(row["past_window"] for row in alone + shown)
    ends = baseline["tokens_seen_end"]
    long = baseline.with_columns(tokens_seen_end=ends + baseline["trained_window"] - ends[1])
    write_parquet(long, files[1], kind="turns")
    for baseline_history in (False, True):
        later = read_replies(files, texts, baseline_history=baseline_history)
        for run in runs:
            assert [row["past_window"] for row in later[run]] == [False, False, True]

    # Memory runs out for the baseline at turn 1: there is no conversation before turn 2, and the
    # run's own, ruined one is not shown in its place.
    cut = baseline.head(2).with_columns(
        pl.when(pl.col("turn") < 1).then(name).alias(name) for name in ("reply", "reply_nll")
    )
    write_parquet(cut, files[1], kind="turns")
    shown = read_replies(files, texts, baseline_history=True)[runs[0]]
    assert [row["reply"] for row in shown] == ["la 0", "la 1", None]
    assert [row["finish_reason"] == "no_history" for row in shown] == [False, False, True]
    assert "la 0" not in conversation(shown[:1])
    verdicts = FormulaJudge("formula", Path("formula.md"), None).judge(shown)
    assert verdicts[2].status == "no_history" and verdicts[2].score is None
    # Replies of the dataset are the history of all runs alike, also where the baseline has no turn.
    reference = ruined.with_columns(replies=pl.lit("reference"))
    write_parquet(reference, files[0], kind="turns")
    shown = read_replies(files, texts, baseline_history=True)[runs[0]]
    assert [row["reply"] for row in shown] == ["la 0", "la 1", "la 2"]
    assert [row["fed_reply"] for row in shown] == reference["reference"].to_list()
