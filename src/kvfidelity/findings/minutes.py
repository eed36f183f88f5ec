"""How long published runs took: from recorded times alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime

import polars as pl

from kvfidelity.findings.plan import MODELS
from kvfidelity.findings.published import MODEL_NAMES, PublishedRun
from kvfidelity.findings.verdicts import NOT_MEASURED
from kvfidelity.report.formatting import decimal
from kvfidelity.report.paper_tables import markdown

#: Minutes of one GPU that all findings of both models may take.
ALLOWED_MIN = 60
#: The rule whose jobs share a process on the GPU, and those that have it for themselves.
GENERATE, TRAINING, ALONE_ON_GPU = "generate", "finetune_model", ("score_corruptions",)


def gpu_minutes(run: PublishedRun) -> float | None:
    """Minutes of the GPU: from the start of the first dialogue, or training, to the end of the last
    dialogue, plus what other jobs on it took. Where that start was not recorded, it is the end of
    the first dialogue less the longest one, and trainings are added, so the minutes are at most
    these. The time of a run on several GPUs counts for each of them.

    None if a time was not recorded.
    """
    jobs, last = run.tables["jobs"], run.facts["last_made"]
    first, earlier = run.facts.get("first_started"), 0.0
    if first is None:
        first, longest = run.facts["first_made"], jobs.filter(rule=GENERATE)["wall_s_max"].max()
        if not isinstance(longest, float):
            return None
        earlier = longest
    if None in (first, last):
        return None
    trained = run.facts.get("first_training_started")
    between = datetime.fromisoformat(last) - datetime.fromisoformat(min(first, trained or first))
    added = ALONE_ON_GPU if trained else (*ALONE_ON_GPU, TRAINING)
    alone = float(jobs.filter(pl.col("rule").is_in(added))["wall_s"].sum())
    return (gpus(run) * (between.total_seconds() + earlier) + alone) / 60


def gpus(run: PublishedRun) -> int:
    """How many GPUs the run's command gave it."""
    given = re.search(r"\bgpu=(\d+)", run.facts["command"])
    return int(given[1]) if given else 1


def shared(run: PublishedRun) -> bool:
    """Whether other work ran on its GPU or cores; runs published before this was asked had them
    for themselves."""
    return bool(run.facts.get("shared", False))


def minutes_text(run: PublishedRun, minutes: Callable[[PublishedRun], float | None]) -> str:
    """ "5.9", or "at most 5.9" of a run that shared its machine."""
    taken = minutes(run)
    bound = taken is not None and shared(run)
    return f"at most {decimal(taken, 1)}" if bound else decimal(taken, 1)


def other_minutes(run: PublishedRun) -> float | None:
    """Minutes of all other jobs, one after the other: fetching, extracting dialogues, tables,
    figures. None if they were not recorded."""
    jobs = run.tables["jobs"]
    if jobs.is_empty():
        return None
    on_gpu = (GENERATE, TRAINING, *ALONE_ON_GPU)
    return float(jobs.filter(~pl.col("rule").is_in(on_gpu))["wall_s"].sum()) / 60


def minutes_of_models(runs: Sequence[PublishedRun]) -> str:
    """A row per model and one of all: measured findings, minutes on the GPU and others."""
    models = [*MODELS, *sorted({run.model for run in runs} - set(MODELS))]
    rows = [
        _row(MODEL_NAMES.get(model, model), [run for run in runs if run.model == model])
        for model in models
    ]
    head = ["model", "findings measured", "GPU, minutes", "other jobs, minutes"]
    table = markdown(head, [*rows, _row(f"all, of {ALLOWED_MIN} GPU minutes", runs)])
    known = sum(one for run in runs if (one := gpu_minutes(run)) is not None)
    if known <= ALLOWED_MIN or not any(map(shared, runs)):
        return table
    return (
        f"{table}\nThe sum is an upper bound, so it does not show whether one GPU makes all of "
        f"them within {ALLOWED_MIN} minutes.\n"
    )


def _row(name: str, runs: Sequence[PublishedRun]) -> list[str]:
    if not runs:
        return [name, "0", NOT_MEASURED, NOT_MEASURED]
    sums = []
    for minutes in (gpu_minutes, other_minutes):
        known = [one for run in runs if (one := minutes(run)) is not None]
        lacking = len(runs) - len(known)
        text = decimal(sum(known), 1) if known else "not recorded"
        if known and any(shared(run) for run in runs):
            text = f"at most {text}"
        sums.append(f"{text}, without {lacking} not recorded" if known and lacking else text)
    return [name, str(len(runs)), *sums]
