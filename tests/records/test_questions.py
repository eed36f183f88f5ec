"""Recall questions go into the turns that they follow, and come out unchanged."""

from __future__ import annotations

import math
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from kvfidelity.records.columns import RECALL, RECALL_QUESTION, TURN, TURNS
from kvfidelity.records.declaration import schema
from kvfidelity.records.frames import turns_frame
from kvfidelity.records.questions import questions

IDENTITY = {"model": "tiny", "policy": "gist", "kind": "block", "target_tokens": 40, "seed": 1}


def turn(number: int) -> dict[str, Any]:
    row = dict.fromkeys(schema(*TURN)) | IDENTITY
    return row | {"turn": number, "evictions": 7, "reply": "of the turn"}


def question(after: int, number: int, **values: Any) -> dict[str, Any]:
    row = dict.fromkeys(RECALL_QUESTION) | {"turn": after, "probe": number, "evictions": 1}
    return row | {"distractors": ["one", "two"], "distractor_nll": [1.5, math.nan]} | values


def test_questions_come_out_of_the_turns_as_they_were_asked() -> None:
    asked = [
        question(1, 0, reply="of the question", margin=math.inf),
        question(3, 1, chosen=True),
        question(3, 0, reply=None),
    ]
    turns = turns_frame(map(turn, range(5)), asked)
    assert turns.schema == pl.Schema(TURNS)
    assert turns["recall"].is_null().to_list() == [True, False, True, False, True]
    rows = [dict.fromkeys(RECALL) | IDENTITY | each for each in asked]
    expected = pl.DataFrame([[row[name] for name in RECALL] for row in rows], RECALL, orient="row")
    found = questions(turns.lazy()).collect()
    assert_frame_equal(found, expected, check_exact=True)
    named = questions(turns.with_columns(run=pl.lit("a/run")).lazy(), "run").collect()
    assert named.columns == [*RECALL, "run"] and set(named["run"]) == {"a/run"}


def test_a_run_without_questions_has_none() -> None:
    turns = turns_frame(map(turn, range(2)), [])
    assert turns.schema == pl.Schema(TURNS) and turns["recall"].null_count() == 2
    for table in (turns, pl.DataFrame(schema=TURNS)):
        assert_frame_equal(questions(table.lazy()).collect(), pl.DataFrame(schema=RECALL))


def test_a_question_that_lacks_a_column_is_refused() -> None:
    row = question(0, 0)
    del row["margin"]
    with pytest.raises(KeyError, match="margin"):
        turns_frame([turn(0)], [row])
