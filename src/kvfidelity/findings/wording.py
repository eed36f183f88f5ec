"""Names of what is compared, and a row's numbers as the page writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvfidelity.findings.published import PublishedRun
from kvfidelity.findings.verdicts import NOT_MEASURED
from kvfidelity.report.formatting import interval, signed

STALE, CORRECTED = "stale", "rerotated"
#: What the paper compares, and where: the larger threshold.
PAPER_POLICY, PAPER_GIST, PAPER_THRESHOLD = "attention_top_99", "gist_2000", "5600tok"
#: The policy that keeps the beginning, and the one that keeps sinks and recent tokens.
BEGINNING, RECENT = "gist", "streaming_llm"


def number(row: Mapping[str, Any] | None, name: str = "", digits: int = 2) -> str:
    """ "+4.58 [+4.10, +5.05]": `mean` with its `low` and `high`, or NAME with NAME_low, NAME_high;
    a missing row was not measured, a missing value is a dash."""
    if row is None:
        return NOT_MEASURED
    value = row[name or "mean"]
    if value is None:
        return signed(None)
    ends = {end: row[f"{name}_{end}" if name else end] for end in ("low", "high")}
    return f"{signed(value, digits)} {interval(ends | {'n_dialogues': row['n_dialogues']}, digits)}"


def change(row: Mapping[str, Any]) -> str:
    """`difference` with its interval."""
    return number({**row, "mean": row["difference"]})


def apart(less: Mapping[str, Any], more: Mapping[str, Any], name: str = "") -> bool | None:
    """Whether the interval of NAME in one row lies wholly below that in the other; None if an end
    is missing."""
    prefix = f"{name}_" if name else ""
    high, low = less[f"{prefix}high"], more[f"{prefix}low"]
    return None if high is None or low is None else bool(high < low)


def cell(run: PublishedRun, policy: str, positions: str, threshold: str) -> dict[str, Any] | None:
    """The row of `policies` of a cell; None if there is not one."""
    rows = run.tables["policies"].filter(policy=policy, positions=positions, threshold=threshold)
    return rows.row(0, named=True) if rows.height == 1 else None


def per_model(title: str, named: Sequence[tuple[str, str]], lead: str = "") -> str:
    """An item of a numbered list: a bold title and a sentence for each model.

    Args:
        named: a model's name, and what is said of it. lead: a sentence about all of them.
    """
    head = f"**{title}.**{' ' if lead else ''}{lead}"
    if not named:
        return f"{head} {NOT_MEASURED.capitalize()}."
    return "\n".join([head, *(f"   - {name}: {text}." for name, text in named)])
