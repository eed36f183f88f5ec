"""How far judges can be trusted: on corrupted replies, on the same reply twice, and against each
other.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from kvfidelity.analysis.columns import table_schema
from kvfidelity.analysis.finite import missing_if_not_finite
from kvfidelity.analysis.shares import column_share, share_interval
from kvfidelity.analysis.statistics import (
    Floats,
    Interval,
    column_mean,
    finite,
    jackknife_error,
    t_interval,
)
from kvfidelity.judges.corruption_kinds import GOOD, INJECTION, KINDS, SHUFFLE
from kvfidelity.records.artifacts import read_parquet

SCALE = 10
SETTING = ("model", "dataset")
#: Measures of the table, and what each is about; see `reliability`.
AUC, REPEATS, AGREEMENT, INJECTED = "auc", "repeats", "agreement", "injection"


def reliability(
    judge_tests: pl.DataFrame, verdicts: pl.DataFrame, options: Mapping[str, Any]
) -> pl.DataFrame:
    """One row per measure.

    auc: probability that a good reply scores above one with the corruption `against`, a tie
        counting half; n is the number of corrupted replies.
    repeats: quadratic-weighted kappa of two verdicts of one judge on a reply; share: equal scores.
    agreement: the same of two judges, on replies of the test and on those of the run (`replies`).
    injection: by how much a shuffled reply gains that tells the judge to give a 10; share: of
        replies that gain anything.

    Args:
        judge_tests: rows of `judges.reliability` with `model` and `dataset`. verdicts: those on the
        run's
            replies, with `run`, `turn` and `dialogue`. options: confidence, resamples, seed.
    """
    rows = [
        row
        for (judge, model, dataset), part in judge_tests.group_by(
            "judge", *SETTING, maintain_order=True
        )
        for row in _rows_of_judge(part, options)
    ]
    rows += _agreements(
        judge_tests.filter(pl.col("repeat") == 0), ["item", "kind"], "corrupted", options
    )
    rows += _agreements(verdicts, ["run", "turn"], "run", options)
    return pl.DataFrame(rows, table_schema("reliability"))


def gather_judge_tests(files: Sequence[Path], kind: str, schema: Mapping[str, Any]) -> pl.DataFrame:
    """Judges' verdicts on replies of the test, from files whose paths end in model/dataset/name.

    Raises:
        UserError: one is missing or damaged.
    """
    frames = [
        missing_if_not_finite(read_parquet(file, kind=kind)).with_columns(
            model=pl.lit(file.parts[-3]), dataset=pl.lit(file.parts[-2])
        )
        for file in files
    ]
    return pl.concat(
        [pl.DataFrame(schema={**schema, **dict.fromkeys(SETTING, pl.String)}), *frames]
    )


def rows_by_measure(table: pl.DataFrame) -> dict[str, Any]:
    """The rows by measure, and how many good replies there were, for the page."""
    rows: dict[str, Any] = {
        measure: table.filter(pl.col("measure") == measure).to_dicts()
        for measure in (AUC, REPEATS, AGREEMENT, INJECTED, "pairs", "order")
    }
    return rows | {"n": max((row["n_good"] for row in rows[AUC]), default=0)}


def costs(judged: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """What judging cost, by judge and by what was judged; an answer that several verdicts share
    counts once, in `answers`, tokens and dollars.

    Args:
        judged: verdicts or comparisons by what was judged.
    """
    rows = []
    keys = ["judge", "judge_kind", "judge_model", "rubric"]
    for what, frame in judged.items():
        if frame.is_empty():
            continue
        for key, part in frame.group_by(keys, maintain_order=True):
            requests = part.drop_nulls("request").unique("request")
            answered = requests.filter(pl.col("answers") > 0)
            unpriced = answered.filter(
                pl.col("cost_usd").is_null() & pl.col("possible_usd").is_null()
            )
            given = pl.col("status").is_in(["ok", "same"])
            rows.append(
                dict(zip(keys, key, strict=True))
                | {
                    "judged": what,
                    "verdicts": part.filter(given).height,
                    "missing": part.filter(~given & (pl.col("status") != "no_reply")).height,
                    "answers": answered["answers"].sum(),
                    "prompt_tokens": answered["prompt_tokens"].sum(),
                    "completion_tokens": answered["completion_tokens"].sum(),
                    "reasoning_tokens": answered["reasoning_tokens"].sum(),
                    "usd": answered["cost_usd"].sum(),
                    "possible_usd": requests["possible_usd"].sum(),
                    "unpriced": unpriced.height,
                }
            )
    return pl.DataFrame(rows, table_schema("costs"))


def auc(
    good: pl.DataFrame, bad: pl.DataFrame, options: Mapping[str, Any]
) -> dict[str, float | int | None]:
    """Area under the ROC curve with its interval, that of a share: it is the probability that a
    good reply scores above a bad one.

    Args:
        good, bad: `dialogue` and `score`, an integer from 1 to 10.
    """
    names = sorted({*good["dialogue"], *bad["dialogue"]})
    counts = np.stack([_counts(frame, names) for frame in (good, bad)])  # [2, dialogues, SCALE]

    def of(weights: Floats) -> Floats:
        above, below = np.einsum("rd,gds->grs", weights, counts)
        worse = np.cumsum(below, axis=1) - below / 2
        pairs = above.sum(1) * below.sum(1)
        return np.where(pairs > 0, (above * worse).sum(1) / np.maximum(pairs, 1), np.nan)

    # Good replies are paired with all bad ones, and their scores go together in a dialogue: the
    # error may be smaller than that of as many independent values.
    values = good.height * bad.height

    def interval(value: float, error: float) -> Interval:
        return share_interval(value, error, len(names), values, options["confidence"])

    return _jackknifed(of, len(names), interval)


def kappa(pairs: pl.DataFrame, options: Mapping[str, Any]) -> dict[str, float | int | None]:
    """Cohen's kappa with quadratic weights and its interval, Student's over dialogues.

    1 is full agreement, 0 what chance gives; None if one side never varies. There is no interval
    where all dialogues agree alike.

    Args:
        pairs: `dialogue`, `score` and `other`, integers from 1 to 10.
    """
    names = sorted(set(pairs["dialogue"]))
    index_of = {name: number for number, name in enumerate(names)}
    joint = np.zeros((len(names), SCALE, SCALE))
    for dialogue, score, other in pairs.select("dialogue", "score", "other").rows():
        joint[index_of[dialogue], score - 1, other - 1] += 1
    steps = np.arange(SCALE)
    weight = (steps[:, None] - steps[None, :]) ** 2 / (SCALE - 1) ** 2

    def of(weights: Floats) -> Floats:
        table = np.einsum("rd,dij->rij", weights, joint)
        total = table.sum((1, 2))
        chance = np.einsum("ri,rj->rij", table.sum(2), table.sum(1)) / total[:, None, None]
        expected = (chance * weight).sum((1, 2))
        observed = (table * weight).sum((1, 2))
        safe = np.where(expected > 0, expected, 1.0)
        return np.where(expected > 0, 1 - observed / safe, np.nan)

    def interval(value: float, error: float) -> Interval:
        if error == 0:
            return None, None
        low, high = t_interval(value, error, len(names), options["confidence"])
        return low, None if high is None else min(1.0, high)

    return _jackknifed(of, len(names), interval)


def _rows_of_judge(part: pl.DataFrame, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    first = part.filter(pl.col("repeat") == 0)
    given = first.filter(pl.col("status") == "ok")
    identity = {
        name: part[name][0] for name in ("judge", "judge_kind", "judge_model", "model", "dataset")
    } | {"replies": "corrupted"}
    good = given.filter(pl.col("kind") == GOOD)
    for kind in KINDS:
        corrupted = first.filter(pl.col("kind") == kind)
        corrupted_scores = given.filter(pl.col("kind") == kind)
        if corrupted.height:
            found = (
                auc(good, corrupted_scores, options)
                if good.height and corrupted_scores.height
                else {}
            )
            counted = {
                "n": corrupted_scores.height,
                "n_good": good.height,
                "missing": corrupted.height - corrupted_scores.height,
            }
            yield identity | {"measure": AUC, "against": kind} | found | counted
    pairs = _repeat_pairs(part)
    if pairs.height:
        yield identity | {"measure": REPEATS} | _agreement(pairs, options)
    if row := _injection(given, options):
        yield identity | {"measure": INJECTED, "missing": _missing_count(first, INJECTION)} | row


def _repeat_pairs(part: pl.DataFrame) -> pl.DataFrame:
    """First verdicts, joined with each later verdict on the same reply."""
    columns = ["item", "kind", "dialogue", "score"]
    first = part.filter(pl.col("repeat") == 0).select(columns)
    later = part.filter(pl.col("repeat") > 0).select("item", "kind", other="score")
    return first.join(later, on=["item", "kind"])


def _injection(given: pl.DataFrame, options: Mapping[str, Any]) -> dict[str, Any]:
    plain = given.filter(pl.col("kind") == SHUFFLE).select("item", "dialogue", plain="score")
    injected = given.filter(pl.col("kind") == INJECTION).select("item", injected="score")
    pairs = plain.join(injected, on="item")
    if pairs.is_empty():
        return {}
    gain = pl.col("injected") - pl.col("plain")
    found = column_mean(pairs, gain, pl.lit(1), options)
    gaining = column_share(pairs, gain > 0, options)
    return {
        "value": found.mean,
        "low": found.low,
        "high": found.high,
        "share": gaining.mean,
        "share_low": gaining.low,
        "share_high": gaining.high,
        "n": pairs.height,
        "n_dialogues": found.n_dialogues,
    }


def _agreements(
    verdicts: pl.DataFrame, keys: Sequence[str], replies: str, options: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Every two judges of one model and dataset, on the replies that both were shown."""
    if verdicts.is_empty():
        return
    with_reply = verdicts.filter(pl.col("status") != "no_reply")
    for (model, dataset), part in with_reply.group_by(*SETTING, maintain_order=True):
        names = part["judge"].unique(maintain_order=True).to_list()
        for one, other in itertools.combinations(names, 2):
            first_scores = part.filter(pl.col("judge") == one)
            second_scores = part.filter(pl.col("judge") == other).select(*keys, other="score")
            pairs = first_scores.join(second_scores, on=list(keys))
            if pairs.is_empty():
                continue
            identity = {name: first_scores[name][0] for name in ("judge_kind", "judge_model")}
            identity |= {"measure": AGREEMENT, "judge": one, "against": other, "replies": replies}
            yield identity | {"model": model, "dataset": dataset} | _agreement(pairs, options)


def _agreement(pairs: pl.DataFrame, options: Mapping[str, Any]) -> dict[str, Any]:
    both = pairs.drop_nulls(["score", "other"])
    found = kappa(both, options) if both.height else {}
    equal = column_share(both, pl.col("score") == pl.col("other"), options)
    ends = {"share": equal.mean, "share_low": equal.low, "share_high": equal.high}
    return {**found, **ends, "n": both.height, "missing": pairs.height - both.height}


def _missing_count(first: pl.DataFrame, kind: str) -> int:
    return first.filter(pl.col("kind") == kind, pl.col("status") != "ok").height


def _counts(frame: pl.DataFrame, names: Sequence[str]) -> Floats:
    """Replies by dialogue and score [dialogues, SCALE]."""
    counts = np.zeros((len(names), SCALE))
    index_of = {name: number for number, name in enumerate(names)}
    for dialogue, score in frame.select("dialogue", "score").rows():
        counts[index_of[dialogue], score - 1] += 1
    return counts


def _jackknifed(
    of: Callable[[Floats], Floats], dialogues: int, interval: Callable[[float, float], Interval]
) -> dict[str, float | int | None]:
    """A statistic of weights [any, dialogues] with its interval, made of it and of its standard
    error over dialogues; `of` is NaN where the statistic is undefined."""
    value = finite(of(np.ones((1, dialogues)))[0])
    found: dict[str, float | int | None] = {"value": value, "low": None, "high": None}
    found["n_dialogues"] = dialogues
    if value is not None and dialogues > 1:
        error = jackknife_error(value, of(1 - np.eye(dialogues)))
        if error is not None:
            found["low"], found["high"] = interval(value, error)
    return found
