"""A rough estimate of what a configuration will take: jobs, compute, judging."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvfidelity.judges.requests import Price
from kvfidelity.pipeline.rule_params import is_pairwise, judge_kind, judge_test_pairs
from kvfidelity.pipeline.settings import config_schema
from kvfidelity.records.grid import cells, run_keys

#: Tokens a second through a whole job. The first is the default run's order of magnitude on two
#: CPU cores (135M weights); the second, for 8B weights on one large GPU, is a guess.
CPU_TOKENS_PER_S, GPU_TOKENS_PER_S = 100.0, 2000.0
#: A verdict's answer, and its prompt where no history is shown, for the price before the run.
ANSWER_TOKENS = 150
PROMPT_TOKENS = {"blind": 700}
#: Kinds of replies in a judge's test: good ones, corruptions, and those that address the judge.
CORRUPTION_KINDS = 8
DEFAULT_TURNS = 12


def plan_message(settings: Mapping[str, Any]) -> str:
    """A few lines for a person who is about to start a run."""
    count = len(run_keys(settings))
    tokens = sum(
        settings["datasets"][cell.dataset]["count"]
        * _dialogue_tokens(settings["datasets"][cell.dataset])
        for cell in cells(settings)
    )
    gpu = any(entry["device"].startswith("cuda") for entry in settings["models"].values())
    speed, unit = (GPU_TOKENS_PER_S, "GPU") if gpu else (CPU_TOKENS_PER_S, "CPU")
    share = 0.35 if settings["session"]["share_prefix"] else 1.0
    hours = tokens * share / speed / 3600
    lines = [
        f"{len(cells(settings))} cells, {count} dialogue runs, about {tokens:,} tokens through a "
        f"model: very roughly {hours:.1f} {unit} hours"
    ]
    for name in settings["judging"]:
        if judge_kind(settings, name).needs_network:
            lines.append(_judging_estimate(settings, name, count))
    return "\n".join(lines)


def _judging_estimate(settings: Mapping[str, Any], judge: str, count: int) -> str:
    """Cost of a judge's verdicts, with those of its test."""
    entry, session = settings["judges"][judge], settings["session"]
    turns = session["max_turns"] or DEFAULT_TURNS
    if session["replies"] == "reference":
        turns = min(turns, session["own_reply_turns"] or turns) if session["max_new_tokens"] else 0
    reliability = settings["reliability"]
    test_verdicts = (
        len(judge_test_pairs(settings, judge))
        * reliability["replies"]
        * CORRUPTION_KINDS
        * reliability["repeats"]
    )
    verdicts = count * turns
    if is_pairwise(entry):  # in both orders; nothing is repeated, and nothing addresses the judge
        verdicts, test_verdicts = (
            2 * verdicts,
            2
            * test_verdicts
            // reliability["repeats"]
            * (CORRUPTION_KINDS - 2)
            // CORRUPTION_KINDS,
        )
    tokens = verdicts * _prompt_tokens(settings, entry["rubric"])
    tokens += test_verdicts * PROMPT_TOKENS["blind"]
    answer_tokens = (verdicts + test_verdicts) * ANSWER_TOKENS
    line = (
        f"judge {judge}: about {verdicts:,} answers and {test_verdicts:,} to test it, about "
        f"{tokens + answer_tokens:,} tokens, "
    )
    price = settings["prices"].get(entry.get("model"))
    if price is None:
        return line + f"at a price that is not known: `prices` has no {entry.get('model')}"
    usd = Price(**price).usd(tokens, answer_tokens, batch=entry.get("batch", False))
    return line + f"very roughly ${usd:,.2f} at the prices in the config"


def _prompt_tokens(settings: Mapping[str, Any], rubric: str) -> int:
    """Of a verdict on a run's reply; one that sees the history reads half a dialogue."""
    if rubric in PROMPT_TOKENS:
        return PROMPT_TOKENS[rubric]
    lengths = [_dialogue_tokens(settings["datasets"][cell.dataset]) for cell in cells(settings)]
    return PROMPT_TOKENS["blind"] + sum(lengths) // (2 * len(lengths))


def _dialogue_tokens(dataset: Mapping[str, Any]) -> int:
    select = dataset.get("select", {})
    defaults = config_schema()["$defs"]["dataset"]["properties"]["select"]["properties"]
    low = select.get("min_tokens", defaults["min_tokens"]["default"])
    return int(select.get("max_tokens") or max(low, 2000) * 1.3)
