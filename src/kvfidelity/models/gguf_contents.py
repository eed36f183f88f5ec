"""Compares what a GGUF file states with the model that transformers made of it.

transformers reads the keys and tensors that it knows and leaves out the others without a word: a
scaled RoPE, a sliding window, constants that scale embeddings or logits. Here each key and tensor
is restored, found to agree, known to change no token and no logit, or refused by name.
"""

from __future__ import annotations

import contextlib
import fnmatch
import importlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import gguf
import torch

from kvfidelity.errors import UserError
from kvfidelity.models.gguf_tokenizer import DIGITS_FIRST

ROPE_FACTORS = "rope_freqs.weight"
#: RoPE scalings of published Llama 3 models; the file holds the factors that follow from one.
LLAMA3_FACTORS = (8.0, 32.0, 16.0, 4.0)
#: The architecture's own keys (without its name), and the config field that each must equal.
FIELDS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "vocab_size": "vocab_size",
    "expert_used_count": "num_experts_per_tok",
}
NORMS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
HEAD_SIZES = ("attention.key_length", "attention.value_length")
#: Keys that change no token and no logit, or that the tokenizer is made of.
NEUTRAL = (
    "GGUF.*",
    "general.*",
    "quantize.*",
    "split.tensors.count",
    "tokenizer.chat_template*",
    "tokenizer.huggingface.json",
    "tokenizer.ggml.*_token_id",
    "tokenizer.ggml.*_token_ids",
    "tokenizer.ggml.add_bos_token",  # text is encoded without it; the template writes it
    "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.model",
    "tokenizer.ggml.pre",
)
#: Arrays as long as the vocabulary, which the tokenizer is made of.
VOCABULARY = frozenset(
    f"tokenizer.ggml.{name}" for name in ("merges", "scores", "token_type", "tokens")
)
DEFAULT_THETA = 10000.0


def check_conversion(file: Path, model: Any) -> None:
    """Restore a llama3 RoPE, and refuse whatever else of the file the model does not represent.

    Args:
        model: what transformers made of the file; its config may gain `rope_parameters`.

    Raises:
        UserError: names the keys and tensors.
    """
    reader = gguf.GGUFReader(file)
    stated = {
        key: field.contents() for key, field in reader.fields.items() if key not in VOCABULARY
    }
    architecture = str(stated.get("general.architecture"))
    own = f"{architecture}."
    lost = _lost_rope(reader, model, stated.get(own + "rope.freq_base", DEFAULT_THETA))
    for key, value in stated.items():
        if key.startswith(own):
            lost += _lost_key(key, key.removeprefix(own), value, model)
        elif key == "split.count" or key == "split.no":
            lost += [f"{key} = {value}"] if value not in (0, 1) else []
        elif key == "tokenizer.ggml.add_space_prefix":
            # What transformers' tokenizers do: byte-level ones add none, SentencePiece's add one.
            restored = stated.get("tokenizer.ggml.model") != "gpt2"
            lost += [f"{key} = {value}"] if value != restored else []
        elif not any(fnmatch.fnmatch(key, pattern) for pattern in NEUTRAL):
            lost.append(f"{key} = {str(value)[:40]}")
    lost += _lost_split(stated)
    lost += _lost_tensors(reader, model)
    if lost:
        raise UserError(
            f"{file.name} cannot be converted: the model that transformers makes of it does not "
            f"represent {', '.join(sorted(lost)[:8])}; use the model's safetensors"
        )


def _lost_key(key: str, name: str, value: Any, model: Any) -> list[str]:
    config = model.config
    expected = None
    if name in FIELDS:
        expected = getattr(config, FIELDS[name], None)
    elif name in NORMS:
        names = ("rms_norm_eps", "layer_norm_eps", "norm_epsilon", "norm_eps")
        found = [getattr(config, field) for field in names if hasattr(config, field)]
        expected = found[0] if found else None
    elif name in HEAD_SIZES:
        expected = _head_size(config)
    elif name == "rope.dimension_count":
        expected = 2 * model.get_decoder().rotary_emb.inv_freq.numel()
    elif name == "expert_count":
        fields = ("num_experts", "num_local_experts", "n_routed_experts")
        expected = next((getattr(config, field) for field in fields if hasattr(config, field)), 0)
    elif name == "expert_feed_forward_length":
        expected = getattr(config, "moe_intermediate_size", None)
    elif name == "rope.freq_base":
        return []  # compared with the tensor of factors
    elif name in ("rope.scaling.type", "attention.sliding_window", "expert_shared_count"):
        expected = {"rope.scaling.type": "none"}.get(name, 0)
    elif name == "attention.causal":
        expected = True
    same = expected is not None and (
        abs(value - expected) <= 1e-6 * abs(expected)
        if isinstance(value, float) and isinstance(expected, int | float)
        else value == expected
    )
    return [] if same else [f"{key} = {str(value)[:40]}"]


def _head_size(config: Any) -> int:
    size = getattr(config, "head_dim", None)
    return int(size or config.hidden_size // config.num_attention_heads)


def _lost_rope(reader: gguf.GGUFReader, model: Any, theta: float) -> list[str]:
    rope = dict(model.config.rope_parameters)
    found = float(rope.get("rope_theta") or 0.0)
    if abs(found - theta) > 1e-6 * theta:
        return [f"a RoPE base of {theta}"]
    tensors = [tensor for tensor in reader.tensors if tensor.name == ROPE_FACTORS]
    if not tensors:
        return []
    factors = torch.tensor(tensors[0].data, dtype=torch.float32).flatten()
    if bool((factors == 1).all()):
        return []
    # llama.cpp's converter takes the trained window before scaling from the config; 8192 in all.
    for factor in LLAMA3_FACTORS:
        scaled = rope | {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        if _gives(model, scaled, factors):
            model.config.rope_parameters = scaled
            return []
    return [f"tensor {ROPE_FACTORS}"]


def _gives(model: Any, rope: dict[str, Any], factors: torch.Tensor) -> bool:
    """Whether a RoPE's frequencies are those of the model's divided by `factors`."""
    rotary = model.get_decoder().rotary_emb
    config = type(model.config)(**model.config.to_dict() | {"rope_parameters": rope})
    frequencies = type(rotary)(config=config).inv_freq
    plain = rotary.inv_freq
    if factors.shape != plain.shape:
        return False
    return torch.allclose(plain / frequencies, factors, rtol=1e-5, atol=0)


def _lost_split(stated: dict[str, Any]) -> list[str]:
    """A split of text that neither transformers nor `restore_digit_split` restores."""
    if stated.get("tokenizer.ggml.model") != "gpt2":
        return []
    pre = stated.get("tokenizer.ggml.pre")
    known = pre in DIGITS_FIRST or pre in ("gpt-2", "gpt2")
    known = known or pre in _restored_splits(stated.get("general.architecture"))
    return [] if known else [f"tokenizer.ggml.pre = {pre}"]


def _restored_splits(architecture: Any) -> Collection[str]:
    """The splits that this release of transformers restores for an architecture."""
    with contextlib.suppress(ImportError, AttributeError):
        mapping = importlib.import_module("transformers.integrations.gguf.gguf_tokenizer_mapping")
        splits: Collection[str] = mapping.GGUF_PRE_TOKENIZER_SPLITS
        return splits
    # Releases before 5.24 have no such table. Qwen's tokenizer is made by a converter of its own.
    ggml = importlib.import_module("transformers.integrations.ggml")
    converter = ggml.GGUF_TO_FAST_CONVERTERS.get(architecture)
    return ("qwen2",) if converter is ggml.GGUFQwen2Converter else ()


def _lost_tensors(reader: gguf.GGUFReader, model: Any) -> list[str]:
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    config = model.config.to_dict()
    architecture = reader.fields["general.architecture"].contents()
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config)
    known = get_gguf_hf_weights_map(model, processor)
    # Experts' tensors are split and renamed; a missing one is found when weights are loaded.
    return [
        f"tensor {tensor.name}"
        for tensor in reader.tensors
        if tensor.name not in known and tensor.name != ROPE_FACTORS and "_exps." not in tensor.name
    ]
