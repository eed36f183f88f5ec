"""What a policy's loss is made of: the evicted tokens, or their positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import polars as pl

from kvfidelity.analysis.columns import table_schema
from kvfidelity.analysis.decisions import CONTRADICTED, NEGLIGIBLE, SUPPORTED, decide
from kvfidelity.analysis.ratios import column_ratio
from kvfidelity.analysis.statistics import (
    MIN_DIALOGUES,
    MIN_DIALOGUES_WITHIN,
    Estimate,
    column_mean,
)

#: Nats per token that a reader would call a loss.
MARGIN = 0.05
#: Share of the loss above which one cause is named; the claims P1 and P2 draw the line there too.
MOST = 0.9
PAIRED = ("dialogue", "seed", "turn")


def attribution(
    scored: pl.DataFrame, silent: frozenset[tuple[str, str]], options: Mapping[str, Any]
) -> pl.DataFrame:
    """One row per policy and threshold: its loss split in two, over the same turns. `same_kept`,
    whether the two also kept the same tokens, is left to `kept_alike.with_same_kept`.

    stale: excess NLL with stale positions; rest: rerotated, what is lost with the tokens;
    difference: stale minus rerotated, what positions cost. `cause` follows from `decide`:

    - "none": it surely loses less than MARGIN with stale positions;
    - "positions": these surely cost more than MARGIN and more than MOST of the loss;
    - "tokens": the rest is surely more than MARGIN and more than MOST of the loss;
    - "both": both surely cost more than MARGIN;
    - "undecided", with its reason; always for models that know nothing.

    `loses` and `positions_cost` say which part of it is open: "yes", "no" or "open", of the loss
    with stale positions and of the difference. Where the difference is negligible against MARGIN
    in every single dialogue, positions cost nothing, however few the dialogues: it was measured in
    each, not concluded from them.

    Args:
        scored: turns with an excess, as for `contrasts`, and `kept_spans`.
        silent: models and data sets whose baseline knows nothing.
        options: confidence, resamples, seed.
    """
    keys = ["model", "dataset", "policy", "threshold"]
    corrected = scored.filter(pl.col("positions") == "rerotated").select(
        *keys, *PAIRED, "kept_spans", rest="excess_nll"
    )
    stale = scored.filter(pl.col("positions") == "stale")
    pairs = stale.drop("kept_spans").join(corrected, on=[*keys, *PAIRED])
    modes = scored.filter(pl.col("positions").is_in(["stale", "rerotated"]))
    measured = {row[:-1]: row[-1] for row in modes.group_by(keys).len().rows()}
    rows = []
    for key, part in pairs.group_by(keys, maintain_order=True):
        identity = dict(zip(keys, key, strict=True))
        found = _estimates(part, options)
        cause, reason = _cause(found)
        if (identity["model"], identity["dataset"]) in silent:
            cause, reason = "undecided", "the model knows nothing"
        row = {
            "kept_spans": part["kept_spans"].mean(),
            "same_kept": None,
            "cause": cause,
            "reason": reason,
            "loses": _sure(found["stale"]),
            "positions_cost": _sure(found["difference"]),
        }
        largest = found["difference"].largest
        if largest is not None and largest <= NEGLIGIBLE * MARGIN:
            row["positions_cost"] = "no"
        row |= {"n_dialogues": found["stale"].n_dialogues, "n_turns": found["stale"].n_turns}
        row |= {"n_unpaired": measured[key] - 2 * part.height}
        for name in ("stale", "rest", "difference"):
            one = found[name]
            row |= {name: one.mean, f"{name}_low": one.low, f"{name}_high": one.high}
        rows.append(identity | row)
    return pl.DataFrame(rows, table_schema("attribution")).sort(
        "model", "dataset", -pl.col("difference").max().over("policy"), "policy", "threshold"
    )


def _estimates(part: pl.DataFrame, options: Mapping[str, Any]) -> dict[str, Estimate]:
    stale, rest = pl.col("excess_nll"), pl.col("rest")
    weight = pl.col("reference_tokens")
    values = {"stale": stale, "rest": rest, "difference": stale - rest}
    found = {name: column_mean(part, value, weight, options) for name, value in values.items()}
    shares = {
        f"share of {name}": column_ratio(part, value, stale, weight, options)
        for name, value in values.items()
        if name != "stale"
    }
    return found | shares


def _sure(estimate: Estimate) -> str:
    """Whether the estimate is more than MARGIN: "yes", "no" or "open"."""
    decided, _ = decide("above", MARGIN, asdict(estimate))
    return {SUPPORTED: "yes", CONTRADICTED: "no"}.get(decided, "open")


def _cause(found: Mapping[str, Estimate]) -> tuple[str, str]:
    """The cause and its reason."""
    dialogues = found["stale"].n_dialogues
    if dialogues < MIN_DIALOGUES:
        return "undecided", f"{dialogues} of the {MIN_DIALOGUES} dialogues that it takes"

    def decided(name: str, direction: str, margin: float) -> str:
        return decide(direction, margin, asdict(found[name]))[0]

    lost = decided("stale", "above", MARGIN)
    if lost == CONTRADICTED:
        return "none", "the loss is surely small"
    if lost != SUPPORTED and dialogues < MIN_DIALOGUES_WITHIN:
        return "undecided", (
            "the loss is not surely more than the margin; that it is small takes "
            f"{MIN_DIALOGUES_WITHIN} dialogues"
        )
    if lost != SUPPORTED:
        return "undecided", "the loss is not surely more than the margin"
    positions = decided("difference", "above", MARGIN) == SUPPORTED
    tokens = decided("rest", "above", MARGIN) == SUPPORTED
    if positions and decided("share of difference", "above", MOST) == SUPPORTED:
        return "positions", f"they surely cost more than {MOST:.0%} of the loss"
    if tokens and decided("share of rest", "above", MOST) == SUPPORTED:
        return "tokens", f"they surely cost more than {MOST:.0%} of the loss"
    if positions and tokens:
        return "both", "both surely cost more than the margin"
    return "undecided", "the loss is sure, its parts are not"
