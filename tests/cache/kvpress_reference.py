"""Writes tests/cache/kvpress.json: what kvpress's presses keep of the same tensors.

kvpress 0.5.5 needs transformers < 5.3, so it needs a separate environment:

    python3.11 -m venv /tmp/kvpress && /tmp/kvpress/bin/pip install torch==2.13.0 kvpress==0.5.5
    /tmp/kvpress/bin/python tests/cache/kvpress_reference.py
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import torch
from crosscheck import BUDGET, GROUPS, RATIO, SEEDS, SIZE, SLOTS, WINDOW, angles, tensors
from kvpress import (
    ExpectedAttentionPress,
    KeyDiffPress,
    KnormPress,
    SnapKVPress,
    StreamingLLMPress,
    TOVAPress,
)

CUT = 1 - BUDGET / SLOTS
PRESSES = {
    "snapkv": SnapKVPress(compression_ratio=CUT, window_size=WINDOW, kernel_size=5),
    "tova": TOVAPress(compression_ratio=CUT),
    "keydiff": KeyDiffPress(compression_ratio=CUT),
    "knorm": KnormPress(compression_ratio=CUT),
    "streaming_llm": StreamingLLMPress(compression_ratio=CUT, n_sink=4),
    "expected_attention": ExpectedAttentionPress(compression_ratio=CUT),
}


def eager(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Attention weights [1, H, w, n] of the last w slots' queries."""
    logits = queries @ keys.repeat_interleave(RATIO, 0).transpose(1, 2) / SIZE**0.5
    future = torch.ones(WINDOW, SLOTS, dtype=torch.bool).triu(SLOTS - WINDOW + 1)
    return logits.masked_fill(future, -torch.inf).softmax(-1)[None]


def main() -> None:
    config = SimpleNamespace(num_attention_heads=GROUPS * RATIO, num_key_value_heads=GROUPS)
    module = SimpleNamespace(
        config=config,
        head_dim=SIZE,
        q_proj=lambda hidden: hidden,  # the queries themselves are given as hidden states
        rotary_emb=lambda _, position: angles(position),
    )
    kept: dict[str, dict[str, object]] = {name: {} for name in PRESSES}
    for seed in SEEDS:
        given = tensors(seed)
        keys, values = given["keys"][None], given["values"][None]
        attentions = eager(given["queries"], given["keys"])
        hidden = given["history"].transpose(0, 1).reshape(1, SLOTS, -1)
        for name, press in PRESSES.items():
            scores = press.score(module, hidden, keys, values, attentions, {})[0]
            best = scores.topk(BUDGET, dim=-1).indices.sort(-1).values
            kept[name][str(seed)] = best.tolist()
    reference = {
        "kvpress": version("kvpress"),
        "torch": torch.__version__.split("+")[0],
        "kept": kept,
    }
    Path(__file__).with_name("kvpress.json").write_text(json.dumps(reference) + "\n")


if __name__ == "__main__":
    main()
