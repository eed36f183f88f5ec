"""What the published tables say of each claim, per model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from kvfidelity.analysis.claims import Claim
from kvfidelity.analysis.decisions import CONTRADICTED, NOT_TESTED, SUPPORTED, UNDECIDED
from kvfidelity.findings.plan import MODELS
from kvfidelity.findings.published import MODEL_NAMES, PublishedRun
from kvfidelity.report.formatting import count, interval, signed
from kvfidelity.report.paper_tables import markdown, share_of

NOT_MEASURED = "not measured yet"
#: Scores of a judge that is asked, and what a claim of them is without one.
ASKED, NO_JUDGE = "score.gpt", "not measured: its judge, a language model, was not asked"
#: What claims are grouped by: how their source begins, and what a reader calls them.
GROUPS = {
    "arXiv": "The paper's claims",
    "this project": "Predictions of this project",
    "open question 1": "Open question 1: a policy of gist, recency and the salient middle",
    "open question 2": "Open question 2: fine-tuning",
    "open question 3": "Open question 3: a measure of disruption",
    "open question 4": "Open question 4: healing",
}
#: A prediction of the first version, of a measure that P8's replaced. No claim of a run, since any
#: run of open question 3 has its number in table `predictors`.
P5 = (
    "RoPE phase distortion orders policies and position modes by their loss: a rank correlation "
    "above 0.5. (The measure of P8 replaced it.)"
)
P5_METRIC, P5_MARGIN = "phase_distortion", 0.5


def claim_rows(runs: Sequence[PublishedRun], model: str) -> pl.DataFrame:
    """The tested rows of all claims of one model, with the finding that each is from."""
    parts = [
        run.tables["claims"]
        .filter(pl.col("decision") != NOT_TESTED)
        .with_columns(finding=pl.lit(run.finding.name), label=pl.lit(run.facts["label"]))
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
        extent = _extent(low, high, _share(part.row(0, named=True)))  # type: ignore[arg-type]
        parts.append(f"{decision} in {number} of {count(rows.height, 'cell')}{extent}")
    return "; ".join(parts)


def _share(row: Mapping[str, Any]) -> str:
    """What an estimate is a share of; tables of before that was asked lack it."""
    return share_of(row) if row.get("margin_of") else ""


def _extent(low: float | None, high: float | None, share: str) -> str:
    if low is None or high is None:
        return ""
    ends = dict.fromkeys(signed(value, 2) for value in (low, high))
    return f" ({' to '.join(ends)}{share})"


def _estimate(row: Mapping[str, Any]) -> str:
    if row["estimate"] is None:
        return "no estimate"
    return (
        f"{signed(row['estimate'], 2)} {interval(row, 2)}{_stricter(row)}{_share(row)}, "
        f"{count(row['n_dialogues'], 'dialogue')}{_label(row)}"
    )


def _stricter(row: Mapping[str, Any]) -> str:
    """The margin of an undecided claim, and the interval that decided where the shown one would
    have said otherwise."""
    margin = row.get("margin")
    if row.get("decision") != UNDECIDED or not margin:
        return ""
    text = f", margin {signed(margin, 2)}"
    if row["low"] is None or row["low"] <= margin <= row["high"] or row["strict_low"] is None:
        return text
    ends = {end: row[f"strict_{end}"] for end in ("low", "high")}
    return f", 99% {interval({**row, **ends}, 2)}{text}"


def _label(row: Mapping[str, Any]) -> str:
    return f" ({row['label']})" if row.get("label") else ""


def verdict_tables(runs: Sequence[PublishedRun], known: Sequence[Claim]) -> Iterator[str]:
    """A table for each group of claims: a column for each model, measured or not.

    Raises:
        ValueError: a claim's source is of no group.
    """
    models = [*MODELS, *sorted({run.model for run in runs} - set(MODELS))]
    rows_of = {model: claim_rows(runs, model) for model in models}
    shown: dict[str, list[list[str]]] = {title: [] for title in GROUPS.values()}
    for claim in known:
        untested = NO_JUDGE if claim.quantity.startswith(ASKED) else NOT_MEASURED
        found = [verdict(rows_of[model].filter(claim=claim.claim), untested) for model in models]
        row = [claim.claim, " ".join(claim.statement.split()), *found]
        shown[_group(claim)].append(row)
    predictions = shown[GROUPS["this project"]]
    predictions.append(["P5", P5, *(_phase_distortion(runs, model) for model in models)])
    predictions.sort(key=lambda row: row[0])
    head = ["claim", "statement", *(MODEL_NAMES.get(model, model) for model in models)]
    for title, rows in shown.items():
        yield f"**{title}**\n"
        yield markdown(head, rows)


def _group(claim: Claim) -> str:
    for start, title in GROUPS.items():
        if re.match(rf"{start}\b", claim.source):
            return title
    raise ValueError(f"claim {claim.claim}: its source {claim.source!r} is of no group of GROUPS")


def _phase_distortion(runs: Sequence[PublishedRun], model: str) -> str:
    """P5 from table `predictors`, decided as the interval lies to the margin."""
    for run in runs:
        rows = run.tables["predictors"].filter(metric=P5_METRIC).drop_nulls("low")
        if run.model == model and rows.height:
            row = rows.row(0, named=True)
            decision = UNDECIDED
            if row["low"] > P5_MARGIN:
                decision = SUPPORTED
            elif row["high"] < P5_MARGIN:
                decision = CONTRADICTED
            return f"{decision}: {_estimate(row | {'estimate': row['correlation']})}"
    return NOT_MEASURED
