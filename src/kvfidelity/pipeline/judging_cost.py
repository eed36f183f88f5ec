"""What a judge that asks a paid model will cost: answers, tokens, dollars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvfidelity.judges.corruption_kinds import KINDS, SINGLE
from kvfidelity.judges.requests import Price
from kvfidelity.judges.rubric import WITH_HISTORY
from kvfidelity.pipeline.resources import own_replies
from kvfidelity.pipeline.rule_params import is_pairwise, judge_test_pairs

#: Tokens of a verdict's answer, and of its prompt where no history is shown.
ANSWER_TOKENS, PROMPT_TOKENS = 150, 700


def judging_estimate(settings: Mapping[str, Any], judge: str, dialogues: Sequence[int]) -> str:
    """One line on a judge's verdicts, with those of its test.

    Args:
        settings: the checked configuration.
        dialogues: tokens of each run's dialogue.
    """
    entry, reliability = settings["judges"][judge], settings["reliability"]
    answers = len(dialogues) * own_replies(settings["session"])
    replies = len(judge_test_pairs(settings, judge)) * reliability["replies"]
    if is_pairwise(entry):  # each pair in both orders; no request is repeated
        answers, test_answers = 2 * answers, 2 * replies * len(KINDS)
    else:
        test_answers = replies * len(SINGLE) * reliability["repeats"]
    prompt_tokens = PROMPT_TOKENS
    if entry["rubric"] in WITH_HISTORY and dialogues:  # it reads half a dialogue on average
        prompt_tokens += sum(dialogues) // (2 * len(dialogues))
    tokens = answers * prompt_tokens + test_answers * PROMPT_TOKENS
    answer_tokens = (answers + test_answers) * ANSWER_TOKENS
    line = (
        f"judge {judge}: about {answers:,} answers and {test_answers:,} to test it, about "
        f"{tokens + answer_tokens:,} tokens, "
    )
    price = settings["prices"].get(entry.get("model"))
    if price is None:
        return line + f"at a price that is not known: `prices` has no {entry.get('model')}"
    usd = Price(**price).usd(tokens, answer_tokens, batch=entry.get("batch", False))
    return line + f"very roughly ${usd:,.2f} at the prices in the config"
