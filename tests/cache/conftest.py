"""Tiny random-weight models of every supported architecture, in fp32."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def heads(query: int, kv: int) -> dict[str, int]:
    return {"num_attention_heads": query, "num_key_value_heads": kv}


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES, **heads(6, 2), head_dim=8),
    "llama-llama3-scaling": LlamaConfig(**SIZES, **heads(4, 4), head_dim=8, rope_parameters=LLAMA3),
    "qwen2": Qwen2Config(**SIZES, **heads(8, 2), head_dim=6),
    "qwen3": Qwen3Config(**SIZES, **heads(7, 1), head_dim=16),
    "mistral": MistralConfig(**SIZES, **heads(4, 2), head_dim=12, sliding_window=None),
    "phi3": Phi3Config(
        **SIZES,
        **heads(4, 1),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
        },
    ),
}


def tiny(name: str) -> Any:
    """A fresh random-weight model, always the same weights for the same name."""
    torch.manual_seed(0)
    # A model keeps a reference to its config, and `attach` writes to it.
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[name]), dtype=torch.float32)
    # With default initialisation attention is almost uniform; with larger weights it is not.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.25)
    return model.eval()


@pytest.fixture(params=list(CONFIGS))
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(architecture: str) -> Any:
    return tiny(architecture)


@pytest.fixture
def llama() -> Any:
    return tiny("llama")
