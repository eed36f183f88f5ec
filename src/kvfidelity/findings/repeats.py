"""How far two independent runs agree: cells that two findings have under different names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvfidelity.findings.published import PublishedRun
from kvfidelity.findings.wording import cell
from kvfidelity.report.formatting import count

#: Policies of `equal_budgets` and what they are called in `next_checks`, with the same dialogues,
#: questions, threshold and target.
SAME = {
    "streaming_llm": "block_last_with_sinks",
    "gist": "block_first",
    "attention_top": "accumulated_mean",
}
MODES = ("stale", "rerotated")
THRESHOLD = "2000tok"


def differences(runs: Sequence[PublishedRun], model: str) -> list[float]:
    """Absolute differences of the mean losses of cells that were run twice, for one model."""
    by_name = {run.finding.name: run for run in runs if run.model == model}
    if not {"equal_budgets", "next_checks"} <= set(by_name):
        return []
    found = []
    for one, other in SAME.items():
        for mode in MODES:
            first = cell(by_name["equal_budgets"], one, mode, THRESHOLD)
            second = cell(by_name["next_checks"], other, mode, THRESHOLD)
            if first and second and None not in (first["mean"], second["mean"]):
                found.append(abs(first["mean"] - second["mean"]))
    return found


def repeats(runs: Sequence[PublishedRun]) -> Iterator[str]:
    """A sentence for each model that has cells that were run twice."""
    for model in dict.fromkeys(run.model for run in runs):
        found = differences(runs, model)
        if found:
            name = next(run.name for run in runs if run.model == model)
            yield (
                f"{name}: {count(len(found), 'cell')} of `equal_budgets` and `next_checks` are the "
                f"same, computed in two independent runs; their mean losses differ by at most "
                f"{max(found):.0e} nats per token, where two digits are shown."
            )
