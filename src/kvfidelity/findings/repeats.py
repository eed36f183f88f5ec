"""How far independent runs agree: a second run of a finding, and cells that two findings have
under different names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvfidelity.findings.published import PublishedRun
from kvfidelity.findings.repetition import repetition_rows, repetition_sentences
from kvfidelity.findings.wording import cell
from kvfidelity.report.formatting import count
from kvfidelity.report.paper_tables import markdown

HEAD = ["shown number", "numbers", "shown differently", "largest difference", "mean difference"]

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


def repetitions(run: PublishedRun, runs: Sequence[PublishedRun]) -> Iterator[str]:
    """How far independent runs of what a finding measures agree, with the numbers of a second run
    of it, and those of cells that another finding has too.

    Args:
        run: the finding's. runs: all published ones.
    """
    if run.finding.name != "equal_budgets":
        return
    rows = run.tables["repetition"]
    if run.repetition is not None and rows.height:
        yield "\n".join(repetition_sentences(rows, run.repetition)) + "\n"
        yield markdown(HEAD, repetition_rows(rows))
    found = differences(runs, run.model)
    if found:
        yield (
            f"`next_checks`, another run, has {count(len(found), 'cell')} of this one too; their "
            f"mean losses differ by at most {max(found):.0e} nats per token, where two digits are "
            "shown.\n"
        )
