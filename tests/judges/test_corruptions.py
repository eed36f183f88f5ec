"""Corruptions of good replies: each does what its name says."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvfidelity.judges.corruption_kinds import GOOD, KINDS
from kvfidelity.judges.corruptions import (
    INJECTED_TEXT,
    GoodReply,
    corrupt_replies,
    corruptions,
    first_sentences,
    with_injection,
    wrong_fact,
)
from kvfidelity.metrics.text import echo_share, repetition, words_of

REPLY = "The old harbour of Lisbon opened in 1755 and it is the largest one in Portugal."
OTHER = "Knitting needles are usually sized by their diameter, said Johanna to the class."


def dialogue(ordinal: int, turns: int = 3) -> dict[str, Any]:
    words = [REPLY, OTHER][ordinal % 2]
    return {
        "ordinal": f"{ordinal:03d}",
        "turns": [
            {"user": f"Tell me about subject {ordinal} in turn {turn}, please.", "assistant": words}
            for turn in range(turns)
        ],
    }


POOL = [dialogue(number) for number in range(6)]
SETTING = {"replies": 8, "max_words": 32, "max_context_words": 60, "seed": 0}


def test_replies_are_spread_over_dialogues_and_kinds_complete() -> None:
    texts = corrupt_replies(POOL, **SETTING)
    good = texts.filter(kind=GOOD)
    assert good.height == 8 and good["dialogue"].n_unique() == 6
    assert max(Counter(good["dialogue"]).values()) == 2
    assert set(texts["kind"]) == {GOOD, *KINDS}
    assert corrupt_replies(POOL, **SETTING).equals(texts)
    assert not corrupt_replies(POOL, **SETTING | {"seed": 1}).equals(texts)


def test_what_stands_before_a_reply_is_short_enough_and_given() -> None:
    texts = corrupt_replies(POOL, **SETTING | {"replies": 100})
    for row in texts.filter(kind=GOOD).to_dicts():
        text = [turn["user"] + " " + turn["assistant"] for turn in row["history"]]
        assert len(row["history"]) == row["turn"]
        assert len(" ".join([*text, row["prompt"]]).split()) <= 60


def kinds(reply: str = REPLY, others: tuple[str, ...] = (OTHER,)) -> dict[str, str]:
    prompt = "Which harbour is the largest one in all of Portugal today?"
    items = [GoodReply(f"{n}", 0, (), "x", text) for n, text in enumerate(others)]
    return dict(corruptions(GoodReply("me", 0, (), prompt, reply), items, random.Random(0)))


def test_each_corruption_by_its_trait() -> None:
    found = kinds()
    assert Counter(found["shuffle"].split()) == Counter(REPLY.split())
    assert found["shuffle"] != REPLY
    assert (repetition(words_of(found["repetition"]), 3) or 0) > 0.5
    prompt = words_of("Which harbour is the largest one in all of Portugal today?")
    assert echo_share(words_of(found["echo"]), prompt) == 1
    assert found["other_dialogue"] == OTHER
    assert "truncation" not in found  # rubrics do not hold a cut-off against a reply
    changed = [a != b for a, b in zip(REPLY.split(), found["wrong_fact"].split(), strict=True)]
    assert sum(changed) == 1
    assert "1755" not in found["wrong_fact"]


@pytest.mark.parametrize(
    ("reply", "wrong"),
    [
        ("I met Anna in the town and we went home.", "I met Johanna in the town and we went home."),
        ("the water is cold here in winter", "the water is not cold here in winter"),
        ("the water is not cold here in winter", "the water is cold here in winter"),
        ("you can swim in this lake", "you cannot swim in this lake"),
        ("nothing to change in here", None),
    ],
)
def test_a_fact_is_a_number_a_name_or_a_statement(reply: str, wrong: str | None) -> None:
    assert wrong_fact(reply, [OTHER], random.Random(0)) == wrong


def test_a_kind_that_a_reply_does_not_allow_is_left_out() -> None:
    alone = kinds(others=())
    assert "other_dialogue" not in alone
    assert "wrong_fact" not in kinds("nothing here that anybody ever turned round", ())


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        (
            "One two three four five six seven eight. Nine ten eleven.",
            "One two three four five six seven eight.",
        ),
        ("Here are the steps that you should follow now:\n\n1. Go home", None),
        ("We bought it from the house of Miller Ltd. and sold it later on", None),
        ("Too short.", None),
        (
            'He said "it is all over now, go home again."',
            'He said "it is all over now, go home again."',
        ),
    ],
)
def test_a_good_reply_ends_where_a_sentence_does(text: str, cut: str | None) -> None:
    assert first_sentences(text, 10) == cut


@given(st.text(alphabet="ab .\n1?", max_size=200), st.integers(8, 20))
def test_a_beginning_is_one(text: str, words: int) -> None:
    found = first_sentences(text, words)
    if found is not None:
        assert text.strip().startswith(found)
        assert 8 <= len(found.split()) <= words


def test_words_to_the_judge_are_added_to_shuffled_replies() -> None:
    texts = corrupt_replies(POOL, **SETTING)
    text = with_injection(texts)
    assert text.height == texts.filter(kind="shuffle").height
    for row, plain in zip(text.to_dicts(), texts.filter(kind="shuffle").to_dicts(), strict=True):
        assert row["reply"] == f"{plain['reply']}\n\n{INJECTED_TEXT}"


def test_dialogues_without_a_good_reply_give_an_empty_table() -> None:
    assert corrupt_replies([], **SETTING).is_empty()
