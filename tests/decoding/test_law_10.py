"""Law 10: a run computed together with others equals the run computed alone.

Whole runs (prompts, evictions, replies, questions), for every architecture: tokens are identical,
nats within 1e-5. `test_feeding` has single forwards with every kind of keep set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import polars as pl
import pytest

from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.scheduler import run_batch
from kvfidelity.dialogues.pool import Dialogue, Question, Turn
from kvfidelity.dialogues.segments import Segment
from kvfidelity.generation.run import Records, run_dialogue
from kvfidelity.generation.spec import RunSpec
from kvfidelity.prefix.cache import PrefixCache
from tests.cache.conftest import tiny

NATS = 1e-5
#: Shared keep sets, one per layer (attention_top), one per kv head (h2o, tova).
POLICIES: list[dict[str, Any]] = [
    {"kind": "attention_top", "parameters": {"granularity": "layer", "history": "accumulated"}},
    {"kind": "streaming_llm"},
    {"kind": "h2o"},
    {"kind": "snapkv", "parameters": {"window": 8}},
    {"kind": "random", "parameters": {"keep_ratio": 0.6}},
    {"kind": "tova"},
    {"kind": "sliding_window_gist"},
]
TRIGGERS: list[dict[str, Any]] = [
    {"trigger": "turn"},
    {"trigger": "step"},
    {"trigger": "prompt"},
    {"trigger": "paper", "target": None},
]
#: What a policy keeps by itself, as `trigger: paper` needs.
OWN_SIZE = {
    "attention_top": {"keep_ratio": 0.6},
    "random": {"keep_ratio": 0.6},
    "sliding_window_gist": {"gist_tokens": 20, "recent_tokens": 20},
}
POSITIONS = ("stale", "original", "rerotated")


class Words:
    """A segmenter and tokenizer in one: a token per word, and a token between messages."""

    stop_ids = frozenset({7})
    end_of_turn_ids = (5,)
    notes: dict[str, str] = {}  # noqa: RUF012

    def segments(self, turns: Sequence[Turn], **_: object) -> list[Segment]:
        return [Segment((3, *ids(turn.user), 4), (*ids(turn.assistant), 5)) for turn in turns]

    def decode(self, tokens: Sequence[int], **_: object) -> str:
        return " ".join(map(str, tokens))


def ids(text: str) -> tuple[int, ...]:
    return tuple(8 + sum(map(ord, word)) % 89 for word in text.split())


def talk(number: int) -> Dialogue:
    """Three or four turns of ragged lengths, and two questions."""
    turns = [
        Turn(*(" ".join(f"w{number}{turn}{part}{i}" for i in range(6 + (7 * turn + number) % 11))
               for part in "ab"))
        for turn in range(3 + number % 2)
    ]  # fmt: skip
    questions = [
        Question(f"what {n}", f"right {n} {number}", "any", (n,), ("wrong", f"other {n}"))
        for n in range(2)
    ]
    return Dialogue(f"{number:03}", f"talk-{number}", tuple(turns), tuple(questions))


def cell(number: int) -> RunSpec:
    """Every policy, trigger, position mode and kind of reply; one run in eight is a baseline."""
    if number % 8 == 7:
        changes: dict[str, Any] = {"kind": "baseline", "positions": "original", "at": None}
    else:
        policy, trigger = POLICIES[number % 7], TRIGGERS[number % 4]
        if trigger["trigger"] == "paper":
            policy = POLICIES[number % 2 * 6 if number % 3 else 4]
            trigger = trigger | {"parameters": OWN_SIZE[policy["kind"]]}
        changes = {"at": "52tok", "target": "36tok", "positions": POSITIONS[number % 3]}
        changes |= policy | trigger
    return RunSpec(
        **{"model": "tiny", "dataset": "words", "policy": "p", "threshold": "t"}
        | {"replies": ("reference", "own")[number // 2 % 2], "max_new_tokens": 4 + number % 3}
        | {"temperature": number % 2 * 0.8, "score_every_run": number % 3 == 0}
        | {"recall": {"dataset_questions": 2}}
        | changes
    )


def test_the_cells_have_every_trigger_and_policy() -> None:
    """So the test below does not pass for want of them."""
    cells = [cell(number) for number in range(16)]
    assert {spec.trigger for spec in cells} == {"turn", "step", "prompt", "paper"}
    assert {spec.kind for spec in cells} >= {policy["kind"] for policy in POLICIES}
    assert {(spec.positions, spec.replies) for spec in cells} >= {
        (mode, replies) for mode in POSITIONS for replies in ("reference", "own")
    }


def test_runs_together_equal_runs_alone_for_every_architecture(architecture: str) -> None:
    words = Words()
    engine = Engine.from_parts(tiny(architecture), words, words)
    runs = [(talk(number), cell(number)) for number in range(16)]
    alone = [run_dialogue(engine, *run) for run in runs]
    assert sum(records.evictions.height for records in alone) > 30
    for first, batch in ((15, 1), (3, 2), (5, 7), (0, 16)):
        chosen = slice(first, first + batch)
        store = PrefixCache(1 << 30)
        jobs = [partial(run, talk=talk, spec=spec, store=store) for talk, spec in runs]
        together = run_batch(engine, jobs[chosen], batch)
        for one, other in zip(alone[chosen], together, strict=True):
            assert_same(one, other)
    assert {*pl.concat([records.turns["concurrency"] for records in together])} >= {16}


RAGGED: list[dict[str, Any]] = [
    {"kind": "adakv", "parameters": {"policy": {"kind": "snapkv", "window": 8}}},
    {"kind": "pyramidkv", "parameters": {"policy": "knorm", "beta": 4}},
    {"kind": "simlayerkv", "parameters": {"threshold": 0.5, "sinks": 2, "recent": 6}},
    {"kind": "adakv", "parameters": {"policy": "h2o"}},
    {"kind": "kvzip", "parameters": {"chunk": 20, "sinks": 2}},
    {"kind": "duo_attention", "parameters": {"sinks": 2, "recent": 10}},
]


def ragged_cell(number: int) -> RunSpec:
    """Budgets that differ between kv heads, each with a trigger and kind of reply of its own."""
    changes = {"at": "52tok", "target": "36tok", "positions": POSITIONS[number % 3]}
    changes |= RAGGED[number % len(RAGGED)] | TRIGGERS[number % 3]
    return replace(cell(number), **changes | {"max_new_tokens": 5})


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_ragged_runs_together_equal_runs_alone(name: str) -> None:
    """Whole runs, with other runs whose kv heads hold the same number of slots."""
    words = Words()
    engine = Engine.from_parts(tiny(name), words, words)
    specs = [ragged_cell(number) if number % 3 else cell(number) for number in range(9)]
    runs = [(talk(number), spec) for number, spec in enumerate(specs)]
    alone = [run_dialogue(engine, *run) for run in runs]
    sizes = [
        records.evictions.group_by("step").agg(pl.col("slots_after").n_unique())["slots_after"]
        for records in alone
    ]
    assert sum(bool((unequal > 1).any()) for unequal in sizes) >= 3
    for number, records in enumerate(alone):
        if specs[number].target is not None and records.evictions.height:
            totals = records.evictions.group_by("step").agg(pl.col("slots_after").mean())
            assert set(totals["slots_after"]) == {36.0}
    store = PrefixCache(1 << 30)
    jobs = [partial(run, talk=talk, spec=spec, store=store) for talk, spec in runs]
    for one, other in zip(alone, run_batch(engine, jobs, 9), strict=True):
        assert_same(one, other)


def run(engine: Engine, talk: Dialogue, spec: RunSpec, store: PrefixCache) -> Records:
    return run_dialogue(engine, talk, spec, store)


def assert_same(one: Records, other: Records) -> None:
    exact = ["reply", "finish_reason", "slots_end", "next_position", "evictions"]
    assert one.turns.select(exact).equals(other.turns.select(exact))
    exact = ["turn", "step", "slots_before", "slots_after", "slot_spans", "position_spans"]
    assert one.evictions.select(exact).equals(other.evictions.select(exact))
    for name in ("reference_token_nll", "reply_nll", "reply_nll_baseline", "kl_baseline"):
        assert_close(one.turns[name], other.turns[name])
    for name in ("answer_nll", "distractor_nll"):
        assert_close(one.recall[name], other.recall[name])


def assert_close(one: pl.Series, other: pl.Series) -> None:
    if isinstance(one.dtype, pl.List):
        one, other = one.explode(), other.explode()
    assert one.is_null().equals(other.is_null())
    assert ((one - other).abs().fill_null(0) <= NATS).all(), (one - other).abs().max()
