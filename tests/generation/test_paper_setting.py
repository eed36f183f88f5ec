"""`trigger: paper` with stale positions against the procedure of arXiv 2511.04686 on plain
Hugging Face objects: eager attention, a `DynamicCache` cut by hand, positions left to the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from kvfidelity.cache.evictor import EvictionSchedule, Evictor, Trigger
from kvfidelity.cache.hooks import cache_argument
from kvfidelity.cache.policies import build_policy
from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.generate import Sampling
from kvfidelity.dialogues.pool import Turn
from kvfidelity.dialogues.segments import Segment
from kvfidelity.generation.turns import TurnSetting, run_turn
from tests.generation.test_run import talk
from tests.models.tiny import tiny_llama

THRESHOLD, NEW = 110, 30
Keep = Callable[[int, Tensor | None], list[int] | None]


def by_attention(largest: bool) -> Keep:
    def keep(slots: int, scores: Tensor | None) -> list[int] | None:
        if scores is None:
            return None
        return sorted(scores.topk(max(1, int(slots * 0.97)), largest=largest).indices.tolist())

    return keep


def gist_attentive(slots: int, scores: Tensor | None) -> list[int] | None:
    first, last, wanted = 20, 30, int(slots * 0.8)
    if scores is None:  # drawn at random in the middle: not comparable
        return None
    middle = scores[first : slots - last].topk(wanted - first - last).indices + first
    return sorted([*range(first), *middle.tolist(), *range(slots - last, slots)])


RULES: dict[str, tuple[str, dict[str, Any], Keep]] = {
    "baseline": ("baseline", {}, lambda slots, scores: None),
    "attention_top": ("attention_top", {"keep_ratio": 0.97}, by_attention(True)),
    "sliding_window": (
        "sliding_window",
        {"keep_ratio": 0.7},
        lambda slots, scores: list(range(slots - int(slots * 0.7), slots)),
    ),
    "evict_oldest": (
        "evict_oldest",
        {"discard_ratio": 0.25},
        lambda slots, scores: list(range(int(slots * 0.25), slots)),
    ),
    "gist": (
        "sliding_window_gist",
        {"gist_tokens": 60, "recent_tokens": 0},
        lambda slots, scores: list(range(60)),
    ),
    "gist and recent": (
        "sliding_window_gist",
        {"gist_tokens": 30, "recent_tokens": 40},
        lambda slots, scores: [*range(30), *range(slots - 40, slots)],
    ),
    "gist_attentive": (
        "sliding_window_gist_attentive",
        {"keep_ratio": 0.8, "gist_tokens": 20, "recent_tokens": 30},
        gist_attentive,
    ),
    "attention_bottom": ("attention_bottom", {"keep_ratio": 0.97}, by_attention(False)),
}
#: Rules that draw at random before a turn, where there are no scores, are compared in one turn.
DRAWS = ("gist_attentive", "attention_bottom")


class PlainChat:
    """The procedure, step by step; `index` says which token sits in which slot."""

    def __init__(self, model: Any, stops: frozenset[int], keep: Keep) -> None:
        self.model, self.stops, self.keep = model, stops, keep
        self.cache = DynamicCache(config=model.config)
        self.index: list[int] = []
        self.seen = 0

    def turn(self, prompt: Sequence[int]) -> list[int]:
        self.evict(None)
        logits, scores = self.feed(prompt)
        reply: list[int] = []
        for _ in range(NEW):
            self.evict(scores)
            token = int(logits.argmax())
            if token in self.stops:
                break
            reply.append(token)
            logits, scores = self.feed([token])
        return reply

    def feed(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        cache = {cache_argument(self.model): self.cache}
        out = self.model(torch.tensor([list(ids)]), output_attentions=True, **cache)
        self.index += range(self.seen, self.seen + len(ids))
        self.seen += len(ids)
        by_layer = [weights[0].sum(1).mean(0) for weights in out.attentions]
        return out.logits[0, -1], torch.stack(by_layer).mean(0)

    def evict(self, scores: Tensor | None) -> None:
        slots = len(self.index)
        kept = self.keep(slots, scores) if slots >= THRESHOLD else None
        if kept is None or len(kept) >= slots:
            return
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[:, :, kept], layer.values[:, :, kept]
        self.index = [self.index[slot] for slot in kept]


@pytest.fixture(scope="module")
def plain(engine: Engine) -> Any:
    model = tiny_llama()
    model.load_state_dict(
        {k.replace(".rotary.", "."): v for k, v in engine.model.state_dict().items()}
    )
    model.set_attn_implementation("eager")
    return model


def segments(engine: Engine, turns: int) -> list[Segment]:
    return engine.segmenter.segments([Turn(turn.user, "-") for turn in talk(turns).turns])


@pytest.mark.parametrize("rule", RULES)
def test_own_replies_and_survivors_are_those_of_the_papers_procedure(
    engine: Engine, plain: Any, rule: str
) -> None:
    kind, parameters, keep = RULES[rule]
    turns = segments(engine, 2 if rule in DRAWS else 6)
    if rule in DRAWS:  # past the threshold within the first turn, none before the second
        turns = [Segment(turns[0].prompt_ids * 2, ())]
    chat = PlainChat(plain, engine.segmenter.stop_ids, keep)
    cache = engine.new_cache("stale", collect_scores=True)
    evictor = Evictor(build_policy(kind, parameters), EvictionSchedule(Trigger.PAPER, THRESHOLD))
    setting = TurnSetting("own", NEW, Sampling(), 0, feed_end_of_turn=False)
    for part in turns:
        with torch.inference_mode():
            expected = chat.turn(part.prompt_ids)
        outcome = run_turn(engine, cache, evictor, part, setting)
        assert outcome.reply is not None and list(outcome.reply.ids) == expected
        assert (cache.slot_table.token_index == torch.tensor(chat.index)).all()
        assert cache.size == len(chat.index) == chat.cache.get_seq_length()
    assert bool(evictor.log) == (rule != "baseline")


def test_a_first_prompt_is_cut_at_its_beginning_behind_the_first_token(engine: Engine) -> None:
    """<|im_start|> begins this tokenizer's text and stays; what it loses comes next."""
    turns = talk(3).turns
    whole = engine.segmenter.segments(turns)
    cut = engine.segmenter.segments(turns, max_first_prompt_tokens=20)
    ids = whole[0].prompt_ids
    assert cut[0].prompt_ids == (ids[0], *ids[-19:])
    assert cut[0].reply_ids == whole[0].reply_ids and cut[1:] == whole[1:]
    assert engine.segmenter.segments(turns, max_first_prompt_tokens=len(ids)) == whole
