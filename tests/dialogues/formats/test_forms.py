"""Published formats with questions, and short dialogues made long: fixtures written by hand."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kvfidelity.dialogues.cleaning import questions_of, turns_of
from kvfidelity.dialogues.formats import RawConversation, SourceCounts, read_conversations
from kvfidelity.dialogues.join import join_sessions
from kvfidelity.dialogues.pool import Turn
from kvfidelity.dialogues.segments import ChatSegmenter
from kvfidelity.dialogues.selection import Candidate

LOCOMO = {
    "sample_id": "conv-1",
    "conversation": {
        "speaker_a": "Ada",
        "speaker_b": "Ben",
        "session_10_date_time": "9 am on 2 May",
        "session_10": [{"speaker": "Ben", "dia_id": "D10:1", "text": "I sold the boat."}],
        "session_2_date_time": "8 pm on 1 May",
        "session_2": [
            {"speaker": "Ada", "dia_id": "D2:1", "text": "I adopted a cat."},
            {"speaker": "Ben", "dia_id": "D2:2", "text": "Lovely!", "blip_caption": "a cat"},
            {"speaker": "Ada", "dia_id": "D2:3", "text": "She is &amp; stays grey."},
            {"speaker": "Ada", "dia_id": "D2:4", "text": "And you?"},
        ],
    },
    "qa": [
        {"question": "What pet?", "answer": "a cat", "evidence": ["D2:1"], "category": 4},
        {"question": "Colour?", "answer": "grey", "evidence": ["D2:3; D10:1"], "category": 1},
        {"question": "How many?", "answer": 1, "evidence": [], "category": 2},
        {
            "question": "What dog?",
            "adversarial_answer": "a poodle",
            "evidence": ["D2:1"],
            "category": 5,
        },
    ],
}
LONGMEMEVAL = {
    "question_id": "q1",
    "question_type": "single-session-user",
    "question": "Where do I keep the key?",
    "answer": "under the pot",
    "question_date": "2023/06/01",
    "haystack_dates": ["2023/05/20", "2023/05/21"],
    "haystack_sessions": [
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
        [
            {"role": "user", "content": "The key is under the pot.", "has_answer": True},
            {"role": "assistant", "content": "Noted."},
        ],
    ],
}


def read(path: Path, records: Any, format_: str) -> tuple[list[RawConversation], SourceCounts]:
    path.write_text(json.dumps(records), encoding="utf-8")
    counts = SourceCounts()
    return list(read_conversations(path, format_, counts)), counts


def test_locomo_sessions_stand_in_order_and_open_with_their_dates(tmp_path: Path) -> None:
    [found], _ = read(tmp_path / "data.json", [LOCOMO], "locomo")
    turns, reason = turns_of(found, Counter())
    assert reason is None
    assert turns == (
        Turn("[8 pm on 1 May] I adopted a cat.", "Lovely! [shares a photo: a cat]"),
        Turn("She is & stays grey.\n\nAnd you?", "[9 am on 2 May] I sold the boat."),
    )


def test_locomo_questions_know_the_turns_of_their_evidence(tmp_path: Path) -> None:
    [found], _ = read(tmp_path / "data.json", [LOCOMO], "locomo")
    turns, _ = turns_of(found, Counter())
    pet, colour, many, dog = questions_of(found, turns)
    assert (pet.answer, pet.category, pet.turns) == ("a cat", "single-hop", (0,))
    assert (colour.category, colour.turns) == ("multi-hop", (1,))
    assert (many.answer, many.turns) == ("1", ())
    assert (dog.answer, dog.wrong, dog.category) == ("", ("a poodle",), "adversarial")


@pytest.mark.parametrize("answer", [float("nan"), float("inf"), ["a"], {}, None])
def test_an_answer_that_is_no_text_is_a_malformed_question(tmp_path: Path, answer: Any) -> None:
    [found], counts = read(
        tmp_path / "data.json", [LONGMEMEVAL | {"answer": answer}], "longmemeval"
    )
    assert found.questions == ()
    assert counts.notes["malformed_question_dropped"] == 1


def test_longmemeval_sessions_become_one_conversation(tmp_path: Path) -> None:
    absent = LONGMEMEVAL | {"question_id": "q2_abs"}
    [found, other], _ = read(tmp_path / "data.json", [LONGMEMEVAL, absent], "longmemeval")
    turns, _ = turns_of(found, Counter())
    assert turns[1] == Turn("[2023/05/21] The key is under the pot.", "Noted.")
    [asked] = questions_of(found, turns)
    assert asked.question == "[2023/06/01] Where do I keep the key?"
    assert (asked.answer, asked.turns) == ("under the pot", (1,))
    assert other.questions[0].answer == ""


@pytest.mark.parametrize(
    "records",
    [
        {"A.json": {"goal": {}, "log": [{"text": "A train"}, {"text": "Where to?"}]}},
        [
            {
                "dialogue_id": "A.json",
                "turns": [
                    {"speaker": "USER", "utterance": "A train"},
                    {"speaker": "SYSTEM", "utterance": "Where to?"},
                ],
            }
        ],
        [
            {
                "dialogue_id": "A.json",
                "turns": {"speaker": [0, 1], "utterance": ["A train", "Where to?"]},
            }
        ],
        [
            {
                "id": "A.json",
                "conversations": [
                    {"from": "human", "value": "A train"},
                    {"from": "gpt", "value": "Where to?"},
                ],
            }
        ],
    ],
    ids=["2.1", "2.2", "2.2-hub", "sharegpt"],
)
def test_multiwoz_in_each_of_its_formats(tmp_path: Path, records: Any) -> None:
    [found], _ = read(tmp_path / "data.json", records, "multiwoz")
    assert found.conversation_id == "A.json"
    assert turns_of(found, Counter())[0] == (Turn("A train", "Where to?"),)


def test_short_dialogues_are_joined_until_they_reach_the_target(segmenter: ChatSegmenter) -> None:
    short = [
        Candidate(f"d{n}", (Turn(f"question {n}", "an answer of some words"),)) for n in range(100)
    ]
    counts: Counter[str] = Counter()
    sessions = list(join_sessions(iter(short), 300, segmenter, counts))
    lengths = [segmenter.count(session.turns) for session in sessions]
    assert all(300 <= length < 300 + 40 for length in lengths)
    assert sessions[0].conversation_id == f"d0+{len(sessions[0].turns) - 1}"
    assert [t for s in sessions for t in s.turns] == [
        t for c in short for t in c.turns if counts["left_over_by_joining"] < 100
    ][: sum(len(s.turns) for s in sessions)]
    assert len(sessions) + counts["joined"] + counts["left_over_by_joining"] == 100


# The published sets are not part of this project; a folder with both turns these tests on.
DATA = Path(os.environ.get("KVFIDELITY_DATA", "resources/datasets"))


def published(name: str) -> Path:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{path} is absent: set KVFIDELITY_DATA to a folder that holds {name}")
    return path


def test_all_of_locomo_loads() -> None:
    counts = SourceCounts()
    found = list(read_conversations(published("locomo10.jsonl"), "locomo", counts))
    assert len(found) == 10
    assert sum(len(one.questions) for one in found) == 1986
    asked = [
        question for one in found for question in questions_of(one, turns_of(one, Counter())[0])
    ]
    assert sum(not question.turns for question in asked) <= 5


def test_multiwoz_makes_long_sessions(segmenter: ChatSegmenter) -> None:
    counts = SourceCounts()
    raw = read_conversations(published("multiwoz21_valtest.jsonl"), "multiwoz", counts)
    short = (Candidate(one.conversation_id, turns_of(one, counts.notes)[0]) for one in raw)
    sessions = list(join_sessions(short, 6000, segmenter, counts.dropped))
    assert all(segmenter.count(session.turns) >= 6000 for session in sessions[:5])
    assert len(sessions) + counts.dropped["joined"] + counts.dropped["left_over_by_joining"] == 1996
