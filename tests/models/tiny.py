"""A tiny chat model as a model directory and as a GGUF file: random weights, real file formats."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import dequantize, quantize
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
#: Merges that tell a tokenizer that splits digits first from one that does not.
MERGES = [("Ċ", "Ċ"), ("Ġ", "t"), ("Ġ", "Ġ")]
# Rows of a Q4_1 tensor are whole blocks of 32.
HIDDEN, HEADS, KV_HEADS, WIDTH, LAYERS = 64, 4, 2, 96, 2


def vocabulary() -> list[str]:
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*SPECIAL, *bytes_, *(a + b for a, b in MERGES)]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that splits digits first, with a ChatML template."""
    ids = {token: index for index, token in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=MERGES))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = {"bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "pad_token": SPECIAL[2]}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=TEMPLATE, unk_token=SPECIAL[0], **special
    )


def tiny_llama(seed: int = 0) -> Any:
    """A random-weight Llama in fp32 for that tokenizer."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=HIDDEN,
        intermediate_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def save_tiny(directory: Path, seed: int = 0) -> Path:
    """Save both as a model directory."""
    tiny_llama(seed).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def write_gguf(
    file: Path,
    *,
    quantised: bool,
    pre: str = "smollm",
    more: Callable[[GGUFWriter], object] = lambda writer: None,
) -> Any:
    """Write the tiny model as GGUF the way llama.cpp's converter does.

    Args:
        more: adds further keys or tensors.

    Returns:
        The model whose weights a correct reader finds in the file.
    """
    model = copy.deepcopy(tiny_llama())
    writer = GGUFWriter(file, "llama")
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(WIDTH)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(vocabulary()))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(vocabulary())
    kinds = [TokenType.CONTROL] * len(SPECIAL)
    writer.add_token_types(kinds + [TokenType.NORMAL] * (len(vocabulary()) - len(SPECIAL)))
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    more(writer)
    state = model.state_dict()
    for name, key in names().items():
        weight = permute(name, state[key].numpy())
        if quantised and weight.ndim == 2:
            blocks = quantize(weight, GGMLQuantizationType.Q4_1)
            writer.add_tensor(name, blocks, raw_dtype=GGMLQuantizationType.Q4_1)
            found = dequantize(blocks, GGMLQuantizationType.Q4_1).astype(np.float32)
            state[key].copy_(torch.from_numpy(permute(name, found, back=True).copy()))
        else:
            writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def names() -> dict[str, str]:
    """Tensor names in GGUF and in transformers."""
    whole = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    parts = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    for layer in range(LAYERS):
        for ours, theirs in parts.items():
            whole[f"blk.{layer}.{ours}.weight"] = f"model.layers.{layer}.{theirs}.weight"
    return whole


def permute(name: str, weight: Any, *, back: bool = False) -> Any:
    """GGUF interleaves the halves of each rotary head; rows of queries and keys are permuted."""
    heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(name.split(".")[-2])
    if heads is None:
        return weight
    half = weight.shape[0] // heads // 2
    split = (heads, half, 2, -1) if back else (heads, 2, half, -1)
    return np.ascontiguousarray(weight.reshape(split).swapaxes(1, 2).reshape(weight.shape))
