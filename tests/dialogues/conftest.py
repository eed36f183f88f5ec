"""Small tokenizers, trained here in a second, with chat templates of four families."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from kvfidelity.dialogues.segments import ChatSegmenter

ROOT = Path(__file__).parents[2]
BUNDLED = ROOT / "resources" / "dialogues" / "own.jsonl"

# Default system prompt and no trimming, as SmolLM2 and Qwen2.5 have it.
CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Contents trimmed, a date in the system prompt, nothing between messages.
LLAMA3 = (
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\n"
    "Today Date: {{ date_string }}<|eot_id|>"
    "{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# No header before a reply; the prompt's end is a special token and spaces are the template's.
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "[INST] {{ message['content'] }} [/INST]{% else %} {{ message['content'] | trim }}"
    "{{ eos_token }}{% endif %}{% endfor %}"
)
QWEN3 = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'].strip('\\n') }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Its special tokens swallow the white space behind them.
PHI3 = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# name: template, special tokens, bos, eos
FAMILIES: dict[str, tuple[str, list[str], str, str]] = {
    "chatml": (
        CHATML,
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "<|im_start|>",
        "<|im_end|>",
    ),
    "llama3": (
        LLAMA3,
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|begin_of_text|>",
        "<|eot_id|>",
    ),
    "mistral": (MISTRAL, ["<s>", "</s>", "[INST]", "[/INST]"], "<s>", "</s>"),
    "phi3": (PHI3, ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"], "<|end|>", "<|end|>"),
    "qwen3": (QWEN3, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|im_end|>", "<|im_end|>"),
}


def bundled_records() -> list[Any]:
    """The project's own dialogues, as their file has them."""
    return [json.loads(line) for line in BUNDLED.read_text(encoding="utf-8").splitlines()]


def make_tokenizer(family: str) -> Any:
    """Byte-level BPE trained on the project's own dialogues, 600 entries."""
    template, names, bos, eos = FAMILIES[family]
    special = [AddedToken(name, rstrip=family == "phi3", special=True) for name in names]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [
        message["value"] for record in bundled_records() for message in record["conversations"]
    ]
    # Line ends next to the template's own must merge, or no test would meet that case.
    inner.train_from_iterator([*texts, "\n\n\n \n\n\nassistant\n\nuser\n" * 50], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        chat_template=template,
        bos_token=bos,
        eos_token=eos,
        extra_special_tokens=special,
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session", params=list(FAMILIES))
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return make_tokenizer(request.param)


@pytest.fixture(scope="session")
def segmenter() -> ChatSegmenter:
    return ChatSegmenter(make_tokenizer("chatml"))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer, as a converted model has."""
    folder = tmp_path_factory.mktemp("model")
    make_tokenizer("chatml").save_pretrained(folder)
    return folder
