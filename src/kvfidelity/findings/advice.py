"""The recommendation: which policy at which budget, and when the beginning alone is right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

from kvfidelity.findings.published import PublishedRun, of_question
from kvfidelity.findings.verdicts import NOT_MEASURED
from kvfidelity.findings.wording import (
    BEGINNING,
    BUDGET,
    BUDGETS,
    CORRECTED,
    STALE,
    number,
    tokens,
)
from kvfidelity.report.paper_tables import markdown

#: Nats per token by which a recommended policy may lose more than the best: the margin of Q1.
ALLOWED = 0.05
SIZES = (
    "both models have fewer than a billion parameters, so this is no advice for larger ones until "
    "their runs say the same"
)
RULE = (
    f"The rule: with corrected positions, of the policies whose mean loss is within {ALLOWED} nats "
    "of the least, the one that forgets least of the planted facts (least margin lost). With stale "
    "positions, the least loss."
)


def chosen(run: PublishedRun, threshold: str) -> dict[str, Any] | None:
    """The leaderboard's row of the policy that RULE names, with corrected positions."""
    part = run.tables["leaderboard"].filter(positions=CORRECTED, threshold=threshold)
    fit = part.filter(pl.col("mean") <= pl.col("mean").min() + ALLOWED).drop_nulls("margin_lost")
    if fit.is_empty():
        return None
    return fit.sort("margin_lost", "mean", "policy").row(0, named=True)


def least_loss(run: PublishedRun, threshold: str, positions: str) -> dict[str, Any] | None:
    """The policy of the least mean loss."""
    rows = run.tables["policies"].filter(positions=positions, threshold=threshold)
    rows = rows.drop_nulls("mean").sort("mean", "policy")
    return None if rows.is_empty() else rows.row(0, named=True)


def sentence(runs: Sequence[PublishedRun]) -> str:
    """The recommendation in one sentence, with its caveat."""
    found = of_question(list(runs), "budgets", "leaderboard")
    picks = [text for run in found if (text := _pick(run))]
    if not picks:
        return f"**What to use.** {NOT_MEASURED.capitalize()}."
    return (
        f"**What to use.** Correct the positions, then: {'; '.join(picks)}; where positions stay "
        f"stale, {'; '.join(_stale(run) for run in found)}; {SIZES}."
    )


def _pick(run: PublishedRun) -> str:
    rows = [(name, chosen(run, name)) for name in BUDGETS]
    named = [f"{row['policy']} at {tokens(name)}" for name, row in rows if row]
    return f"for {run.name} {' and '.join(named)} of 5,600 tokens" if named else ""


def _stale(run: PublishedRun) -> str:
    row = least_loss(run, BUDGET, STALE)
    if row is None:
        return f"{run.name}: {NOT_MEASURED}"
    what = "the beginning alone" if row["policy"] == BEGINNING else row["policy"]
    return f"{what} loses least for {run.name} ({number(row)} at {tokens(BUDGET)})"


def section(runs: Sequence[PublishedRun]) -> Iterator[str]:
    """The recommendation as a table, with the rule that it follows."""
    yield "## Recommendation\n"
    found = [run for run in of_question(list(runs), "budgets", "leaderboard") if _pick(run)]
    if not found:
        yield f"{NOT_MEASURED.capitalize()}.\n"
        return
    rows = []
    for run in found:
        for threshold in BUDGETS:
            board = run.tables["leaderboard"].filter(positions=CORRECTED, threshold=threshold)
            gist = board.filter(policy=BEGINNING)
            beginning = gist.row(0, named=True) if gist.height else None
            for what, row in (
                ("corrected: use", chosen(run, threshold)),
                ("corrected: the beginning alone", beginning),
                ("stale: the least loss", least_loss(run, threshold, STALE)),
            ):
                if row is not None:
                    forgets = number(row, "margin_lost") if "margin_lost" in row else ""
                    size = str(row["n_dialogues"])
                    cells = [run.name, tokens(threshold), what, row["policy"], number(row)]
                    rows.append([*cells, forgets, size])
    head = ["model", "kept of 5,600", "positions", "policy", "excess NLL", "margin lost"]
    yield markdown([*head, "dialogues"], rows)
    yield f"{RULE} The caveat: {SIZES}.\n"
    yield "\n".join(f"- {run.name}: {_beginning(run)}." for run in found)


def _beginning(run: PublishedRun) -> str:
    """When the beginning alone is right."""
    stale = least_loss(run, BUDGET, STALE)
    corrected = chosen(run, BUDGET)
    parts = []
    if stale is not None:
        right = stale["policy"] == BEGINNING
        parts.append(
            f"the beginning alone is {'' if right else 'not '}the policy of least loss if "
            f"positions stay stale and {tokens(BUDGET)} tokens are kept"
        )
    if corrected is not None:
        right = corrected["policy"] == BEGINNING
        parts.append(f"it is {'' if right else 'not '}the one to use if they are corrected")
    return ", and ".join(parts) or NOT_MEASURED
