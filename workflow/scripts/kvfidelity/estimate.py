"""What a configuration will take: jobs, compute, judging. Rough, and said to be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvfidelity.grid import cells, runs
from kvfidelity.settings import config_schema

#: Tokens a second through a whole job. The first is the default run's order of magnitude on two
#: CPU cores (135M weights); the second, for 8B weights on one large GPU, is a guess.
CPU_TOKENS_PER_S, GPU_TOKENS_PER_S = 100.0, 2000.0
#: A verdict's prompt and answer, for the price before the run.
PROMPT_TOKENS, ANSWER_TOKENS = 1500, 150
TURNS_GUESS = 12


def plan_message(settings: Mapping[str, Any]) -> str:
    """A few lines for a person who is about to start a run."""
    count = len(runs(settings))
    tokens = sum(
        settings["datasets"][cell.dataset]["count"] * _tokens(settings["datasets"][cell.dataset])
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
        entry = settings["judges"][name]
        if entry["kind"] == "offline":
            continue
        turns = settings["session"]["own_reply_turns"] or TURNS_GUESS
        prices = entry.get("prices", {})
        each = (
            prices.get("input", 0) * PROMPT_TOKENS + prices.get("output", 0) * ANSWER_TOKENS
        ) / 1e6
        lines.append(
            f"judge {name}: about {count * turns:,} verdicts, very roughly "
            f"${count * turns * each:,.2f} at the prices in the config"
        )
    return "\n".join(lines)


def _tokens(dataset: Mapping[str, Any]) -> int:
    select = dataset.get("select", {})
    defaults = config_schema()["$defs"]["dataset"]["properties"]["select"]["properties"]
    low = select.get("min_tokens", defaults["min_tokens"]["default"])
    return int(select.get("max_tokens") or max(low, 2000) * 1.3)
