"""What README tells a reader to type works."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from kvfidelity import build_policy
from kvfidelity.cache.policies import known_policies
from kvfidelity.report.formatting import signed
from tests.cache.views import random_view
from tests.models.tiny import save_tiny

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def block(containing: str) -> str:
    [found] = [text for text in BLOCKS if containing in text]
    return str(found)


@pytest.mark.parametrize("kind", [kind for kind, each in known_policies().items() if each.evicts])
def test_the_snippet_of_a_cache_generates_and_evicts(kind: str, tmp_path: Path) -> None:
    code = block("model.generate").replace(
        "resources/models/smollm2-135m", str(save_tiny(tmp_path))
    )
    code = code.replace("max_new_tokens=1000", "max_new_tokens=60, min_new_tokens=60")
    code = code.replace("threshold=512, target=256", "threshold=64, target=32")
    entry: dict[str, dict[str, Any]] = {
        "random": {"keep_ratio": 0.5},
        "sliding_window": {"keep_ratio": 0.5},
    }
    entry |= {"evict_oldest": {"discard_ratio": 0.5}, "block": {"which": "first"}}
    asked = 'build_policy("streaming_llm", {"sinks": 4})'
    assert asked in code
    code = code.replace(asked, f"build_policy({kind!r}, {entry.get(kind, {})})")
    if known_policies()[kind].needs_calibration:
        imported = "from kvfidelity.cache.calibration import calibrate\n"
        measured = f"{imported}calibrate(model, range(3, 50))\ncache = new_cache"
        code = code.replace("cache = new_cache", measured)
    ids = torch.randint(3, 200, (1, 40), generator=torch.Generator().manual_seed(0))
    names: dict[str, Any] = {
        "inputs": {"input_ids": ids, "attention_mask": torch.ones_like(ids), "do_sample": False}
    }
    exec(code, names)
    assert names["out"].shape == (1, 100)
    assert names["cache"].size <= 64
    assert [eviction.slots_after for eviction in names["evictor"].log] == [32, 32]


def test_the_snippet_of_a_policy_is_a_policy(tmp_path: Path) -> None:
    file = tmp_path / "my_policy.py"
    file.write_text(block("class EveryOther"))
    policy = build_policy("every_other", {}, [file])
    assert policy.keep(random_view(50, 9)).shape == (9,)


def test_it_opens_with_the_question_the_answer_the_figure_and_the_commands() -> None:
    opening = README.split("\n\n")[:5]
    title, question, answer, figure, commands = opening
    assert title == "# KV Fidelity"
    assert question.strip("*").endswith("?")
    assert answer.startswith("If an eviction policy ")
    assert "(docs/findings/equal_budgets/" in figure
    assert "make run" in commands and "make test" in commands


def test_the_losses_of_the_default_run_are_those_of_its_table() -> None:
    table = pl.read_csv(Path(__file__).parents[1] / "docs/default-run.csv")
    losses = {
        (row["policy"], row["threshold"], row["positions"]): (
            f"{signed(row['mean'], 2)} [{signed(row['low'], 2)}, {signed(row['high'], 2)}]"
        )
        for row in table.filter(pl.col("threshold") != "none").to_dicts()
    }
    thresholds = {"paper's setting": "paper", "equal budgets": "half"}
    lines = re.findall(r"\| `(\w+)`[^,|]*(?:\([^)]*\))?, ([a-z' ]+) \| (.*) \| ?(.*) ?\|", README)
    assert len(lines) == 4
    for policy, setting, *shown in lines:
        for mode, text in zip(("stale", "rerotated"), shown, strict=True):
            # A kept beginning has no second mode in the paper's setting.
            expected = losses.get((policy, thresholds[setting], mode), "")
            assert text.strip() == expected, (policy, setting, mode)
