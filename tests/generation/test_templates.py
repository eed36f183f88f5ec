"""Runs with a template that puts a think block before the last reply only (Qwen3's)."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kvfidelity.decoding.engine import Engine
from kvfidelity.dialogues.pool import Question, Turn
from kvfidelity.errors import UserError
from kvfidelity.generation.run import run_dialogue
from tests.dialogues.published import make_published
from tests.generation.test_run import BASE, BASELINE, talk
from tests.models.tiny import tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def qwen3() -> Engine:
    tokenizer = make_published("qwen3", "bytes")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    return Engine.from_model(LlamaForCausalLM(config).eval(), tokenizer)


@pytest.mark.parametrize("replies", ["reference", "own"])
def test_a_reply_of_the_models_own_follows_the_empty_think_block(
    qwen3: Engine, replies: str
) -> None:
    spec = dataclasses.replace(BASELINE, replies=replies)
    turns = run_dialogue(qwen3, talk(3), spec).turns
    parts = qwen3.segmenter.segments(talk(3).turns)
    assert turns["prompt_tokens"].to_list() == [len(part.prompt_ids) for part in parts]
    if replies == "reference":
        assert turns["reply_tokens"].to_list() == [len(part.reply_ids) for part in parts]
    else:
        opening = [len(part.opening_ids) for part in parts]
        assert opening[0] == opening[1] > opening[2] == 0
        found = (turns["reply_tokens"] - turns["reply_token_count"] - 1).to_list()
        assert found == opening
    whole = [*parts[0].prompt_ids, *parts[0].opening_ids]
    with torch.inference_mode():
        hidden = qwen3.feed(qwen3.new_cache("original"), whole)[-1:]
        token = int(qwen3.logits(hidden).argmax())
    assert turns["reply"][0].startswith(qwen3.tokenizer.decode([token]).strip())


@pytest.mark.parametrize("replies", ["reference", "own"])
def test_an_own_reply_without_an_eviction_is_as_likely_under_the_baseline(
    qwen3: Engine, replies: str
) -> None:
    """The think block is fed to the baseline's cache too, and is not part of the reply."""
    spec = dataclasses.replace(BASE, replies=replies, at="400tok", share_prefix=False)
    whole = run_dialogue(qwen3, talk(3), spec)
    assert whole.evictions.is_empty()
    kept = run_dialogue(qwen3, talk(3), dataclasses.replace(BASELINE, replies=replies)).turns
    for under_run, under_baseline in zip(
        whole.turns["reply_nll_baseline"], kept["reply_nll_baseline"], strict=True
    ):
        assert math.isclose(under_run, under_baseline, abs_tol=1e-4)


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused_at_load() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<extra>", "<more>"])
    rows = tiny_llama().get_input_embeddings().weight.shape[0]
    with pytest.raises(
        UserError, match=rf"2 tokens .* \('<extra>' is number {rows}, .*{rows} rows"
    ):
        Engine.from_model(tiny_llama(), tokenizer)


def test_questions_are_asked_after_any_turn(qwen3: Engine) -> None:
    """With the last reply cut to one token, recall crashed."""
    recall = {"dataset_questions": 2, "after_turns": [1, 3], "max_new_tokens": 3}
    questions = (
        Question("Which river?", "the old one", "fact", (0,), ("the new one",)),
        Question("Who asked?", "nobody", "fact", (0,), ("somebody", "12")),
    )
    dialogue = dataclasses.replace(talk(3), questions=questions)
    rows = run_dialogue(qwen3, dialogue, dataclasses.replace(BASE, recall=recall)).recall
    assert rows["turn"].to_list() == [0, 0, 2, 2]
    for column in ("answer_nll", "margin"):
        assert rows[column].is_finite().all()
    # The whole answer is scored: by hand, after the block.
    turn = talk(3).turns[0]
    parts = qwen3.segmenter.segments([turn, Turn("Who asked?", "nobody")])
    fed = [*parts[0].prompt_ids, *parts[0].reply_ids, *parts[1].prompt_ids, *parts[1].text_ids]
    answer = parts[1].text_ids
    assert qwen3.tokenizer.decode(answer) == "nobody"
    hidden = qwen3.feed(qwen3.new_cache("original"), fed)[-len(answer) - 1 : -1]
    others = [
        qwen3.segmenter.segments([turn, Turn("Who asked?", other)])[-1].text_ids
        for other in ("somebody", "12")
    ]
    shared = next(
        n for n, ids in enumerate(zip(answer, *others, strict=False)) if len(set(ids)) > 1
    )
    expected = float(qwen3.nll(hidden[shared:], answer[shared:]).double().mean())
    found = rows.filter((rows["turn"] == 0) & (rows["question"] == "Who asked?"))["answer_nll"][0]
    assert math.isclose(found, expected, abs_tol=1e-4)
