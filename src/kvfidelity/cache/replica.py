"""A tiny random-weight replica of a model: the same structure, so that the laws run in a second."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch

#: Sizes of the replica; a name that a config class does not have is left out.
SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "head_dim": 16,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "sliding_window": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS = 4
#: Positions before a scaled RoPE: fewer than the laws feed, so that they see what changes there.
TRAINED = 32
#: Standard deviation of the weights: attention is far from uniform.
SPREAD = 0.25


def replica_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The replica's config.

    Args:
        config: the content of the model's config.json.

    Returns:
        The same config with small sizes; the ratio of query heads to kv heads is kept as far as
        four query heads allow, and so is one layer of each kind.
    """
    small = copy.deepcopy(dict(config))
    for name, size in SIZES.items():
        if small.get(name) is not None:
            small[name] = size
    query, kv = small["num_attention_heads"], small.get("num_key_value_heads")
    small["num_attention_heads"] = HEADS
    if "num_key_value_heads" in small:
        small["num_key_value_heads"] = {1: 1, query: HEADS, None: HEADS}.get(kv, HEADS // 2)
    for rope in (small.get("rope_parameters"), small.get("rope_scaling")):
        if rope and "original_max_position_embeddings" in rope:
            rope["original_max_position_embeddings"] = TRAINED
    layers = _one_of_each(small)
    for name, value in small.items():
        if _is_per_layer(value, small["num_hidden_layers"]):
            small[name] = [value[index] for index in layers]
    small["num_hidden_layers"] = len(layers)
    # Neither initialises the replica nor is needed to compute.
    for name in ("torch_dtype", "dtype", "_name_or_path", "quantization_config"):
        small.pop(name, None)
    return small


def replica(config: Mapping[str, Any]) -> Any:
    """A model in fp32 on the CPU with that config; always the same weights.

    Raises:
        ValueError, KeyError, TypeError: transformers makes no causal model of this config.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    own = AutoConfig.for_model(**config)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            own, dtype=torch.float32, attn_implementation="eager"
        )
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, SPREAD)
    return model.eval()


def _one_of_each(config: Mapping[str, Any]) -> list[int]:
    """Indices of at least two layers, among them one of each kind."""
    count = config["num_hidden_layers"]
    lists = [value for value in config.values() if _is_per_layer(value, count)]
    kinds = {str([value[index] for value in lists]): index for index in reversed(range(count))}
    chosen = set(kinds.values()) | set(range(min(2, count)))
    return sorted(chosen)


def _is_per_layer(value: Any, layers: int) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == layers > 1
