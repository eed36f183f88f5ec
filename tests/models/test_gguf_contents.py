"""Whatever a GGUF file states is in the converted model, or the file is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter, RopeScalingType
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaRotaryEmbedding

from kvfidelity.errors import UserError
from kvfidelity.models.convert import convert_gguf
from kvfidelity.models.load import load_model
from tests.models.tiny import HEADS, HIDDEN, write_gguf

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def converted(folder: Path, more: Callable[[GGUFWriter], object]) -> LlamaForCausalLM:
    expected: LlamaForCausalLM = write_gguf(folder / "tiny.gguf", quantised=False, more=more)
    (folder / "model").mkdir()
    convert_gguf(folder / "tiny.gguf", folder / "model")
    return expected


def factors(factor: float) -> np.ndarray:
    """Divisors of the frequencies, as llama.cpp's converter writes them."""
    plain, scaled = (
        LlamaRotaryEmbedding(
            LlamaConfig(
                head_dim=HIDDEN // HEADS,
                rope_parameters=LLAMA3 | {"factor": factor} if factor != 1 else None,
            )
        ).inv_freq
        for factor in (1.0, factor)
    )
    return (plain / scaled).numpy().astype(np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_a_llama3_rope_is_restored_exactly(tmp_path: Path, factor: float) -> None:
    plain = converted(tmp_path, lambda w: w.add_tensor("rope_freqs.weight", factors(factor)))
    model, _ = load_model(tmp_path / "model", "float32", "cpu")
    config = LlamaConfig(
        **plain.config.to_dict() | {"rope_parameters": LLAMA3 | {"factor": factor}}
    )
    expected = LlamaForCausalLM(config).eval()
    expected.load_state_dict(plain.state_dict())
    ids = torch.arange(3, 200)[None]
    with torch.inference_mode():
        found = model(ids).logits
        assert torch.equal(found, expected(ids).logits)
        assert not torch.allclose(found, plain(ids).logits, atol=1e-5)


def test_other_factors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not represent tensor rope_freqs\.weight"):
        converted(tmp_path, lambda w: w.add_tensor("rope_freqs.weight", factors(8.0) ** 2))


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (lambda w: w.add_rope_scaling_type(RopeScalingType.YARN), r"rope\.scaling\.type = yarn"),
        (lambda w: w.add_rope_scaling_factor(4.0), r"rope\.scaling\.factor = 4"),
        (lambda w: w.add_sliding_window(128), r"attention\.sliding_window = 128"),
        (lambda w: w.add_attn_logit_softcapping(50.0), "attn_logit_softcapping = 50"),
        (lambda w: w.add_logit_scale(8.0), "logit_scale = 8"),
        (lambda w: w.add_embedding_scale(12.0), "embedding_scale = 12"),
        (lambda w: w.add_residual_scale(0.2), "residual_scale = 0.2"),
        (lambda w: w.add_attention_scale(0.1), r"attention\.scale = 0.1"),
        (lambda w: w.add_key_length(8), r"attention\.key_length = 8"),
        (lambda w: w.add_uint32("llama.new_kind", 3), r"llama\.new_kind = 3"),
        (lambda w: w.add_add_space_prefix(True), "add_space_prefix = True"),
        (
            lambda w: w.add_tensor("blk.0.attn_sinks.weight", np.ones(4, np.float32)),
            r"tensor blk\.0\.attn_sinks\.weight",
        ),
        (
            lambda w: w.add_tensor("blk.0.attn_q.bias", np.ones(HIDDEN, np.float32)),
            r"tensor blk\.0\.attn_q\.bias",
        ),
    ],
)
def test_what_the_model_would_not_represent_is_named(
    tmp_path: Path, more: Callable[[GGUFWriter], object], named: str
) -> None:
    with pytest.raises(UserError, match=rf"tiny\.gguf cannot be converted.*{named}"):
        converted(tmp_path, more)


def test_what_agrees_or_changes_nothing_is_taken(tmp_path: Path) -> None:
    def more(writer: GGUFWriter) -> None:
        writer.add_key_length(HIDDEN // HEADS)
        writer.add_add_space_prefix(False)
        writer.add_value_length(HIDDEN // HEADS)
        writer.add_rope_scaling_type(RopeScalingType.NONE)
        writer.add_tensor("rope_freqs.weight", np.ones(HIDDEN // HEADS // 2, np.float32))

    expected = converted(tmp_path, more)
    model, _ = load_model(tmp_path / "model", "float32", "cpu")
    ids = torch.arange(3, 60)[None]
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, expected(ids).logits)


def test_a_split_that_is_not_restored_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", quantised=False, pre="chameleon")
    with pytest.raises(UserError, match=r"tokenizer\.ggml\.pre = chameleon"):
        convert_gguf(tmp_path / "tiny.gguf", tmp_path)
