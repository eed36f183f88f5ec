"""A model that computes NaN or infinity stops its run with one line; nothing of it is a result."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest
import torch

from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.scheduler import run_batch
from kvfidelity.errors import ModelOverflowError
from kvfidelity.generation.known_turns import nll_of_turns
from kvfidelity.generation.likelihood import score_replies
from kvfidelity.generation.plan import plan_run
from kvfidelity.generation.run import run_dialogue
from tests.generation.test_recall import ASKED, dialogue_with_evidence
from tests.generation.test_run import BASE, BASELINE, run, talk
from tests.models.tiny import tiny_llama, tiny_tokenizer

OWN = {"replies": "own", "max_new_tokens": 5}


def too_large(dtype: torch.dtype, part: str) -> Engine:
    """A model whose second layer, or whose output layer, exceeds what float16 can hold."""
    model = tiny_llama()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(0))
        large = model.lm_head if part == "output" else model.model.layers[0].mlp.down_proj
        large.weight *= 60_000 / large.weight.abs().max()
        if part == "output":
            large.weight.fill_(60_000)
            model.model.norm.weight.fill_(4)
    return Engine.from_model(model.to(dtype), tiny_tokenizer())


@pytest.mark.parametrize("changes", [{}, OWN, {"kind": "attention_top", "trigger": "step"}])
def test_a_layer_that_overflows_float16_stops_the_run_with_one_line(
    changes: dict[str, Any],
) -> None:
    expected = (
        r"^dialogue talk, turn 1 of 6: the model computes NaN or infinity in float16 "
        r"\(first in the keys or values of layer 1\): set the model's dtype to bfloat16[^\n]+$"
    )
    with pytest.raises(ModelOverflowError, match=expected):
        run(too_large(torch.float16, "layer"), **changes)


@pytest.mark.parametrize("changes", [{}, OWN])
def test_logits_that_overflow_stop_the_run_though_hidden_states_do_not(
    changes: dict[str, Any],
) -> None:
    engine = too_large(torch.float16, "output")
    with pytest.raises(ModelOverflowError, match=r"turn 1 of 6: .* infinity in float16: set"):
        run(engine, **changes)
    ids = [[5, 6, 7]]
    hidden = engine.feed(engine.new_cache("original"), ids[0])
    assert hidden.isfinite().all()
    with pytest.raises(ModelOverflowError):
        engine.score(hidden, ids[0], hidden)


@pytest.mark.parametrize("part", ["layer", "output"])
def test_the_same_weights_in_bfloat16_are_measured(part: str) -> None:
    turns = run(too_large(torch.bfloat16, part), turns=2).turns
    assert turns["reference_nll"].is_finite().all()


def test_likelihoods_of_given_replies_are_refused_too() -> None:
    rows = [{"item": 0, "kind": "good", "history": [], "prompt": "the river", "reply": "the mill"}]
    with pytest.raises(ModelOverflowError, match="float16"):
        score_replies(too_large(torch.float16, "layer"), pl.DataFrame(rows))


def poisoned(engine: Engine, token: int) -> Engine:
    """The engine's model, in which feeding `token` gives NaN."""
    model = tiny_llama()
    state = {
        name.replace(".rotary.", "."): each for name, each in engine.model.state_dict().items()
    }
    model.load_state_dict(copy.deepcopy(state))
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = torch.inf
    return Engine.from_model(model, tiny_tokenizer())


def first_only_in_replies(engine: Engine, place: Callable[[tuple[int, ...]], int]) -> int:
    """A token that the first own reply holds and no prompt."""
    plan = dataclasses.replace(BASELINE, replies="own", max_new_tokens=12)
    [text] = run_dialogue(engine, talk(1), plan).turns["reply"]
    [segment] = engine.segmenter.segments(talk(1).turns)
    cache = engine.new_cache("original")
    hidden = engine.feed(cache, segment.prompt_ids)
    ids: list[int] = []
    for _ in range(12):
        ids.append(int(engine.logits(hidden[-1:]).argmax()))
        hidden = engine.feed(cache, ids[-1:])
    assert text
    return place(tuple(token for token in dict.fromkeys(ids) if token not in segment.prompt_ids))


@pytest.mark.parametrize("place", [lambda ids: ids[1], lambda ids: ids[-1]])
def test_nan_in_the_middle_of_a_reply_stops_the_run_and_no_other_of_its_batch(
    engine: Engine, place: Callable[[tuple[int, ...]], int]
) -> None:
    token = first_only_in_replies(engine, place)
    broken = poisoned(engine, token)
    plan = dataclasses.replace(BASELINE, replies="own", max_new_tokens=12)
    with pytest.raises(ModelOverflowError, match=r"turn 1 of 1: .*float32: load it in float32"):
        run_dialogue(broken, talk(1), plan)
    short = dataclasses.replace(plan, max_new_tokens=1, max_turns=1)
    outcomes: list[Any] = []

    def guarded(at: Engine) -> None:
        with pytest.raises(ModelOverflowError):
            run_dialogue(at, talk(1), plan)

    def whole(at: Engine) -> None:
        outcomes.append(run_dialogue(at, talk(1), short).turns["reply_nll"][0])

    run_batch(broken, [guarded, whole], 2)
    assert outcomes[0] == pytest.approx(run_dialogue(engine, talk(1), short).turns["reply_nll"][0])


def test_an_answer_candidate_that_gives_nan_is_not_a_wrong_answer(engine: Engine) -> None:
    """Without a check recall would be 0: nothing is less than NaN."""
    dialogue = dialogue_with_evidence()
    [token] = set(engine.tokenizer("Q", add_special_tokens=False).input_ids)
    question = dataclasses.replace(dialogue.questions[0], answer="QQQ")
    asked = dataclasses.replace(dialogue, questions=(question, *dialogue.questions[1:]))
    spec = dataclasses.replace(BASE, recall=ASKED, max_new_tokens=0)
    with pytest.raises(ModelOverflowError, match="NaN or infinity"):
        run_dialogue(poisoned(engine, token), asked, spec)


def test_the_turn_is_named_where_many_are_fed_at_once(engine: Engine) -> None:
    turns = 6
    segments = engine.segmenter.segments(talk(turns).turns)
    ids = [{*part.prompt_ids, *part.reply_ids} for part in segments]
    number = next(n for n in range(2, turns) if ids[n] - set().union(*ids[:n]))
    token = min(ids[number] - set().union(*ids[:number]))

    def refused(at: Engine) -> None:
        with pytest.raises(ModelOverflowError, match=rf"turn {number + 1} of {turns}: "):
            run_dialogue(at, talk(turns), BASELINE)

    run_batch(poisoned(engine, token), [refused], 2)


def test_the_turn_is_named_whose_logits_overflow(engine: Engine) -> None:
    plan = plan_run(engine, talk(4), BASELINE)
    size = engine.model.config.hidden_size
    predicted = [torch.zeros(len(part.reply_ids), size) for part in plan.segments]
    assert len(nll_of_turns(engine, plan, range(4), predicted)) == 4
    predicted[2][0] = torch.finfo(torch.float32).max
    with pytest.raises(ModelOverflowError, match="turn 3 of 4: "):
        nll_of_turns(engine, plan, range(4), predicted)
