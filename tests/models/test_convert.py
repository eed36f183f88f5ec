"""A GGUF file becomes a model directory that computes the same, always the same bytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from kvfidelity.errors import UserError
from kvfidelity.models.convert import convert_gguf
from kvfidelity.models.load import load_model
from tests.models.tiny import tiny_tokenizer, write_gguf

CHAT = [
    {"role": "user", "content": "list 3 things\n\n1. a  22"},
    {"role": "assistant", "content": "\n\n2. the"},
]


def digests(directory: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in directory.iterdir()}


@pytest.mark.parametrize("quantised", [False, True], ids=["fp32", "Q4_1"])
def test_a_converted_model_has_exactly_the_weights_of_its_gguf(
    tmp_path: Path, quantised: bool
) -> None:
    expected = write_gguf(tmp_path / "tiny.gguf", quantised=quantised)
    (tmp_path / "model").mkdir()
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "model")
    model, _ = load_model(tmp_path / "model", "float32", "cpu")
    for name, weight in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    ids = torch.arange(3, 60)[None]
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, expected(ids).logits)


def test_conversion_gives_the_same_bytes_each_time(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", quantised=True)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        convert_gguf(tmp_path / "tiny.gguf", tmp_path / name)
    assert digests(tmp_path / "first") == digests(tmp_path / "second")
    assert not (json.loads((tmp_path / "first/config.json").read_text())).get("quantization_config")


def test_the_tokenizer_keeps_template_special_tokens_and_digit_split(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", quantised=False)
    (tmp_path / "model").mkdir()
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "model")
    _, tokenizer = load_model(tmp_path / "model", "float32", "cpu")
    original = tiny_tokenizer()
    assert tokenizer.eos_token == "<|im_end|>"
    ours, theirs = (t.apply_chat_template(CHAT)["input_ids"] for t in (tokenizer, original))
    assert ours == theirs
    assert "ĊĊ" in tokenizer.convert_ids_to_tokens(ours)
    plain = {"add_special_tokens": False, "split_special_tokens": True}
    assert tokenizer("<|im_end|>", **plain) == original("<|im_end|>", **plain)


def test_another_split_is_left_as_transformers_restores_it(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", quantised=False, pre="gpt-2")
    (tmp_path / "model").mkdir()
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "model")
    _, tokenizer = load_model(tmp_path / "model", "float32", "cpu")
    # GPT-2's split leaves the last newline to what follows it.
    assert tokenizer.tokenize("\n\n2") == ["Ċ", "Ċ", "2"]


def test_a_file_that_is_no_gguf_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUX" + bytes(100))
    with pytest.raises(UserError, match=r"bad\.gguf cannot be converted"):
        convert_gguf(tmp_path / "bad.gguf", tmp_path)


def test_a_truncated_gguf_is_named(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", quantised=True)
    whole = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "tiny.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"tiny\.gguf cannot be converted"):
        convert_gguf(tmp_path / "tiny.gguf", tmp_path)
