"""The answers of the page's sections: sentences with numbers of one run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from kvfidelity.analysis.decisions import NOT_TESTED
from kvfidelity.findings.open_answers import OPEN, disruption
from kvfidelity.findings.page_tables import MAIN
from kvfidelity.findings.published import PublishedRun
from kvfidelity.findings.sentences import budgets, own_replies, paper, recall
from kvfidelity.findings.sources import MODES, RECALL, Source, kept_tokens
from kvfidelity.findings.wording import (
    PAPER_POLICY,
    number,
)
from kvfidelity.report.disruption import disruption_answers
from kvfidelity.report.formatting import signed
from kvfidelity.report.open_questions import open_questions

#: The kept blocks of `next_checks`, as a reader calls them.
BLOCKS = {
    "block_first": "the first",
    "block_middle": "the middle",
    "block_last": "the last",
    "block_last_with_sinks": "the last with four sinks",
}


def open_question(run: PublishedRun, wanted: int) -> list[str]:
    """The answer to an open question, then the report's own sentences on it, a list for each
    setting; without those of what a setting does not test. What the paper did comes first, then
    the setting with most sentences."""
    found = {
        _setting(run, answer["setting"]): kept
        for entry in open_questions(run.tables)
        if entry["number"] == wanted
        for answer in entry["answers"]
        if (kept := [text for text in answer["sentences"] if NOT_TESTED not in text])
    }
    ordered = sorted(
        found.items(),
        key=lambda one: (one[0] != PAPER_SETTING, -len(one[1]), -_first_number(one[0])),
    )
    (short,) = (answer for key, _, answer in OPEN if key == f"question{wanted}")
    details = [_listed(f"{setting}:", texts) for setting, texts in ordered]
    return [sentence(short(run)), *details]


def _first_number(text: str) -> int:
    found = re.match(r"[\d,]+", text)
    return int(found[0].replace(",", "")) if found else 0


def _listed(lead: str, texts: Sequence[str]) -> str:
    """A lead and a list below it, as one item of a list."""
    return "\n".join([lead, *(f"  - {text}" for text in texts)])


#: The setting of question 2 that is the paper's.
PAPER_SETTING = "99% kept by attention, at the trigger of the paper"


def _setting(run: PublishedRun, setting: str) -> str:
    """ "2,000 of 5,600 tokens kept by `h2o`", of "smollm2-135m, test, h2o, half"; without a policy
    of "smollm2-135m, test, third" and of "smollm2-135m, test, 2000 cached tokens"; other settings
    as they are, without the model."""
    rest = setting.removeprefix(f"{run.model}, ")
    _, *policy, last = rest.split(", ")
    if policy == [PAPER_POLICY]:
        return PAPER_SETTING
    size = kept_tokens(run).get(last)
    if size is None and (number := re.fullmatch(r"(\d+) cached tokens", last)):
        size = f"{int(number[1]):,}"
    by = "".join(f" by `{name}`" for name in policy)
    return f"{size} of 5,600 tokens kept{by}" if size else rest


def disruption_answer(run: PublishedRun) -> list[str]:
    tables = run.tables
    answers = disruption_answers(
        tables["predictor_validation"], tables["penalties"], tables["policies"]
    )
    several = len(answers) > 1
    return [
        sentence(disruption(run)),
        *(
            f"{entry['dataset']}: {text}" if several else text
            for entry in answers
            for text in entry["sentences"]
        ),
    ]


def paper_answers(run: PublishedRun) -> list[str]:
    return [sentence(paper(run))] if run.finding.name == "paper_reference" else own_replies(run)


def sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def budget_answers(run: PublishedRun) -> list[str]:
    modes = Source(run, MODES["equal_budgets"])
    return [sentence(budgets(modes)), sentence(recall(Source(run, RECALL["equal_budgets"])))]


def check_answers(run: PublishedRun) -> list[str]:
    """How far aggregations of scores differ, and what each kept block loses."""
    if run.finding.name == "locomo":
        places = (MAIN,)
        return [sentence(budgets(Source(run, places))), sentence(recall(Source(run, places)))]
    texts = []
    rows = run.tables["policies"]
    for mode in ("stale", "rerotated"):
        part = rows.filter(positions=mode).drop_nulls("mean")
        means = {row["policy"]: row for row in part.to_dicts()}
        ways = [name for name in means if name.startswith(("latest_", "accumulated_"))]
        if ways:
            ends = [f(means[name]["mean"] for name in ways) for f in (min, max)]
            texts.append(
                f"With {mode} positions the {len(ways)} ways to combine attention lose "
                f"{signed(ends[0], 2)} to {signed(ends[1], 2)} nats per token"
                f"{_sums(means, ways)}."
            )
        blocks = [name for name in BLOCKS if name in means]
        if blocks:
            shown = ", ".join(f"{BLOCKS[name]} {number(means[name])}" for name in blocks)
            texts.append(f"With {mode} positions the kept block loses: {shown}.")
    return texts


def _sums(means: Mapping[str, Mapping[str, Any]], ways: Sequence[str]) -> str:
    """Whether sums rank slots as means do, as they must."""
    pairs = [
        (means[name]["mean"], means[name.replace("_sum", "_mean")]["mean"])
        for name in ways
        if name.endswith("_sum") and name.replace("_sum", "_mean") in means
    ]
    if not pairs:
        return ""
    most = max(abs(one - other) for one, other in pairs)
    return f"; sums differ from means by at most {most:.4f}"
