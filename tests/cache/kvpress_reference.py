"""Writes tests/cache/kvpress.json: what kvpress's presses keep of the same tensors.

kvpress 0.5.5 needs transformers < 5.3, so it needs a separate environment:

    python3.11 -m venv /tmp/kvpress && /tmp/kvpress/bin/pip install torch==2.13.0 kvpress==0.5.5
    /tmp/kvpress/bin/python tests/cache/kvpress_reference.py
"""

from __future__ import annotations

import json
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from crosscheck import (
    BUDGET,
    CHUNK,
    GROUPS,
    LAG,
    PARTS,
    RATIO,
    SEEDS,
    SINKS,
    SIZE,
    SKETCH,
    SLOTS,
    STRETCH,
    WINDOW,
    ZIPPED,
    angles,
    filters,
    sketch,
    tensors,
)
from kvpress import (
    AdaKVPress,
    ChunkKVPress,
    ChunkPress,
    CriticalKVPress,
    CURPress,
    ExpectedAttentionPress,
    FinchPress,
    KeyDiffPress,
    KnormPress,
    KVzipPress,
    LagKVPress,
    LeverageScorePress,
    PyramidKVPress,
    QFilterPress,
    SnapKVPress,
    StreamingLLMPress,
    TOVAPress,
)

CUT = 1 - BUDGET / SLOTS


def snapkv() -> SnapKVPress:
    return SnapKVPress(compression_ratio=CUT, window_size=WINDOW, kernel_size=5)


def finch() -> FinchPress:
    press = FinchPress(compression_ratio=CUT)
    press.window_size = WINDOW
    return press


PRESSES = {
    "snapkv": snapkv(),
    "tova": TOVAPress(compression_ratio=CUT),
    "keydiff": KeyDiffPress(compression_ratio=CUT),
    "knorm": KnormPress(compression_ratio=CUT),
    "streaming_llm": StreamingLLMPress(compression_ratio=CUT, n_sink=4),
    "expected_attention": ExpectedAttentionPress(compression_ratio=CUT),
    "lagkv": LagKVPress(compression_ratio=CUT, n_sink=4, lag_size=LAG),
    "leverage_score": LeverageScorePress(compression_ratio=CUT, sketch_dimension=SKETCH),
    "cur": CURPress(compression_ratio=CUT),
    "finch": finch(),
    "qfilter": QFilterPress(compression_ratio=CUT),
    "criticalkv": CriticalKVPress(snapkv()),
}
#: These choose by themselves which slots they keep.
SELECTING = {
    "chunkkv": ChunkKVPress(KnormPress(compression_ratio=CUT), chunk_length=CHUNK),
    "per_chunk": ChunkPress(KnormPress(compression_ratio=CUT), chunk_length=STRETCH),
}
#: (slots, share kept, window, beta, layers)
PYRAMIDS = [
    (1500, 0.5, 32, 20, 30),
    (1500, 0.2, 64, 20, 30),
    (1500, 0.9, 32, 20, 12),
    (8192, 0.25, 32, 10, 4),
    (200, 0.25, 64, 20, 30),
]


def eager(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Attention weights [1, H, w, n] of the last w slots' queries."""
    logits = queries @ keys.repeat_interleave(RATIO, 0).transpose(1, 2) / SIZE**0.5
    future = torch.ones(WINDOW, SLOTS, dtype=torch.bool).triu(SLOTS - WINDOW + 1)
    return logits.masked_fill(future, -torch.inf).softmax(-1)[None]


def module_of(given: dict[str, torch.Tensor]) -> Any:
    projection = given["projection"]
    hidden = projection.shape[-1]
    config = SimpleNamespace(
        num_attention_heads=GROUPS * RATIO,
        num_key_value_heads=GROUPS,
        head_dim=SIZE,
        hidden_size=hidden,
        _attn_implementation="sdpa",
    )
    return SimpleNamespace(
        config=config,
        head_dim=SIZE,
        layer_idx=0,
        num_key_value_groups=RATIO,
        q_proj=lambda hidden: hidden,  # the queries themselves are given as hidden states
        rotary_emb=lambda _, position: angles(position),
        o_proj=SimpleNamespace(weight=projection.reshape(-1, hidden).T),
    )


def scored(press: Any, given: dict[str, torch.Tensor], seed: int) -> list[list[int]]:
    """The slots of highest score, per kv head."""
    keys, values = given["keys"][None], given["values"][None]
    attentions = eager(given["queries"], given["keys"])
    hidden = given["history"].transpose(0, 1).reshape(1, SLOTS, -1)
    module = "kvpress.presses.leverage_press"
    with (
        patch(f"{module}.get_prerope_key_states", lambda *_: keys),
        patch("torch.randn", lambda *_, **__: sketch(seed).to(keys.dtype)),
    ):
        scores = press.score(module_of(given), hidden, keys, values, attentions, {})[0]
    kept: list[list[int]] = scores.topk(BUDGET, dim=-1).indices.sort(-1).values.tolist()
    return kept


def selected(press: Any, given: dict[str, torch.Tensor]) -> list[list[int]]:
    """The slots that a press keeps, per kv head; values that name their slots tell."""
    keys = given["keys"][None]
    numbers = torch.arange(SLOTS, dtype=torch.float32)[None, None, :, None]
    named = numbers.expand(1, GROUPS, SLOTS, SIZE).contiguous()
    hidden = torch.zeros(1, SLOTS, 1)
    found = press.compress(module_of(given), hidden, keys, named, None, {})[1]
    return [row.tolist() for row in found[0, :, :, 0].long().sort(-1).values]


def shared_out(given: dict[str, torch.Tensor]) -> list[list[int]]:
    """What AdaKV around KNorm keeps of one layer, per kv head."""
    module = module_of(given)
    press = AdaKVPress(KnormPress(compression_ratio=CUT))
    press.compress(module, None, given["keys"][None], given["values"][None], None, {})
    kept = torch.ones(GROUPS, SLOTS, dtype=torch.bool)
    kept[module.masked_key_indices[1], module.masked_key_indices[2]] = False
    return [row.nonzero()[:, 0].tolist() for row in kept]


def _first(value: torch.Tensor, *_: object) -> torch.Tensor:
    return value


def zipped(seed: int) -> list[list[int]]:
    """What KVzip keeps of two layers, per kv head; the second has the keys of the next seed."""
    context = SLOTS - WINDOW
    press = KVzipPress(compression_ratio=1 - ZIPPED / context, n_sink=SINKS)
    press.context_length = context
    press.score_val = torch.zeros(2, 1, GROUPS, context)
    layers = []
    for layer in range(2):
        own = tensors(seed + layer)
        module = module_of(own)
        module.layer_idx = layer
        layers.append(SimpleNamespace(self_attn=module))
        keys, values = own["keys"][None], own["values"][None]
        plain = (torch.ones(1, WINDOW, SIZE), torch.zeros(1, WINDOW, SIZE))
        given = partial(_first, own["queries"][None])
        for press.start_idx, press.end_idx in PARTS:
            with patch("kvpress.presses.kvzip_press.get_prerope_query_states", given):
                hidden, about = torch.zeros(1, WINDOW, 1), {"position_embeddings": plain}
                press.score_kvzip(module, hidden, keys, values, None, about)
    press.compress_post(SimpleNamespace(model=SimpleNamespace(layers=layers)))
    kept = torch.ones(2, GROUPS, context, dtype=torch.bool)
    for layer, each in enumerate(layers):
        _, heads, slots = each.self_attn.masked_key_indices
        kept[layer, heads, slots] = False
    return [row.nonzero()[:, 0].tolist() for row in kept.flatten(0, 1)]


def pyramid(slots: int, share: float, window: int, beta: int, layers: int) -> list[int]:
    press = PyramidKVPress(compression_ratio=1 - share, window_size=window, beta=beta)
    config = SimpleNamespace(num_hidden_layers=layers)
    return [
        press.get_layer_budget(SimpleNamespace(config=config, layer_idx=layer), slots)
        for layer in range(layers)
    ]


def main() -> None:
    kept: dict[str, dict[str, object]] = {}
    for seed in SEEDS:
        given = tensors(seed)
        PRESSES["qfilter"].q_filters = -filters(seed)[None]
        PRESSES["criticalkv"].compression_ratio = CUT
        for name, press in PRESSES.items():
            kept.setdefault(name, {})[str(seed)] = scored(press, given, seed)
        for name, press in SELECTING.items():
            kept.setdefault(name, {})[str(seed)] = selected(press, given)
        kept.setdefault("adakv", {})[str(seed)] = shared_out(given)
        kept.setdefault("kvzip", {})[str(seed)] = zipped(seed)
    reference = {
        "kvpress": version("kvpress"),
        "torch": torch.__version__.split("+")[0],
        "kept": kept,
        "pyramids": [[*about, pyramid(*about)] for about in PYRAMIDS],
    }
    Path(__file__).with_name("kvpress.json").write_text(json.dumps(reference) + "\n")


if __name__ == "__main__":
    main()
