"""Counting words never says more tokens than there are, and chooses the same dialogues."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from kvfidelity.dialogues.extract import extract
from kvfidelity.dialogues.least_tokens import tokens_keep_words_apart
from kvfidelity.dialogues.pool import Turn
from kvfidelity.dialogues.segments import ChatSegmenter
from tests.dialogues.conftest import BUNDLED, bundled_records
from tests.dialogues.published import KINDS, make_published

SPACES = [" ", "  ", "\n", "\n\n", "\t", "\r\n", "\x0b", "\u00a0", "\u3000", ""]


def byte_level(vocabulary: list[str], normalizer: Any = None) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = {token: index for index, token in enumerate([*alphabet, *vocabulary])}
    made = Tokenizer(models.BPE(entries, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer is not None:
        made.normalizer = normalizer
    return made


def test_no_text_has_fewer_tokens_than_the_bound(tokenizer: Any) -> None:
    """The most frequent words of the training text, which are one token each, and odd spaces."""
    segmenter = ChatSegmenter(tokenizer)
    words = BUNDLED.read_text(encoding="utf-8").split()[:3000]
    chance = random.Random(1)
    for _ in range(200):
        texts = [
            "".join(chance.choice(words) + chance.choice(SPACES) for _ in range(30)).strip()
            for _ in range(4)
        ]
        turns = [Turn(*texts[:2]), Turn(*texts[2:])]
        assert 0 < segmenter.least_count(turns) <= segmenter.count(turns)
    short = [Turn("a", "b")] * 40
    assert segmenter.least_count(short) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_only_byte_level_tokenizers_give_a_bound(kind: str) -> None:
    segmenter = ChatSegmenter(make_published("qwen3", kind))
    known = segmenter.least_count([Turn("one two three four", "five six")])
    assert known == (4 if kind == "bytes" else 0)


@pytest.mark.parametrize("token", ["aĠb", "Ġofĉthe", "xĊĊy"])
def test_a_token_of_two_words_gives_no_bound(token: str) -> None:
    assert tokens_keep_words_apart(byte_level(["ĠĠ", "Ġof", "ofĠ", "ĊĊx"]))
    assert not tokens_keep_words_apart(byte_level([token]))
    added = byte_level([])
    added.add_tokens(["two words"])
    assert not tokens_keep_words_apart(added)


def test_a_normalizer_that_may_drop_text_gives_no_bound() -> None:
    assert tokens_keep_words_apart(byte_level([], normalizers.NFC()))
    assert not tokens_keep_words_apart(byte_level([], normalizers.StripAccents()))
    assert not tokens_keep_words_apart(byte_level([], normalizers.Replace("a", "")))


def test_the_same_dialogues_are_chosen_and_the_same_reasons_counted(
    tmp_path: Path, segmenter: ChatSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = [
        {"id": f"long-{n}", "conversations": record["conversations"] * 6}
        for n, record in enumerate(bundled_records())
    ]
    lines = map(json.dumps, [*bundled_records(), *long])
    (tmp_path / "data.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "provenance.json").write_text("{}")
    entry: dict[str, Any] = {"format": "sharegpt", "select": {"max_similarity": None}}
    tokens = extract(tmp_path, entry, segmenter)[1]["tokens"]
    entry["select"]["max_tokens"] = sorted(tokens)[len(long) - 1]
    pool, manifest = extract(tmp_path, entry, segmenter)
    assert manifest["dropped"]["too_many_tokens"] == len(long)
    encoded: list[Any] = []
    count = segmenter.count

    def counting(turns: Any) -> int:
        encoded.append(turns)
        return count(turns)

    monkeypatch.setattr(segmenter, "count", counting)
    extract(tmp_path, entry, segmenter)
    assert len(encoded) == len(long), "the words of a long one are enough"
    monkeypatch.setattr(segmenter, "least_count", lambda turns: 0)
    whole, counts = extract(tmp_path, entry, segmenter)
    assert pool.equals(whole) and manifest == counts
