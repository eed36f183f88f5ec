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
from kvfidelity.judge.verdict import TRIAL, Verdict
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
    reads = isinstance(judge, RemoteJudge)
    rows = [
        _row(text) for text in (pl.concat([texts, injected(texts)]) if reads else texts).to_dicts()
    ]
    found: list[tuple[dict[str, Any], int, Verdict]] = []
    if isinstance(judge, RemoteJudge):
        for repeat in range(entry["repeats"]):
            chosen = [row for row in rows if repeat == 0 or row["kind"] != INJECTION]
            marks = {"repeat": repeat} if repeat else {}
            given = judge.judge_each([(row, row["history"]) for row in chosen], marks)
            found += [(row, repeat, v) for row, v in zip(chosen, given, strict=True)]
    else:
        found = [(row, 0, v) for row, v in zip(rows, judge.judge(rows), strict=True)]
    return pl.DataFrame(
        [
            {name: row[name] for name in ("item", "dialogue", "kind")}
            | {"repeat": repeat}
            | asdict(verdict)
            for row, repeat, verdict in found
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
