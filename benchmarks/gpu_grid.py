"""A small grid of runs in one batch, and one of its cells with Hugging Face's code."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.scheduler import run_batch
from kvfidelity.dialogues.pool import Dialogue, Turn
from kvfidelity.dialogues.segments import Segment
from kvfidelity.generation.run import run_dialogue
from kvfidelity.generation.spec import RunSpec
from kvfidelity.prefix.cache import PrefixCache

TURNS, NEW, AT, TARGET = 8, 128, 4800, 2400
#: Prompt tokens a turn: the dialogues end with some 5,100 and 9,000 tokens.
PROMPTS = {"short": 510, "long": 1000}
POLICIES: dict[str, dict[str, Any]] = {
    "baseline": {"kind": "baseline", "positions": "original", "at": None, "target": None},
    "attention_top": {"kind": "attention_top", "positions": "stale"},
    "gist": {
        "kind": "sliding_window_gist",
        "positions": "stale",
        "parameters": {"gist_tokens": 2000},
    },
    "streaming_llm": {"kind": "streaming_llm", "positions": "rerotated"},
    "h2o": {"kind": "h2o", "positions": "rerotated"},
    "snapkv": {"kind": "snapkv", "positions": "original"},
    "tova": {"kind": "tova", "positions": "original"},
    "keydiff": {"kind": "keydiff", "positions": "rerotated"},
}
BASE = RunSpec(
    model="random",
    dataset="random",
    policy="",
    kind="",
    positions="",
    threshold="t",
    trigger="step",
    at=f"{AT}tok",
    target=f"{TARGET}tok",
    replies="own",
    max_new_tokens=NEW,
    score_every_run=True,
)


class RandomChat:
    """Turns of random tokens, as many as the dialogue's name says; nothing ends a reply."""

    stop_ids: frozenset[int] = frozenset()
    end_of_turn_ids = (5,)

    def segments(self, turns: Sequence[Turn], **cuts: Any) -> list[Segment]:
        draws = torch.Generator().manual_seed(0)
        counts = [PROMPTS[turn.user] for turn in turns]
        ids = [torch.randint(10, 128000, (count,), generator=draws).tolist() for count in counts]
        return [Segment(tuple(prompt), (5,)) for prompt in ids]


def grid_seconds(engine: Engine, batch_size: int) -> tuple[float, int]:
    """Seconds for all cells, and tokens generated; compiling and capturing are done before."""
    engine = dataclasses.replace(engine, segmenter=RandomChat())
    specs = [dataclasses.replace(BASE, policy=name, **cell) for name, cell in POLICIES.items()]
    cells = [(dialogue(name), spec) for name in PROMPTS for spec in specs]

    def run_all(turns: int) -> int:
        prefix_cache = PrefixCache(40 << 30)
        cut = [(talk, dataclasses.replace(spec, max_turns=turns)) for talk, spec in cells]
        records = run_batch(
            engine,
            [lambda at, cell=cell: run_dialogue(at, *cell, prefix_cache) for cell in cut],
            batch_size,
        )
        return sum(int(found.turns["reply_token_count"].sum()) for found in records)

    run_all(1)
    torch.cuda.synchronize()
    start = time.perf_counter()
    tokens = run_all(TURNS)
    torch.cuda.synchronize()
    return time.perf_counter() - start, tokens


def dialogue(name: str) -> Dialogue:
    return Dialogue(name, name, tuple(Turn(name, "") for _ in range(TURNS)))


def huggingface_cell_seconds(model: Any, name: str) -> tuple[float, str]:
    """One attention-ranked cell of a dialogue with `output_attentions`, the paper's way: evict by
    indexing the cache, feed prompts in parts whose matrices fit."""
    cache = DynamicCache()
    ids = torch.randint(10, 128000, (1, PROMPTS[name]), device="cuda")
    forward(model, ids[:, :64], DynamicCache())
    torch.cuda.synchronize()
    start, steps, smallest = time.perf_counter(), 0, ids.shape[1]
    scores = torch.empty(0)
    for _ in range(TURNS):
        for part in ids.split(500, dim=1):
            token, scores = forward(model, part, cache)
            smallest = min(smallest, part.shape[1])
        for _ in range(NEW):
            if cache.get_seq_length() >= AT:
                kept = scores.topk(TARGET).indices.sort().values
                for layer in cache.layers:
                    layer.keys = layer.keys[:, :, kept]
                    layer.values = layer.values[:, :, kept]
            token, scores = forward(model, token, cache)
            steps += 1
    torch.cuda.synchronize()
    return time.perf_counter() - start, f"prompts in parts of {smallest}, {steps} new tokens"


def forward(model: Any, ids: torch.Tensor, cache: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The next token, and each slot's attention: summed over queries, mean of heads and layers."""
    out = model(
        ids, past_key_values=cache, use_cache=True, output_attentions=True, logits_to_keep=1
    )
    scores = torch.stack([weights[0].sum(1).float().mean(0) for weights in out.attentions])
    return out.logits[:, -1].argmax(-1, keepdim=True), scores.mean(0)
