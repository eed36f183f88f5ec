"""Healings through whole runs: what is recorded, and that batches change nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl
import pytest
import torch

from kvfidelity.cache.healing import known_healings
from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.scheduler import run_batch
from kvfidelity.errors import UserError
from kvfidelity.generation.run import Records
from tests.generation.test_run import run, talk
from tests.models.tiny import tiny_llama

HEALINGS = list(known_healings())
#: Room for the notice, which a tokenizer of bytes makes 200 tokens long.
SIZES: dict[str, Any] = {"at": "700tok", "target": "450tok"}
TURNS = 16


def healed(engine: Engine, healing: str, **changes: Any) -> Records:
    settings: dict[str, Any] = {
        **SIZES,
        "parameters": {"sinks": 4, "healing": healing},
        "recall": {"needles_per_depth": 1},
        **changes,
    }
    found: Records = run(engine, TURNS, **settings)
    return found


@pytest.mark.parametrize("healing", HEALINGS)
def test_a_run_keeps_its_budget_and_names_its_healing(engine: Engine, healing: str) -> None:
    found = healed(engine, healing)
    evictions = found.evictions
    assert evictions.height >= 2
    assert (evictions["healing"] == healing).all()
    texts = healing in ("notice", "neutral_text")
    tokens = evictions["healing_slots"] if texts else evictions["healing_slots"] * 0
    assert (evictions["slots_after"] + tokens == 450).all(), "within the target, nothing unused"
    assert (evictions["healing_slots"] > 0).all() == (texts or healing == "ghost_slot")
    assert (evictions["healing_bytes"] > 0).all() == (healing == "ghost_slot")
    turns = found.turns
    after = turns.drop_nulls("slots_after_eviction")["slots_after_eviction"]
    assert (after == 450).all(), "bytes after an eviction are those of the whole target"
    grown = turns["tokens_seen_end"] - turns["tokens_seen_start"]
    beyond = (grown - turns["prompt_tokens"] - turns["reply_tokens"]).sum()
    asked = int(evictions["healing_slots"].sum()) if texts else 0
    assert beyond == asked, "what a healing feeds is neither prompt nor reply"
    assert turns["reference_nll"].is_finite().all()


@pytest.mark.parametrize("healing", HEALINGS)
def test_runs_computed_together_equal_the_run_computed_alone(engine: Engine, healing: str) -> None:
    """Law 10, with other healings in the same batch."""
    alone = healed(engine, healing)
    others = [healing, "ghost_slot", "none"]
    runs: list[Callable[[Engine], Records]] = [
        lambda shared, one=one: healed(shared, one)  # type: ignore[misc]
        for one in others
    ]
    together = run_batch(engine, runs, 3)[0]
    for column in ("reference_nll", "kl_baseline"):
        one, other = (records.turns[column].to_numpy() for records in (alone, together))
        assert abs(one - other).max() < 1e-5
    assert alone.turns["reply"].to_list() == together.turns["reply"].to_list()
    margins = [records.recall["margin"].to_numpy() for records in (alone, together)]
    assert abs(margins[0] - margins[1]).max() < 1e-5


def test_the_turn_after_a_refresh_is_that_of_a_fresh_run(engine: Engine) -> None:
    """Against Hugging Face's forward over the kept text and the turn."""
    found = healed(engine, "refresh", recall={})
    eviction = found.evictions.row(0, named=True)
    segments = engine.segmenter.segments(talk(TURNS).turns)
    before = [
        t for part in segments[: eviction["turn"]] for t in (*part.prompt_ids, *part.reply_ids)
    ]
    kept = [t for span in eviction["token_spans"] for t in before[span["start"] : span["stop"]]]
    turn = segments[eviction["turn"]]
    whole = tiny_llama()
    whole.load_state_dict(
        {k.replace(".rotary.", "."): v for k, v in engine.model.state_dict().items()}
    )
    ids = torch.tensor([[*kept, *turn.prompt_ids, *turn.reply_ids]])
    with torch.inference_mode():
        log = whole(ids).logits[0].log_softmax(-1)
    reply = torch.tensor(turn.reply_ids)
    start = ids.shape[1] - len(reply)
    nll = -log[start - 1 : -1].gather(-1, reply[:, None]).mean()
    recorded = found.turns.filter(pl.col("turn") == eviction["turn"])["reference_nll"].item()
    assert abs(float(nll) - recorded) < 1e-4


def test_a_notice_in_the_message_is_part_of_the_prompt_after_an_eviction(engine: Engine) -> None:
    plain, said = healed(engine, "none"), healed(engine, "notice_in_message")
    first = int(plain.evictions["turn"][0])
    sizes = [records.turns["prompt_tokens"].to_list() for records in (plain, said)]
    assert sizes[0][:first] == sizes[1][:first]
    neutral = healed(engine, "neutral_in_message").turns["prompt_tokens"].to_list()
    assert sizes[1][first] > sizes[0][first]
    assert sizes[1] == neutral, "the control is as long, turn by turn"


def test_the_notice_and_its_control_have_as_many_tokens(engine: Engine) -> None:
    slots = [
        healed(engine, kind).evictions["healing_slots"].to_list()
        for kind in ("notice", "neutral_text")
    ]
    assert slots[0] == slots[1]


def test_a_healing_under_another_trigger_is_refused_before_anything_is_fed(engine: Engine) -> None:
    with pytest.raises(UserError, match="healing notice acts between turns"):
        healed(engine, "notice", trigger="step")


def test_a_ghost_holds_no_token_of_the_message_that_it_stands_for(engine: Engine) -> None:
    plain, ghost = (healed(engine, kind).recall for kind in ("none", "ghost_slot"))
    gone = (plain["evidence_retained_share"] == 0).to_numpy()
    assert gone.any()
    assert (ghost["evidence_retained_share"].to_numpy()[gone] == 0).all()
