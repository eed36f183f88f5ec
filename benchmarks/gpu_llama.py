"""A model of Llama-3-8B's shapes with random weights, for measurements of speed on a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from kvfidelity.decoding.engine import Engine

LLAMA3_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=8192,
    rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
)


def random_model(
    config: LlamaConfig = LLAMA3_8B, device: str = "cuda", dtype: torch.dtype = torch.bfloat16
) -> LlamaForCausalLM:
    """A model that knows nothing."""
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def engine_around(model: LlamaForCausalLM) -> Engine:
    """An engine around a random model: nothing ends a reply, and there is no text."""
    segmenter = SimpleNamespace(stop_ids=frozenset(), end_of_turn_ids=(5,))
    return Engine.from_parts(model, segmenter, SimpleNamespace(decode=lambda ids, **_: ""))
