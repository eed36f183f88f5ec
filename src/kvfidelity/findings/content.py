"""The questions of the page: what each is about, its answers, its tables, what it leaves open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvfidelity.findings.answers import (
    budget_answers,
    check_answers,
    disruption_answer,
    open_question,
    paper_answers,
    sentence,
)
from kvfidelity.findings.page_tables import (
    Shown,
    arms,
    arms_asked,
    balance,
    by_depth,
    forgetting,
    healings,
    losses,
    overshoot,
    own_replies_table,
    penalties,
    summary,
    timing,
    verdict_means,
    window_changes,
)
from kvfidelity.findings.published import PublishedRun
from kvfidelity.findings.sentences import cost, window_answers


@dataclass(frozen=True)
class Question:
    """A section of the page.

    Attributes:
        key: of `plan.Finding.question`.
        about: what was run.
        answers: sentences with numbers of a run.
        tables: its tables.
        not_shown: what the section does not show.
    """

    key: str
    title: str
    about: str
    answers: Callable[[PublishedRun], list[str]]
    tables: Callable[[PublishedRun], list[Shown]]
    not_shown: str


def _only(*tables: Callable[[PublishedRun], Shown]) -> Callable[[PublishedRun], list[Shown]]:
    return lambda run: [table(run) for table in tables]


def _check_tables(run: PublishedRun) -> list[Shown]:
    # LoCoMo has questions of its own, which no planted fact answers.
    own = [by_depth(run)] if run.finding.name == "locomo" else []
    return [summary(run), *own]


def _paper_tables(run: PublishedRun) -> list[Shown]:
    if run.finding.name == "paper_reference":
        return [losses(run)]
    return [own_replies_table(run), verdict_means(run), overshoot(run)]


QUESTIONS: Sequence[Question] = (
    Question(
        "paper",
        "1. The paper's setting",
        "Trigger `paper`, thresholds of 4,800 and 5,600 tokens, 99% kept by the latest attention, "
        "or the first 2,000 tokens; once with the dataset's replies, once with own replies of at "
        "most 128 tokens (the paper: 256).\n",
        paper_answers,
        _paper_tables,
        "Llama-3-8B-Instruct, and the verdicts of a language model: own replies are judged by a "
        "formula and by text measures, which see ruin but not subtle faults. The thresholds are "
        "the paper's in tokens, not in MB.",
    ),
    Question(
        "budgets",
        "2. Equal budgets",
        "5,600 cached tokens are cut to 2,000 or 1,000 before a turn, by ten policies in three "
        "position modes; two facts are planted at each of three depths and asked for after the "
        "last turn.\n",
        budget_answers,
        _only(summary, losses, forgetting, by_depth),
        "Budgets other than these (2,800 tokens are kept by two policies only), several evictions "
        "after each other at other sizes, and "
        "whether the order of policies holds for larger models, other languages or code.",
    ),
    Question(
        "window",
        "3. Through the trained window",
        "Nothing evicted up to 1.5 trained windows, against a kept beginning, and against sinks "
        "and recent tokens whose positions stay within the window (C1's control).\n",
        window_answers,
        _only(window_changes, losses),
        "Where conversations are joined (`through_window_joined`), what follows a seam owes "
        "nothing to what precedes it. A model with a longer window than its training in practice "
        "used may degrade earlier or later.",
    ),
    Question(
        "checks",
        "4. The paper's next checks",
        "How attention is combined over heads and layers (mean, max, sum; the latest forward or "
        "accumulated), which contiguous block is kept (first, middle, last), 5,600 tokens to "
        "2,000; and another dialogue set (LoCoMo), whose data the user fetches.\n",
        check_answers,
        _check_tables,
        "Other aggregations, such as per head, and blocks of other sizes. Of LoCoMo only the first "
        "turns are used, whose tokens stay inside a trained window of 8,192.",
    ),
    Question(
        "question1",
        "5. Open question 1: gist, recency and the salient middle",
        "One policy, `hybrid`, keeps the beginning, recent tokens and salient spans of the "
        "middle; its parts are taken away one by one. 5,600 cached tokens are cut to four sizes.\n",
        lambda run: open_question(run, 1),
        _only(balance),
        "Facts other than planted ones, and shares of the budget other than those of the "
        "configuration.",
    ),
    Question(
        "question2",
        "6. Open question 2: fine-tuning",
        "Adapters are trained on evicted states, on dialogues of the other half, and evaluated "
        "under policies that no training showed ([finetuning.md](finetuning.md)).\n",
        lambda run: open_question(run, 2),
        _only(arms, arms_asked),
        "Larger models, longer trainings, and other kinds of adapters. Intervals are over "
        "dialogues, with trainings averaged within each: they do not say how far other seeds "
        "would differ. By KL "
        "the control's target is the model itself, so it hardly moves; the pair trained by "
        "cross-entropy has a control that learns.",
    ),
    Question(
        "question3",
        "7. Open question 3: a measure of disruption",
        "Does what an eviction changes in attention order cells by their loss, and is it worth a "
        "penalty in eviction? 5,600 cached tokens are cut before a turn (threshold `turn`) or "
        "after "
        "a prompt (`prompt`), mostly to 2,000, in several position modes; `shifted+64` is "
        "`original` with the next position 64 too far on.\n",
        disruption_answer,
        _only(losses, penalties),
        "A cause: cells of a turn share kept tokens, so a correlation is an association.",
    ),
    Question(
        "question4",
        "8. Open question 4: healing",
        "The model is told about the gap, or the gap is closed, right after an eviction of 5,600 "
        "cached tokens, mostly to 2,000. In the table `without` is the loss where nothing is done. "
        "What each healing does: [healing.md](healing.md).\n",
        lambda run: open_question(run, 4),
        _only(healings),
        "Longer lasting effects: the measure is the first 32 tokens after an eviction.",
    ),
    Question(
        "cost",
        "9. What it costs",
        "Single runs, one at a time on one GPU, own replies of at most 32 tokens: bytes, seconds, "
        "milliseconds of an eviction. Turns from a dialogue's first eviction on.\n",
        lambda run: [sentence(cost(run))],
        _only(timing),
        "Serving many requests at once, and the engines that do (vLLM, SGLang): this is one "
        "sequence in PyTorch. Models of this size are bound by the processor that starts kernels, "
        "so a smaller cache hardly shows in seconds.",
    ),
)
