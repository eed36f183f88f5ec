"""The NLL of nine cells on one dialogue, recomputed in plain transformers.

The recomputation imports nothing of the library: tokens come from the tokenizer's chat template,
the cache is a `DynamicCache`, and an eviction is `index_select` on it. Rerotated keys are turned by
the angle between their old and their new position.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from kvfidelity.decoding.engine import Engine
from kvfidelity.generation.run import run_dialogue
from tests.generation.test_run import BASE, talk
from tests.models.tiny import tiny_llama

THRESHOLD, TARGET, SINKS = 250, 100, 4
POLICIES: dict[str, tuple[str, dict[str, Any]]] = {
    "attention_top": ("paper", {"keep_ratio": 0.99}),
    "sliding_window_gist": ("turn", {}),
    "streaming_llm": ("turn", {"sinks": SINKS}),
}


class PlainRun:
    """One cell; `nll` holds the NLL of each reply token, turn by turn."""

    def __init__(self, model: Any, kind: str, positions: str) -> None:
        self.model, self.kind, self.positions = model, kind, positions
        self.cache = DynamicCache(config=model.config)
        self.position: list[int] = []
        self.seen, self.evicted = 0, 0
        self.scores: Tensor | None = None
        self.logits = torch.empty(0)

    def turn(self, prompt: list[int], reply: list[int]) -> list[float]:
        if self.kind == "attention_top":
            self.scores = None  # the paper's code has none before a turn
        elif len(self.position) >= THRESHOLD:
            first = TARGET if self.kind == "sliding_window_gist" else SINKS
            last = range(len(self.position) - (TARGET - first), len(self.position))
            self.keep([*range(first), *last])
        self.feed(prompt)
        nll = []
        for token in reply:
            nll.append(float(-self.logits.double().log_softmax(-1)[token]))
            slots = len(self.position)
            if self.kind == "attention_top" and slots >= THRESHOLD:
                assert self.scores is not None
                self.keep(sorted(self.scores.topk(int(slots * 0.99)).indices.tolist()))
            self.feed([token])
        return nll

    def feed(self, ids: list[int]) -> None:
        start = self.seen if self.positions == "original" else len(self.position)
        places = list(range(start, start + len(ids)))
        out = self.model(
            torch.tensor([ids]),
            position_ids=torch.tensor([places]),
            past_key_values=self.cache,
            output_attentions=True,
        )
        self.position += places
        self.seen += len(ids)
        self.logits = out.logits[0, -1]
        self.scores = torch.stack([each[0].sum(1).mean(0) for each in out.attentions]).mean(0)

    def keep(self, kept: list[int]) -> None:
        index = torch.tensor(kept)
        self.position = [self.position[slot] for slot in kept]
        for layer in self.cache.layers:
            layer.keys = layer.keys.index_select(2, index)
            layer.values = layer.values.index_select(2, index)
        if self.scores is not None:
            self.scores = self.scores.index_select(0, index)
        self.evicted += 1
        if self.positions == "rerotated":
            moved = torch.arange(len(kept)) - torch.tensor(self.position)
            self.position = list(range(len(kept)))
            for layer in self.cache.layers:
                layer.keys = turned(layer.keys, moved, self.model.config)


def turned(keys: Tensor, by: Tensor, config: Any) -> Tensor:
    """Keys [1, G, n, d] rotated on by so many positions each."""
    size = keys.shape[-1]
    theta = config.rope_parameters["rope_theta"]
    frequencies = theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = by[:, None].double() * frequencies
    cosine, sine = angles.cos(), angles.sin()
    one, other = keys.double().split(size // 2, -1)
    return torch.cat([one * cosine - other * sine, other * cosine + one * sine], -1).float()


@pytest.mark.parametrize("positions", ["stale", "original", "rerotated"])
@pytest.mark.parametrize("kind", POLICIES)
def test_a_cells_nll_is_that_of_plain_transformers(
    engine: Engine, kind: str, positions: str
) -> None:
    trigger, parameters = POLICIES[kind]
    cell = dataclasses.replace(
        BASE,
        kind=kind,
        parameters=parameters,
        positions=positions,
        trigger=trigger,
        at=f"{THRESHOLD}tok",
        target=None if trigger == "paper" else f"{TARGET}tok",
        max_new_tokens=0,
    )
    dialogue = talk(6)
    found = run_dialogue(engine, dialogue, cell).turns

    model = tiny_llama()
    model.load_state_dict(
        {k.replace(".rotary.", "."): v for k, v in engine.model.state_dict().items()}
    )
    model.set_attn_implementation("eager")
    messages = [
        {"role": role, "content": text}
        for turn in dialogue.turns
        for role, text in (("user", turn.user), ("assistant", turn.assistant))
    ]
    ids = engine.tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    plain = PlainRun(model, kind, positions)
    largest = 0.0
    for row in found.iter_rows(named=True):
        start = row["tokens_seen_start"] + row["prompt_tokens"]
        prompt, reply = ids[row["tokens_seen_start"] : start], ids[start : row["tokens_seen_end"]]
        with torch.inference_mode():
            expected = plain.turn(prompt, reply)
        differences = pl.Series(row["reference_token_nll"]) - pl.Series(expected)
        largest = max(largest, float(differences.abs().max()))
        assert largest < 1e-4
    assert plain.evicted == found["evictions"].sum() > 0
