"""The page's first screen: what the loss is due to, and which policy loses least at equal bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from kvfidelity.analysis.ranking import EQUAL_BYTES
from kvfidelity.analysis.recall import recall_statements
from kvfidelity.report.position_modes import position_order

#: What a loss is due to; see `causes`.
CAUSES = ("positions", "tokens", "both", "none", "parts", "no difference", "open")
SETTING = ("model", "dataset", "threshold", "policy")
#: Numbers of slots of which the first that was not run is the page's example of others.
EXAMPLE_SLOTS = (512, 1024, 2048, *range(3000, 10**6, 1000))


def ranked_groups(ranking: pl.DataFrame, recall: pl.DataFrame) -> list[dict[str, Any]]:
    """The ranking by model, dataset, threshold and budget; groups of one budget first.

    Returns:
        For each group its keys, `rows`, `equal` (whether its cells have one budget) and `first`
        (the rows of rank 1) and `unsure` (rows behind them whose intervals overlap the first's).
        Each row has what the table has, `forgets` and `keeps` (names of depths, as `recall_state`
        decides) and `asked` (whether there were questions).
    """
    states = _recall_by_cell(recall)
    groups = []
    for key, part in ranking.group_by(EQUAL_BYTES, maintain_order=True):
        rows = part.to_dicts()
        for row in rows:
            depths = states.get((*(row[name] for name in SETTING), row["positions"]))
            row["asked"] = depths is not None
            row["forgets"] = (depths or {}).get("forgotten", [])
            row["keeps"] = (depths or {}).get("kept", [])
        first = [row for row in rows if row["rank"] == 1]
        group = dict(zip(EQUAL_BYTES, key, strict=True))
        group |= {"rows": rows, "equal": group["budget_tokens"] is not None, "first": first}
        group["unsure"] = [row for row in rows if first and _overlaps(row, first[0])]
        groups.append(group)
    return sorted(groups, key=lambda group: not group["equal"])


def budgets_run(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry per model and dataset, for a reader who asks for any number of slots.

    Args:
        groups: what `ranked_groups` gives.

    Returns:
        `model`, `dataset`; `budgets`, the numbers of slots that cells were left with, ascending;
        `other`, a number that was not run, as an example; `nearest`, the budgets nearest to it.
    """
    found: dict[tuple[str, str], set[int]] = {}
    for group in groups:
        known = found.setdefault((group["model"], group["dataset"]), set())
        if group["equal"]:
            known.add(group["budget_tokens"])
    entries = []
    for (model, dataset), known in found.items():
        budgets = sorted(known)
        other = next(size for size in EXAMPLE_SLOTS if size not in known)
        entry = {"model": model, "dataset": dataset, "budgets": budgets, "other": other}
        entries.append(entry | {"nearest": nearest(budgets, other)})
    return entries


def nearest(budgets: Sequence[int], slots: int) -> list[int]:
    """The largest budget that is not above a number of slots, and the smallest that is."""
    below = [budget for budget in budgets if budget <= slots][-1:]
    return below + [budget for budget in budgets if budget > slots][:1]


def _overlaps(row: Mapping[str, Any], first: Mapping[str, Any]) -> bool:
    """Whether a row behind the first may be as good: their intervals overlap, or one is missing."""
    if row["rank"] == 1:
        return False
    low, high = row["low"], first["high"]
    return low is None or high is None or low <= high


def _recall_by_cell(recall: pl.DataFrame) -> dict[tuple[Any, ...], dict[str, list[str]]]:
    """By cell, the depths of each recall state."""
    found: dict[tuple[Any, ...], dict[str, list[str]]] = {}
    for entry in recall_statements(recall):
        for mode in entry["modes"]:
            states = found.setdefault((*(entry[name] for name in SETTING), mode), {})
            for state, depths in entry["depths"].items():
                known = states.setdefault(state, [])
                known += [one["depth"] for one in depths if one["depth"] not in known]
    return found


def causes(attribution: pl.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """The policies by what their loss is due to, undecided ones apart by what is open.

    The keys are those of `attribution`'s `cause`; for "undecided" they are "no difference" (stale
    and rerotated positions cost the same, whether the policy loses anything is open), "parts" (it
    loses, its parts are open) and "open".
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in CAUSES}
    for row in attribution.to_dicts():
        cause = row["cause"]
        if cause == "undecided":
            if row["positions_cost"] == "no" and row["loses"] != "yes":
                cause = "no difference"
            elif row["loses"] == "yes":
                cause = "parts"
            else:
                cause = "open"
        found[cause].append(row)
    return found


def without_partner(policies: pl.DataFrame, attribution: pl.DataFrame) -> list[dict[str, Any]]:
    """Cells of policies that ran with stale or with rerotated positions alone: what positions cost
    them is not known, what they lose is."""
    paired = attribution.select(SETTING)
    alone = policies.join(paired, on=SETTING, how="anti")
    return _in_order(alone.to_dicts())


def _in_order(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(
        rows, key=lambda row: ([row[name] for name in SETTING], position_order(row["positions"]))
    )
