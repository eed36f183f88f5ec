"""Tests a judge on good replies and corruptions of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from kvfidelity.judges.base import Judge
from kvfidelity.judges.comparison import CORRUPTION_COMPARISONS
from kvfidelity.judges.corruption_kinds import GOOD, INJECTION
from kvfidelity.judges.corruptions import with_injection
from kvfidelity.judges.pairwise import PairwiseJudge
from kvfidelity.judges.registry import build_judge
from kvfidelity.metrics.text import text_metrics
from kvfidelity.records.columns import CORRUPTION_VERDICTS


def judge_corruptions(
    name: str,
    entry: Mapping[str, Any],
    rubric: Path,
    limits: Mapping[str, Any],
    store: Path,
    texts: pl.DataFrame,
) -> pl.DataFrame:
    """A judge's verdicts on good and corrupted replies; see `registry.build_judge`.

    Args:
        entry: with `repeats`, how often a model judges each reply.
        texts: see `judges.corruptions`; with `reply_nll_baseline` if the judge needs likelihood.
    """
    judge = build_judge(name, entry, rubric, limits, store, batch=bool(entry.get("batch")))
    if judge.needs_network:
        rows = [_judge_row(text) for text in pl.concat([texts, with_injection(texts)]).to_dicts()]
        rows_with_repeat = [
            (row, repeat)
            for repeat in range(entry["repeats"])
            for row in rows
            if repeat == 0 or row["kind"] != INJECTION
        ]
        verdicts = judge.judge_each(
            [(row, row["history"]) for row, _ in rows_with_repeat],
            [{"repeat": repeat} if repeat else {} for _, repeat in rows_with_repeat],
        )
    else:
        rows_with_repeat = [(_judge_row(text), 0) for text in texts.to_dicts()]
        verdicts = judge.judge([row for row, _ in rows_with_repeat])
    return pl.DataFrame(
        [
            {name: row[name] for name in ("item", "dialogue", "kind")}
            | {"repeat": repeat}
            | asdict(verdict)
            for (row, repeat), verdict in zip(rows_with_repeat, verdicts, strict=True)
        ],
        CORRUPTION_VERDICTS,
    )


def compare_corruptions(judge: Judge | PairwiseJudge, texts: pl.DataFrame) -> pl.DataFrame:
    """Each good reply against each corruption of it; `outcome` is the good one's."""
    rows = [_judge_row(text) for text in texts.to_dicts()]
    good = {row["item"]: row for row in rows if row["kind"] == GOOD}
    others = [row for row in rows if row["kind"] != GOOD]
    pairs = [(good[row["item"]], row["reply"], row["history"]) for row in others]
    return pl.DataFrame(
        [
            {name: row[name] for name in ("item", "dialogue", "kind")} | asdict(comparison)
            for row, comparison in zip(others, judge.compare_each(pairs), strict=True)
        ],
        CORRUPTION_COMPARISONS,
    )


def _judge_row(text: Mapping[str, Any]) -> dict[str, Any]:
    """A good or corrupted reply in the form of a run's turn; it has no reference."""
    history = [{"prompt": turn["user"], "fed_reply": turn["assistant"]} for turn in text["history"]]
    measured = asdict(text_metrics(text["reply"], text["prompt"], None))
    return {**text, **measured, "history": history, "reference": None}
