"""Law 9: a conversation fed turn by turn has the ids of the chat template over the whole."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvfidelity.dialogues.pool import Turn
from kvfidelity.dialogues.segments import DATE, ChatSegmenter
from kvfidelity.errors import UserError
from tests.default_run import MODEL
from tests.dialogues.conftest import bundled_records, make_tokenizer

# Whitespace next to the template's own, characters of other scripts, text that merges.
TEXT = st.one_of(
    st.text(st.sampled_from("ab \n\t.é日\u200d🦉"), min_size=1, max_size=12),
    st.text(min_size=1, max_size=30).filter(lambda text: text.isprintable()),
    st.sampled_from(["\n", " ", "\n\nassistant\n", "user", " Hello", "a\n\n\n", "```\ncode\n```"]),
)
SPECIAL = st.sampled_from(
    [
        "<|im_end|>",
        "<|im_start|>user\n",
        "<|eot_id|>",
        "</s>",
        "[/INST]",
        "<|endoftext|>",
        "<s>",
        "<|end|>",
    ]
)
TURNS = st.lists(st.builds(Turn, TEXT, TEXT), min_size=1, max_size=4)
HOSTILE = st.builds(lambda *parts: "".join(parts), TEXT, SPECIAL, TEXT)


def messages(turns: list[Turn]) -> list[dict[str, str]]:
    return [
        {"role": role, "content": text}
        for turn in turns
        for role, text in (("user", turn.user), ("assistant", turn.assistant))
    ]


def template_ids(tokenizer: Any, turns: list[Turn]) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template(
        messages(turns), tokenize=True, return_dict=False, date_string=DATE
    )
    return ids


def fed(segmenter: ChatSegmenter, turns: list[Turn]) -> list[int]:
    return [i for part in segmenter.segments(turns) for i in (*part.prompt_ids, *part.reply_ids)]


@given(TURNS)
@example([Turn("a", " \n")])
@example([Turn("\n \n", "\n a \n")])
def test_segments_put_together_are_the_template_over_the_whole(
    tokenizer: Any, turns: list[Turn]
) -> None:
    segmenter = ChatSegmenter(tokenizer)
    ours, whole = fed(segmenter, turns), template_ids(tokenizer, turns)
    assert whole[: len(ours)] == ours
    assert segmenter.count(turns) == len(ours)
    # Only what the template writes after the last end of turn may be missing.
    assert not set(whole[len(ours) :]) & set(segmenter.stop_ids)


@given(st.lists(st.builds(Turn, HOSTILE, HOSTILE), min_size=1, max_size=3))
def test_text_that_looks_like_a_special_token_stays_text(tokenizer: Any, turns: list[Turn]) -> None:
    segmenter = ChatSegmenter(tokenizer)
    special = set(tokenizer.added_tokens_decoder)
    harmless = [Turn("x", "x") for _ in turns]
    count = sum(token in special for token in fed(segmenter, turns))
    assert count == sum(token in special for token in fed(segmenter, harmless))
    for turn, part in zip(turns, segmenter.segments(turns), strict=True):
        assert turn.user.strip() in tokenizer.decode(part.prompt_ids)
        assert turn.assistant.strip() in tokenizer.decode(part.reply_ids)


def test_every_reply_closes_with_the_end_of_turn(tokenizer: Any) -> None:
    segmenter = ChatSegmenter(tokenizer)
    for part in segmenter.segments([Turn("Hi", "Hello"), Turn("So?", "Well")]):
        assert part.reply_ids[-1:] == segmenter.end_of_turn_ids
        assert set(segmenter.end_of_turn_ids) <= segmenter.stop_ids
        assert part.prompt_ids


def test_a_prompt_ends_where_the_reply_is_to_begin() -> None:
    tokenizer = make_tokenizer("chatml")
    first, second = ChatSegmenter(tokenizer).segments([Turn("Hi", "Hello"), Turn("So?", "Well")])
    assert tokenizer.decode(first.prompt_ids).endswith(
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(first.reply_ids) == "Hello<|im_end|>"
    assert tokenizer.decode(second.prompt_ids).startswith("\n<|im_start|>user\nSo?")


def test_long_prompts_are_cut_only_when_asked(segmenter: ChatSegmenter) -> None:
    turns = [Turn("word " * 400, "yes")]
    whole, cut = segmenter.segments(turns), segmenter.segments(turns, max_prompt_tokens=50)
    overhead = len(segmenter.segments([Turn("x", "yes")])[0].prompt_ids)
    assert len(whole[0].prompt_ids) > 400
    assert len(cut[0].prompt_ids) <= 50 + overhead
    assert cut[0].reply_ids == whole[0].reply_ids


def test_a_megabyte_in_one_turn_is_cut_into_segments(segmenter: ChatSegmenter) -> None:
    [part] = segmenter.segments([Turn("lorem ipsum " * 90_000, "fine")])
    assert len(part.prompt_ids) > 200_000


def test_a_tokenizer_without_template_is_refused() -> None:
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        ChatSegmenter(tokenizer)


def test_a_template_that_rewrites_earlier_messages_is_refused() -> None:
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = (
        "{{ messages | length }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{{ message['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(UserError, match="rewrites earlier"):
        ChatSegmenter(tokenizer)


@pytest.mark.network
@pytest.mark.timeout(1500)
def test_the_bundled_dialogues_with_the_real_tokenizer(default_inputs: None) -> None:
    """SmolLM2's own tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    for record in bundled_records():
        texts = [message["value"] for message in record["conversations"]]
        turns = [Turn(*pair) for pair in zip(texts[::2], texts[1::2], strict=True)]
        whole = template_ids(tokenizer, turns)
        ours = fed(ChatSegmenter(tokenizer), turns)
        assert whole[: len(ours)] == ours
        assert 1500 <= len(ours) <= 3000
