"""Published chat templates, and tokenizers that have their special tokens."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from kvfidelity.dialogues.pool import Turn
from kvfidelity.dialogues.templates import SETTINGS, TODAY
from tests.dialogues.conftest import bundled_records

FOLDER = Path(__file__).parent / "templates"
PUBLISHED = {file.stem: file.read_text(encoding="utf-8") for file in sorted(FOLDER.glob("*.jinja"))}
# As Mistral-7B-Instruct-v0.2 and TinyLlama-1.1B-Chat (both Apache-2.0) have them.
PUBLISHED["mistral"] = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != "
    "(loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate "
    "user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ message['content'] + eos_token}}{% else %}{{ raise_exception('Only user and assistant "
    "roles are supported!') }}{% endif %}{% endfor %}"
)
PUBLISHED["tinyllama"] = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + "
    "message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == "
    "'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
    "{% endfor %}"
)
#: Templates without a way to feed a conversation turn by turn, and what the refusal says.
REFUSED = {
    "deepseek_r1_distill": "ends its generation prompt with '<think>",
    "smolvlm": "leaves out, repeats or alters messages",
}
#: How a tokenizer treats spaces: GPT-2's way, or SentencePiece's with a space before the first
#: word (`legacy: false`) or before every piece.
KINDS = ("bytes", "bpe-first", "bpe-always", "unigram-first")
MARKS = re.compile(r"<[|｜]?[^<>\s|｜]+[|｜]?>|\[gMASK\]")
BOS, EOS, UNKNOWN = "<s>", "</s>", "<unk>"


def control_tokens(name: str, template: str) -> list[str]:
    """The marks that a template writes. TinyLlama's are plain text to its tokenizer."""
    marks = set() if name == "tinyllama" else set(MARKS.findall(template))
    return sorted(marks - {BOS, EOS, UNKNOWN})


@cache
def trained(kind: str) -> str:
    """A tokenizer of a thousand entries trained on the project's own dialogues, as JSON."""
    texts = [turn["value"] for record in bundled_records() for turn in record["conversations"]]
    texts.append("\n\n\n \n\n\nassistant\n\nuser\n" * 50)
    options: dict[str, Any] = {"special_tokens": [UNKNOWN, BOS, EOS], "show_progress": False}
    if kind == "bytes":
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, **options)
        inner.train_from_iterator(texts, trainer)
        return str(inner.to_str())
    model, scheme = kind.split("-")
    words = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    if model == "bpe":
        inner = Tokenizer(models.BPE(unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True))
        trainer = trainers.BpeTrainer(vocab_size=600, **options)
    else:
        inner = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(vocab_size=600, unk_token=UNKNOWN, **options)
    inner.pre_tokenizer = words
    inner.train_from_iterator(texts, trainer)
    # SentencePiece has a token for every byte, and does not split its text into words.
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    state = json.loads(inner.to_str())
    vocabulary, size = state["model"]["vocab"], len(state["model"]["vocab"])
    for byte in range(256):
        token = f"<0x{byte:02X}>"
        if model == "bpe":
            vocabulary[token] = size + byte
        else:
            vocabulary.append([token, -30.0])
    state["model"]["byte_fallback"] = True
    return json.dumps(state)


def make_published(name: str, kind: str, template: str | None = None) -> Any:
    """A tokenizer with a published chat template and its special tokens."""
    template = PUBLISHED[name] if template is None else template
    # `<think>` and such are added tokens without the flag `special`, as Qwen3 has them.
    added = [
        AddedToken(
            mark,
            special="|" in mark or "｜" in mark,
            normalized=False,
            rstrip=name.startswith("phi3"),
        )
        for mark in control_tokens(name, template)
    ]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(trained(kind)),
        chat_template=template,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens(added)
    return tokenizer


def whole_ids(tokenizer: Any, turns: list[Turn]) -> list[int]:
    """The template over the whole conversation, by transformers alone, on the fixed day."""
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in (("user", turn.user), ("assistant", turn.assistant))
    ]
    with day(TODAY):
        text = tokenizer.apply_chat_template(messages, tokenize=False, **SETTINGS)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def day(date: Any) -> Any:
    """A context in which the clock of chat templates stands at this date."""
    clock = mock.Mock(now=lambda: date)
    return mock.patch("transformers.utils.chat_template_utils.datetime", clock)
