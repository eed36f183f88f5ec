"""A tokenizer is the one that transformers chooses, and needs no PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from kvfidelity.dialogues.tokenizer import GENERIC, load_tokenizer
from kvfidelity.errors import UserError

#: Contents that no reader of JSON files may crash on.
HOSTILE = {
    "arrays": '{"a":' + "[" * 100_000 + "]" * 100_000 + "}",
    "objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "digits": '{"eos_token_id": ' + "9" * 5000 + "}",
    "cut": '{"a": ',
    "bytes": "\0\0",
}
LOADED = (
    "import sys; from kvfidelity.dialogues.tokenizer import load_tokenizer; "
    "load_tokenizer(sys.argv[1]); print('torch' in sys.modules)"
)


def test_it_is_the_tokenizer_that_transformers_chooses(model_folder: Path, tmp_path: Path) -> None:
    text = "Two  words,\n\n2. <|im_start|>user"
    for named in (GENERIC, "GPT2Tokenizer", None):
        folder = tmp_path / str(named)
        folder.mkdir()
        for file in model_folder.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(
            json.dumps(config | {"tokenizer_class": named})
        )
        ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
        assert type(ours) is type(theirs)
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]
        assert ours.chat_template == theirs.chat_template
        assert ours.init_kwargs.get("model_max_length") == theirs.init_kwargs.get(
            "model_max_length"
        )


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, "[]", '{"a": ' + "9" * 4301 + "}", "{"],
    ids=["nested", "no object", "a long number", "cut off"],
)
def test_a_broken_configuration_is_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "tokenizer_config.json"
    file.write_text(text)
    with pytest.raises(UserError, match="fetch the model again") as caught:
        load_tokenizer(tmp_path)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("named", [GENERIC, "GPT2Tokenizer"])
@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.json",
        "generation_config.json",
        "vocab.json",
    ],
)
def test_a_hostile_file_is_one_line(
    model_folder: Path, tmp_path: Path, name: str, named: str, text: str
) -> None:
    folder = copied(model_folder, tmp_path, named)
    (folder / name).write_text(text)
    with pytest.raises(UserError, match="fetch the model again") as caught:
        load_tokenizer(folder)
    message = str(caught.value)
    assert name in message and "\n" not in message and len(message) < 500


@pytest.mark.parametrize("named", [GENERIC, "GPT2Tokenizer"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer.json", "[1]"),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": [1], "merges": 7}}'),
        ("tokenizer_config.json", "[1]"),
        ("tokenizer_config.json", '{"tokenizer_class": 7}'),
        ("tokenizer_config.json", '{"tokenizer_class": "%s", "model_max_length": [null]}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": 1}}'),
    ],
)
def test_a_file_of_another_form_is_one_line(
    model_folder: Path, tmp_path: Path, name: str, named: str, text: str
) -> None:
    folder = copied(model_folder, tmp_path, named)
    (folder / name).write_text(text.replace("%s", named))
    with pytest.raises(UserError, match="fetch the model again") as caught:
        load_tokenizer(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def copied(model_folder: Path, folder: Path, named: str) -> Path:
    for file in model_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": named}))
    return folder


def test_a_saved_one_needs_no_pytorch(model_folder: Path) -> None:
    command = [sys.executable, "-c", LOADED, str(model_folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
