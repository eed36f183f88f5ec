"""Which messages a policy sees, through whole runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kvfidelity.cache.policies.hybrid import Hybrid
from kvfidelity.cache.view import CacheView
from kvfidelity.decoding.engine import Engine
from tests.generation.test_run import run, talk

BY_MESSAGE: dict[str, Any] = {"spans": "messages", "sinks": 2}


@pytest.mark.parametrize("trigger", ["turn", "prompt", "step"])
@pytest.mark.parametrize("replies", ["reference", "own"])
def test_a_policy_sees_where_every_message_begins_that_of_the_turn_too(
    engine: Engine, trigger: str, replies: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, set[int]]] = []
    priority = Hybrid.priority

    def noting(policy: Hybrid, view: CacheView) -> torch.Tensor:
        assert view.messages is not None
        seen.append((view.tokens_seen, set(view.messages)))
        return priority(policy, view)

    monkeypatch.setattr(Hybrid, "priority", noting)
    settings: dict[str, Any] = {
        "kind": "hybrid",
        "parameters": BY_MESSAGE,
        "recall": {"needles_per_depth": 1},
    }
    turns = run(engine, 12, trigger=trigger, replies=replies, **settings).turns
    begin, prompt = turns["tokens_seen_start"].to_list(), turns["prompt_tokens"].to_list()
    fed = {*begin, *(start + count for start, count in zip(begin, prompt, strict=True))}
    assert len(seen) > 2
    last = turns["tokens_seen_end"][-1]
    for tokens, messages in seen:
        assert {start for start in messages if start < min(tokens, last)} == {
            start for start in fed if start < tokens
        }


def test_a_policy_with_budgets_that_differ_sees_messages_at_every_eviction(engine: Engine) -> None:
    by_head = {"kind": "hybrid", "granularity": "head", **BY_MESSAGE}
    found = run(engine, 16, kind="adakv", parameters={"policy": by_head})
    assert found.evictions["turn"].n_unique() >= 2


def test_a_reply_that_is_judged_next_to_the_reference_sees_messages_too(engine: Engine) -> None:
    settings: dict[str, Any] = {"kind": "hybrid", "parameters": BY_MESSAGE, "trigger": "step"}
    first = engine.segmenter.segments(talk(1).turns)[0]
    judged = run(
        engine,
        6,
        at=f"{len(first.prompt_ids) + 2}tok",
        target="30tok",
        max_new_tokens=8,
        **settings,
    )
    assert judged.turns["reply"].null_count() == 0
    assert judged.evictions.height > 0
