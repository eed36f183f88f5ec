"""A judge before planted replies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from kvfidelity.judge.judges import judge_for
from kvfidelity.judge.pairwise import PLANTED, PairwiseJudge
from kvfidelity.judge.planting import GOOD, INJECTION, injected
from kvfidelity.judge.remote import RemoteJudge
from kvfidelity.judge.verdict import TRIAL
from kvfidelity.metrics.text import text_metrics


def trial(
    name: str,
    entry: Mapping[str, Any],
    rubric: Path,
    pace: Mapping[str, Any],
    store: Path,
    texts: pl.DataFrame,
) -> pl.DataFrame:
    """A judge's verdicts on planted replies; see `judges.judge_for`.

    Args:
        entry: with `repeats`, how often a model is asked for each verdict. texts: see
            `judge.planting`; for a judge that is computed with `reply_nll_full`.
    """
    judge = judge_for(name, entry, rubric, pace, store, batch=bool(entry.get("batch")))
    if isinstance(judge, RemoteJudge):
        rows = [_row(text) for text in pl.concat([texts, injected(texts)]).to_dicts()]
        asked = [
            (row, repeat)
            for repeat in range(entry["repeats"])
            for row in rows
            if repeat == 0 or row["kind"] != INJECTION
        ]
        verdicts = judge.judge_each(
            [(row, row["history"]) for row, _ in asked],
            [{"repeat": repeat} if repeat else {} for _, repeat in asked],
        )
    else:
        asked = [(_row(text), 0) for text in texts.to_dicts()]
        verdicts = judge.judge([row for row, _ in asked])
    return pl.DataFrame(
        [
            {name: row[name] for name in ("item", "dialogue", "kind")}
            | {"repeat": repeat}
            | asdict(verdict)
            for (row, repeat), verdict in zip(asked, verdicts, strict=True)
        ],
        TRIAL,
    )


def compare_planted(judge: PairwiseJudge, texts: pl.DataFrame) -> pl.DataFrame:
    """Each good reply against each corruption of it; `outcome` is the good one's."""
    rows = [_row(text) for text in texts.to_dicts()]
    good = {row["item"]: row for row in rows if row["kind"] == GOOD}
    others = [row for row in rows if row["kind"] != GOOD]
    pairs = [(good[row["item"]], row["reply"], row["history"]) for row in others]
    return pl.DataFrame(
        [
            {name: row[name] for name in ("item", "dialogue", "kind")} | asdict(comparison)
            for row, comparison in zip(others, judge.compare_each(pairs), strict=True)
        ],
        PLANTED,
    )


def _row(text: Mapping[str, Any]) -> dict[str, Any]:
    """A planted reply as judges see the turn of a run; there is no reference."""
    history = [{"prompt": turn["user"], "said": turn["assistant"]} for turn in text["history"]]
    measured = asdict(text_metrics(text["reply"], text["prompt"], None))
    return {**text, **measured, "history": history, "reference": None}
