"""What the published tables say of each claim, per model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from kvfidelity.analysis.decisions import NOT_TESTED
from kvfidelity.findings.published import PublishedRun
from kvfidelity.report.formatting import count, interval, signed

NOT_MEASURED = "not measured yet"


def claim_rows(runs: Sequence[PublishedRun], model: str) -> pl.DataFrame:
    """The tested rows of all claims of one model, with the finding that each is from."""
    parts = [
        run.tables["claims"]
        .filter(pl.col("decision") != NOT_TESTED)
        .with_columns(finding=pl.lit(run.finding.name))
        for run in runs
        if run.model == model
    ]
    return pl.concat(parts) if parts else pl.DataFrame(schema={"claim": pl.String})


def verdict(rows: pl.DataFrame, untested: str = NOT_MEASURED) -> str:
    """One claim of one model in words: the decision, how often, and the estimates.

    Args:
        rows: of `claim_rows`, those of the claim. untested: what to say if there are none.
    """
    if rows.is_empty():
        return untested
    counts = Counter(rows["decision"])
    if len(counts) == 1 and rows.height == 1:
        return f"{rows['decision'][0]}: {_estimate(rows.row(0, named=True))}"
    parts = []
    for decision, number in counts.most_common():
        part = rows.filter(decision=decision)
        low, high = part["estimate"].min(), part["estimate"].max()
        extent = _extent(low, high)  # type: ignore[arg-type]
        parts.append(f"{decision} in {number} of {count(rows.height, 'cell')}{extent}")
    return "; ".join(parts)


def _extent(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return ""
    return f" ({signed(low, 2)})" if low == high else f" ({signed(low, 2)} to {signed(high, 2)})"


def _estimate(row: Mapping[str, Any]) -> str:
    if row["estimate"] is None:
        return "no estimate"
    return (
        f"{signed(row['estimate'], 2)} {interval(row, 2)}, {count(row['n_dialogues'], 'dialogue')}"
    )
