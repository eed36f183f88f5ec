"""The answers to the paper's four open questions, one sentence a model, from the tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import polars as pl

from kvfidelity.analysis.predictor_validation import FITTED
from kvfidelity.findings.published import MODEL_NAMES, PublishedRun, of_question
from kvfidelity.findings.verdicts import NOT_MEASURED, verdict
from kvfidelity.findings.wording import (
    CORRECTED,
    PAPER_POLICY,
    RECENT,
    STALE,
    cell,
    change,
    number,
    per_model,
)
from kvfidelity.records.arms import CONTROL, CROSS_ENTROPY, NO_ARM, SKIPS
from kvfidelity.report.disruption import GOAL, GOAL_LEFT_OUT
from kvfidelity.report.open_questions import ALPHA, CONTROLS

MARGIN = 0.05


def balance(run: PublishedRun) -> str:
    """Question 1: is a policy of gist, recency and salient middle better than recency alone?"""
    claims = run.tables["claims"]
    quality, middle = (claims.filter(claim=name) for name in ("Q1-quality", "Q1-middle"))
    if quality.is_empty() or middle.is_empty():
        return NOT_MEASURED
    return (
        f"`hybrid` against `{RECENT}`, at the budgets of this finding: that it loses at most "
        f"{MARGIN} nats per token more is "
        f"{_listed(quality)}; that it forgets less of the middle is {_listed(middle)}"
    )


def _listed(rows: pl.DataFrame) -> str:
    return verdict(rows).replace("; ", " and ")


def training(run: PublishedRun) -> str:
    """Question 2: does training on evicted states help, and more than correct positions do?"""
    for loss, said in (
        ("", ""),
        (f"_{CROSS_ENTROPY}", " on the dataset's replies (cross-entropy)"),
    ):
        if changes := training_changes(run, loss):
            gained, lost, behind = changes
            against = f"{AGAINST[loss]}{_jumps(run, loss)}"
            return (
                f"on these dialogues, with 99% kept by attention, stale positions cost {lost} nats "
                f"per token against rerotated ones; training{said} on evicted states changes that "
                f"loss by {gained} against {against}, and the trained model with stale positions "
                f"loses {behind} against the untrained one with rerotated positions"
            )
    return NOT_MEASURED


#: What a training on evicted states is compared with, by the ending of its arm's name.
AGAINST = {
    "": "the control, whose loss is zero from the start",
    f"_{CROSS_ENTROPY}": "the same training with nothing evicted",
}


def _jumps(run: PublishedRun, loss: str) -> str:
    """What the training on jumps of positions changes, which evicts nothing."""
    rows = run.tables["finetuning"].filter(
        measure="reference_nll",
        policy=PAPER_POLICY,
        positions=STALE,
        arm=f"{SKIPS}{loss}",
        against=f"{CONTROL}{loss}",
        against_positions=STALE,
    )
    if rows.height != 1:
        return ""
    found = change(rows.row(0, named=True))
    return f" (training on jumps of positions with nothing evicted by {found})"


def training_changes(run: PublishedRun, loss: str = "") -> tuple[str, ...]:
    """In the paper's setting: what training changes of the loss, what stale positions cost without
    it, and what the trained model still loses; empty if one of these was not measured.

    Args:
        loss: the ending of the arms' names that says it; none for KL.
    """
    rows = run.tables["finetuning"].filter(measure="reference_nll", policy=PAPER_POLICY)
    stale = rows.filter(positions=STALE)
    found = [
        stale.filter(arm=arm, against=against, against_positions=mode)
        for arm, against, mode in (
            (f"{STALE}{loss}", f"{CONTROL}{loss}", STALE),
            (NO_ARM, NO_ARM, CORRECTED),
            (f"{STALE}{loss}", NO_ARM, CORRECTED),
        )
    ]
    if any(part.height != 1 for part in found):
        return ()
    return tuple(change(part.row(0, named=True)) for part in found)


def disruption(run: PublishedRun) -> str:
    """Question 3: does a measure of disruption order losses, and is it worth a penalty?"""
    rows = run.tables["predictor_validation"].filter(metric=FITTED).drop_nulls("correlation")
    whole, left = rows.filter(factor="none"), rows.filter(cells="only")
    if whole.height != 1 or left.is_empty():
        return NOT_MEASURED
    over = number(whole.row(0, named=True) | {"mean": whole["correlation"][0]})
    least = left.sort("correlation").row(0, named=True)
    text = (
        f"the fitted measure orders cells by their loss with a rank correlation of {over}, where "
        f"{GOAL} was the goal, and with {number(least | {'mean': least['correlation']})} in the "
        f"worst group that it was not fitted on ({least['factor']} {least['group']}), where "
        f"{GOAL_LEFT_OUT} was{_simpler(run)}"
    )
    penalties = [
        f"{number(row)} with {row['positions']} positions"
        for row in run.tables["penalties"].sort("positions", descending=True).to_dicts()
    ]
    if penalties:
        text += f"; as a penalty in eviction it changes the loss by {' and '.join(penalties)}"
        text += _still_lost(run)
    return text


def _simpler(run: PublishedRun) -> str:
    """The strongest measure that nothing was fitted for, over the same cells."""
    rows = run.tables["predictor_validation"].filter(factor="none").drop_nulls("correlation")
    rows = rows.filter(pl.col("metric") != FITTED).sort(pl.col("correlation").abs())
    if rows.is_empty():
        return ""
    row = rows.row(-1, named=True)
    return (
        f"; the strongest measure that needs no fit, `{row['metric']}`, reaches "
        f"{number(row | {'mean': row['correlation']})}"
    )


def _still_lost(run: PublishedRun) -> str:
    """What a penalty leaves of the loss of stale positions, against rerotated ones without it."""
    rows = run.tables["penalties"].filter(positions=STALE)
    if rows.height != 1:
        return ""
    row = rows.row(0, named=True)
    left = cell(run, row["policy"], STALE, row["threshold"])
    plain = cell(run, row["against"], CORRECTED, row["threshold"])
    if left is None or plain is None:
        return ""
    return (
        f"; with it stale positions still cost {number(left)}, rerotated ones without it "
        f"{number(plain)}"
    )


def healing(run: PublishedRun) -> str:
    """Question 4: does saying that something is gone, or closing the gap, lower the loss?"""
    rows = run.tables["healings"].drop_nulls("p_holm")
    again = rows.filter(healing="refresh")
    tried = rows.filter(~pl.col("healing").is_in(["refresh", *CONTROLS]))
    if tried.is_empty():
        return NOT_MEASURED
    fewer, more = _sure(tried)
    text = (
        f"over {tried.height} notices, ghost slots and other healings, each of a policy, a "
        f"position mode and a budget, the loss right after an eviction is surely lower with "
        f"{fewer} and surely higher with {more} (p below {ALPHA} by Holm's method over all of them)"
    )
    if again.height:
        fewer, more = _sure(again)
        alone = run.tables["claims"].filter(claim="Q4-refresh")
        text += (
            f"; reading the kept text again from scratch surely lowers it in {fewer} of "
            f"{again.height} cells and surely raises it in {more} (of "
            f"`{RECENT}` alone, not adjusted: {_listed(alone)})"
        )
    notice = run.tables["claims"].filter(claim="Q4-notice")
    if notice.height:
        text += f"; that a notice helps no more than neutral text is {verdict(notice)}"
    return text


def _sure(rows: pl.DataFrame) -> tuple[int, int]:
    """How many surely lower and surely raise the loss."""
    sure = rows.filter(pl.col("p_holm") < ALPHA)
    return (
        sure.filter(pl.col("difference") < 0).height,
        sure.filter(pl.col("difference") > 0).height,
    )


#: Each open question's key in the plan, its title and what answers it.
OPEN: tuple[tuple[str, str, Callable[[PublishedRun], str]], ...] = (
    ("question1", "A policy of gist, recency and the salient middle", balance),
    ("question2", "Fine-tuning a model to tolerate disruption", training),
    ("question3", "A measure of disruption", disruption),
    ("question4", "Healing", healing),
)


def open_answers(runs: Sequence[PublishedRun]) -> list[str]:
    """An item of a numbered list for each open question, with each model of the runs."""
    models = {run.model: MODEL_NAMES.get(run.model, run.model) for run in runs}
    items = []
    for key, title, answer in OPEN:
        found: dict[str, tuple[str, str]] = {}
        for run in of_question(list(runs), key):  # the first finding of a question answers it
            found.setdefault(run.model, (run.name, answer(run)))
        named = [found.get(model, (name, NOT_MEASURED)) for model, name in models.items()]
        items.append(per_model(title, named if found else []))
    return items
