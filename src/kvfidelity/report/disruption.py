"""Open question 3 of arXiv 2511.04686 in three sentences with numbers: does a measure of positional
disruption predict the loss, does it where it was not looked for, and is it worth a penalty?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from kvfidelity.analysis.predictor_validation import FACTORS, FITTED, WEIGHT_COLUMNS
from kvfidelity.records.columns import DISRUPTION, INTEGRITY
from kvfidelity.report.formatting import count, decimal, interval, signed
from kvfidelity.report.position_modes import position_order

#: Correlations that were aimed at before anything was measured: within groups of cells, and in
#: groups that nothing was fitted on.
GOAL, GOAL_LEFT_OUT = 0.9, 0.8
#: Measures that the page's table shows; the CSV has all.
SHOWN = (
    *(FITTED, *DISRUPTION),
    *("future_share", "signed_offset_error", "phase_distortion", "collisions"),
    "out_of_window_share",
)
NOT_TESTED = "not tested here"
SETTING = ("model", "dataset")


def disruption_answers(
    validation: pl.DataFrame, penalties: pl.DataFrame, policies: pl.DataFrame
) -> list[dict[str, Any]]:
    """One entry per model and data set whose runs measured their disruption, or penalised it.

    Args:
        validation, penalties, policies: the tables predictor_validation, penalties and policies.

    Returns:
        Each with `model`, `dataset`, `sentences` (three), `splits` (of the table: `factor`,
        `group`, `cells`, `values` in the order of SHOWN, `weights`, `n_dialogues`) and `doses`
        (policy rows of shifted modes, and of the others of the same policy and threshold).
    """
    answers = []
    settings = pl.concat([table.select(SETTING) for table in (validation, penalties)])
    for setting in settings.unique(maintain_order=True).to_dicts():
        of_setting = [pl.col(name) == value for name, value in setting.items()]
        part = validation.filter(of_setting)
        sentences = [
            _over_all(part),
            _left_out(part),
            _penalty(penalties.filter(of_setting).to_dicts()),
        ]
        doses = _doses(policies.filter(of_setting))
        answers.append(setting | {"sentences": sentences, "splits": _splits(part), "doses": doses})
    return answers


def _over_all(part: pl.DataFrame) -> str:
    if part.is_empty():
        return f"Whether disruption predicts the loss is {NOT_TESTED}: no run measured it."
    whole = part.filter(factor="none").to_dicts()
    found = {row["metric"]: row for row in whole}
    if FITTED not in found:
        return f"Whether disruption predicts the loss is {NOT_TESTED}: it varies in no turn."
    row = found[FITTED]
    parts = [_named(found[name]) for name in DISRUPTION if name in found]
    return (
        f"Among the cells of one dialogue and turn, the fitted sum ({_weights(row)}, fitted on the "
        f"same cells) has a mean rank correlation of {signed(row['correlation'], 2)} "
        f"{interval(row, 2)} with excess NLL over "
        f"{count(row['n_dialogues'], 'dialogue')}, {_goal(row, GOAL)} of {GOAL}; its parts: "
        f"{', '.join(parts) or 'none varies'}{_simpler(whole)}."
    )


def _left_out(part: pl.DataFrame) -> str:
    left = part.filter(cells="only").to_dicts()
    tested = [factor for factor in FACTORS if any(row["factor"] == factor for row in left)]
    fitted = [row for row in left if row["metric"] == FITTED]
    if part.is_empty():
        return f"Whether it does where nothing was fitted is {NOT_TESTED}."
    if not fitted:
        return f"Cells that nothing was fitted on are {NOT_TESTED}: there is one group of them."
    least = min(fitted, key=lambda row: row["correlation"])
    untested = [factor for factor in FACTORS if factor not in tested]
    rest = f"; left out by {', '.join(untested)}: {NOT_TESTED}" if untested else ""
    return (
        f"With weights fitted on the other cells, its least correlation in {len(fitted)} groups "
        f"left out (by {', '.join(tested)}) is {signed(least['correlation'], 2)} "
        f"{interval(least, 2)}, of the {least['factor']} {least['group']}, "
        f"{_goal(least, GOAL_LEFT_OUT)} of {GOAL_LEFT_OUT}"
        f"{_simpler([row for row in left if _group(row) == _group(least)])}{rest}."
    )


def _penalty(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return f"A penalty for disruption in the choice of slots is {NOT_TESTED}."
    ordered = sorted(
        rows, key=lambda row: (row["threshold"], row["weight"], position_order(row["positions"]))
    )
    found = [
        f"{signed(row['mean'], 2)} {interval(row, 2)} under {row['positions']} "
        f"(weight {decimal(row['weight'])}, at {row['threshold']})"
        for row in ordered
    ]
    return (
        "Against the same policy without it, a penalty changes excess NLL, in nats per token, by "
        f"{', '.join(found)}."
    )


def _simpler(rows: Sequence[Mapping[str, Any]]) -> str:
    simple = _strongest(rows)
    return "" if simple is None else f"; the strongest simpler measure there: {_named(simple)}"


def _strongest(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The measure of positions alone that orders cells best, of either sign.

    Of those that vary in as many dialogues as any: few dialogues make large correlations.
    """
    most = max((row["n_dialogues"] for row in rows), default=0)
    simple = [row for row in rows if row["metric"] in INTEGRITY and row["n_dialogues"] == most]
    return max(simple, key=lambda row: abs(row["correlation"]), default=None)


def _goal(row: Mapping[str, Any], goal: float) -> str:
    if row["low"] is not None and row["low"] >= goal:
        return "at least the goal"
    if row["high"] is not None and row["high"] < goal:
        return "below the goal"
    return "not surely above or below the goal"


def _named(row: Mapping[str, Any]) -> str:
    """ "future share +0.84 [+0.80, +0.90]"."""
    return f"{row['metric'].replace('_', ' ')} {signed(row['correlation'], 2)} {interval(row, 2)}"


def _weights(row: Mapping[str, Any]) -> str:
    """ "tokens 0.06, positions 0.00, future 0.94"."""
    return ", ".join(
        f"{name.removeprefix('weight_')} {decimal(row[name])}" for name in WEIGHT_COLUMNS
    )


def _group(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["factor"], row["group"]


def _splits(part: pl.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for key, same in part.group_by("factor", "group", "cells", maintain_order=True):
        found = {row["metric"]: row for row in same.to_dicts()}
        rows.append(
            dict(zip(("factor", "group", "cells"), key, strict=True))
            | {
                "values": [found.get(name, {}).get("correlation") for name in SHOWN],
                "weights": _weights(found[FITTED]) if FITTED in found else "",
                "n_dialogues": int(same["n_dialogues"].max()),  # type: ignore[arg-type]
            }
        )
    order = ["none", *FACTORS]
    return sorted(rows, key=lambda row: (order.index(row["factor"]), row["cells"], row["group"]))


def _doses(policies: pl.DataFrame) -> list[dict[str, Any]]:
    same = ["threshold", "policy"]
    shifted = policies.filter(pl.col("positions").str.starts_with("shifted"))
    rows = policies.join(shifted.select(same).unique(), on=same, how="semi").to_dicts()
    return sorted(
        rows, key=lambda row: (row["threshold"], row["policy"], position_order(row["positions"]))
    )
