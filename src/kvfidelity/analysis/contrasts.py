"""Paired differences between cells, in small families that are named before the data are seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import polars as pl

from kvfidelity.analysis.columns import table_schema
from kvfidelity.analysis.statistics import column_mean, holm
from kvfidelity.cache.positions import PositionMode

STALE, ORIGINAL, REROTATED = (mode.value for mode in PositionMode)
PAIRED = ("dialogue", "seed", "turn")
#: The kind of policy that others are compared with.
REFERENCE_KIND = "attention_top"


class Contrast(NamedTuple):
    """What is subtracted from what, with all else equal; `family`: what p is adjusted over."""

    family: str
    factor: str
    first: str
    second: str


def contrasts(
    scored: pl.DataFrame, policies: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any]
) -> pl.DataFrame:
    """Differences in excess NLL on the same (dialogue, turn), at equal budgets.

    Families: "positions", stale minus rerotated of every policy: what positions cost on the same
    kept tokens; "correction", rerotated minus original of every policy; "policies, MODE": every
    policy minus attention-ranked eviction, the policy that the paper finds ruinous (the first by
    name of kind attention_top; if none is run, the first policy by name), under stale and under
    corrected positions. Where nothing runs rerotated, original stands for it. No contrast of a
    family follows from others. Holm's method adjusts p over a family of one model, data set and
    threshold.

    Args:
        scored: turns with an excess, with the columns of the cell, `dialogue`, `seed`, `turn`,
            `target_tokens`, `reference_tokens` and `excess_nll`.
        policies: their entries in the configuration, by name.
        options: confidence, resamples, seed.
    """
    rows: list[dict[str, Any]] = []
    setting = ["model", "dataset", "threshold"]
    for key, part in scored.group_by(setting, maintain_order=True):
        identity = dict(zip(setting, key, strict=True))
        ran = sorted(part["policy"].unique(), key=lambda name: _rank(name, policies))
        modes = set(part["positions"])
        families: dict[str, list[dict[str, Any]]] = {}
        for contrast in _named(ran, modes):
            families.setdefault(contrast.family, []).extend(
                identity | row for row in _differences(part, contrast, options)
            )
        for family in families.values():
            adjusted = holm([row["p"] for row in family])
            rows += [row | {"p_holm": p} for row, p in zip(family, adjusted, strict=True)]
    return pl.DataFrame(rows, table_schema("contrasts"))


def _rank(name: str, policies: Mapping[str, Mapping[str, Any]]) -> tuple[bool, str]:
    return policies[name]["kind"] != REFERENCE_KIND, name


def _named(policies: Sequence[str], modes: set[str]) -> Iterator[Contrast]:
    corrected = REROTATED if REROTATED in modes else ORIGINAL
    yield Contrast("positions", "positions", STALE, corrected)
    if corrected == REROTATED:
        yield Contrast("correction", "positions", REROTATED, ORIGINAL)
    for mode in (STALE, corrected):
        for policy in policies[1:]:
            yield Contrast(f"policies, {mode}", "policy", policy, policies[0])


def _differences(
    part: pl.DataFrame, contrast: Contrast, options: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """One row per policy, or for the position mode that the family names."""
    fixed = "policy" if contrast.factor == "positions" else "positions"
    if fixed == "positions":
        mode = contrast.family.removeprefix("policies, ")
        # Policies that set their own size have no budget in common.
        part = part.filter(pl.col("positions") == mode, pl.col("target_tokens").is_not_null())
    for (value,), same in part.group_by(fixed, maintain_order=True):
        one = same.filter(pl.col(contrast.factor) == contrast.first)
        other = same.filter(pl.col(contrast.factor) == contrast.second)
        pairs = one.join(other.select(*PAIRED, other="excess_nll"), on=PAIRED)
        if pairs.height:
            found = column_mean(
                pairs, pl.col("excess_nll") - pl.col("other"), pl.col("reference_tokens"), options
            )
            unpaired = one.height + other.height - 2 * pairs.height
            yield {**contrast._asdict(), fixed: value, "n_unpaired": unpaired} | asdict(found)
