"""Needles and the questions of data sets."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvfidelity.dialogues.needle_facts import FACT_KINDS, FACT_OPENINGS, QUESTION_OPENINGS
from kvfidelity.dialogues.needles import (
    DEPTHS,
    DISTRACTORS,
    dataset_probes,
    depth_of,
    insert_needles,
    matches,
    normalised,
)
from kvfidelity.dialogues.pool import Dialogue, Question, Turn
from kvfidelity.errors import UserError

LONG = Dialogue("000", "long", tuple(Turn(f"question {n}", f"answer {n}") for n in range(20)))


def text(dialogue: Dialogue) -> str:
    return " ".join(f"{turn.user} {turn.assistant}" for turn in dialogue.turns)


def occurrences(value: str, text: str) -> int:
    """How often a text holds a value, as whole words."""
    return len(re.findall(rf"\b{re.escape(value)}\b", text))


@given(st.integers(0, 10_000), st.integers(1, 3))
def test_a_needle_stands_where_its_probe_says(seed: int, per_depth: int) -> None:
    with_needles, probes = insert_needles(LONG, seed, per_depth=per_depth)
    assert Counter(probe.depth for probe in probes) == dict.fromkeys(DEPTHS, per_depth)
    assert len({probe.kind for probe in probes}) == len(probes)
    for probe in probes:
        assert probe.evidence_turn is not None
        assert probe.answer in with_needles.turns[probe.evidence_turn].user
        assert occurrences(probe.answer, text(with_needles)) == 1
        assert len(set(probe.distractors)) == DISTRACTORS
        assert not any(occurrences(wrong, text(with_needles)) for wrong in probe.distractors)
        assert depth_of(probe.evidence_turn / 20) == probe.depth
        assert probe.answer not in probe.question + probe.stem
    assert [turn.assistant for turn in with_needles.turns] == [
        turn.assistant for turn in LONG.turns
    ]


def test_planting_depends_on_seed_and_dialogue_only() -> None:
    assert insert_needles(LONG, 3) == insert_needles(LONG, 3)
    assert insert_needles(LONG, 3)[1] != insert_needles(LONG, 4)[1]
    assert insert_needles(LONG, 3)[1] != insert_needles(replace(LONG, dialogue_id="other"), 3)[1]


def test_depths_reach_from_the_first_turn_to_the_last() -> None:
    even = replace(LONG, turns=(Turn("question", "answer"),) * 20)
    assert [probe.evidence_turn for probe in insert_needles(even, 0)[1]] == [0, 10, 19]
    assert [probe.evidence_turn for probe in insert_needles(even, 0, last_turn=8)[1]] == [0, 4, 7]
    single = replace(LONG, turns=LONG.turns[:1])
    assert [probe.evidence_turn for probe in insert_needles(single, 0)[1]] == [0, 0, 0]


def test_what_the_dialogue_says_itself_is_never_a_needle() -> None:
    statement = " ".join(value for kind in FACT_KINDS[:-1] for value in kind.values)
    spoken = replace(LONG, turns=(Turn(statement.upper(), "I see"), *LONG.turns))
    with pytest.raises(UserError, match="leaves 1 kinds of facts for needles"):
        insert_needles(spoken, 0)


def test_wording_varies_too_much_for_a_template() -> None:
    facts, questions = set(), set()
    for seed in range(300):
        with_needles, probes = insert_needles(LONG, seed)
        for probe in probes:
            assert probe.evidence_turn is not None
            facts.add(with_needles.turns[probe.evidence_turn].user.replace(probe.answer, "{}"))
            questions.add(probe.question)
    assert len(facts) > 250
    assert len(questions) > 100


def test_every_kind_is_well_formed() -> None:
    for kind in FACT_KINDS:
        assert all(statement.count("{}") == 1 for statement in kind.statements)
        assert len(set(kind.statements)) >= 4 and len(set(kind.questions)) >= 3
        assert len({normalised(value) for value in kind.values}) == len(kind.values) > DISTRACTORS
        assert all(question.endswith("?") for question, _ in kind.questions)
        assert not any(stem.endswith(" ") or "{}" in stem for _, stem in kind.questions)
    values = [normalised(value) for kind in FACT_KINDS for value in kind.values]
    sentences = " ".join(statement for kind in FACT_KINDS for statement in kind.statements)
    assert all(occurrences(value, " ".join(values)) == 1 for value in values)
    assert not any(occurrences(value, sentences) for value in values)
    assert "" in FACT_OPENINGS and "" in QUESTION_OPENINGS


def test_questions_of_a_data_set_become_probes_with_depth_and_distractors() -> None:
    questions = (
        Question("Pet?", "a cat", "single-hop", (0,)),
        Question("Boat?", "sold", "single-hop", (19,)),
        Question("Dog?", "", "adversarial", (0,), ("a poodle",)),
        Question("Alone?", "yes", "temporal"),
        Question("Car?", "red", "temporal", (), ("blue",)),
        Question("The same cat?", "The cat", "single-hop", (10,)),
    )
    pet, boat, alone, car, same = dataset_probes(replace(LONG, questions=questions))
    assert (pet.depth, pet.evidence_turn, pet.distractors) == ("early", 0, ("sold",))
    assert (boat.depth, set(boat.distractors)) == ("recent", {"a cat", "The cat"})
    assert (same.depth, same.distractors) == ("middle", ("sold",))
    assert (alone.depth, alone.evidence_turn, alone.distractors) == ("unknown", None, ("red",))
    assert car.distractors == ("blue", "yes")


@pytest.mark.parametrize(
    ("reply", "answer", "right"),
    [
        ("Your dog's name is Biscuit.", "Biscuit", True),
        ("BISCUIT!", "biscuit", True),
        ("It opens with 4172.", "4172", True),
        ("It opens with 41723.", "4172", False),
        ("You drink green-tea", "green tea", True),
        ("Kiwifruit", "kiwi", False),
        ("", "kiwi", False),
        ("the", "the", False),
        ("7 May, 2023", "7 May 2023", True),
    ],
)
def test_matches_whole_words(reply: str, answer: str, right: bool) -> None:
    assert matches(reply, answer) is right
