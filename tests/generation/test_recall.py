"""Questions about a dialogue: scored exactly, and without changing the run."""

from __future__ import annotations

import dataclasses
from typing import Any

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from kvfidelity.decoding.engine import Engine
from kvfidelity.dialogues.needles import Probe
from kvfidelity.dialogues.pool import Dialogue, Question, Turn
from kvfidelity.errors import UserError
from kvfidelity.generation.recall import RecallResult, RecallSetting, reply_has_answer
from kvfidelity.generation.run import Records, run_dialogue
from kvfidelity.records.artifacts import TIMINGS
from tests.generation.test_run import BASE, BASELINE, talk
from tests.models.tiny import tiny_llama

QUESTIONS = (
    Question("What ran?", "the river", "who", (0,)),
    Question("What was old?", "a mill", "who", (2,)),
    Question("How many?", "twelve", "count", (4,), ("eleven", "ten")),
)
ASKED = {"dataset_questions": 9}


def dialogue_with_evidence(turns: int = 5) -> Dialogue:
    return dataclasses.replace(talk(turns), questions=QUESTIONS)


def records(engine: Engine, **changes: Any) -> Records:
    spec = dataclasses.replace(BASE, **{"recall": ASKED, "max_new_tokens": 0} | changes)
    return run_dialogue(engine, dialogue_with_evidence(), spec)


def nll_by_hugging_face(engine: Engine, turns: list[Turn], question: str, answer: str) -> float:
    """Nats per token of the answer after the whole conversation, in one forward."""
    whole = tiny_llama()
    whole.load_state_dict(
        {k.replace(".rotary.", "."): v for k, v in engine.model.state_dict().items()}
    )
    segments = engine.segmenter.segments([*turns, Turn(question, answer)])
    before = [token for part in segments[:-1] for token in (*part.prompt_ids, *part.reply_ids)]
    before += segments[-1].prompt_ids
    end = len(engine.segmenter.end_of_turn_ids)
    ids = torch.tensor([[*before, *segments[-1].reply_ids[:-end]]])
    with torch.inference_mode():
        logits = whole(ids).logits[0, len(before) - 1 : -1]
    return float(torch.nn.functional.cross_entropy(logits, ids[0, len(before) :]))


def test_candidates_are_scored_as_hugging_faces_own_forward_scores_them(engine: Engine) -> None:
    """First tokens that all candidates share do not count: they cannot tell them apart."""
    spec = dataclasses.replace(BASELINE, recall=ASKED, max_new_tokens=0)
    found = run_dialogue(engine, dialogue_with_evidence(), spec).recall
    assert found["question"].to_list() == [asked.question for asked in QUESTIONS]
    row = found.row(2, named=True)  # its candidates differ from the first letter on, but for "t"
    assert row["answer"] == "twelve"
    answers = [row["answer"], *row["distractors"]]
    whole = [nll_by_hugging_face(engine, list(talk(5).turns), row["question"], a) for a in answers]
    assert row["answer_nll"] == pytest.approx(whole[0], abs=1e-4)
    assert row["distractor_nll"] == pytest.approx(whole[1:], abs=1e-4)
    assert row["margin"] == pytest.approx(min(whole[1:]) - whole[0], abs=1e-4)
    assert row["chosen"] == (whole[0] < min(whole[1:]))


@pytest.mark.parametrize("trigger", ["turn", "prompt", "step"])
@pytest.mark.parametrize("kind", ["streaming_llm", "attention_top", "snapkv"])
def test_asking_changes_nothing_else(engine: Engine, kind: str, trigger: str) -> None:
    options = {"kind": kind, "trigger": trigger, "max_new_tokens": 4}
    asked = records(engine, recall=ASKED | {"after_turns": (2, 4, 5)}, **options)
    silent = records(engine, recall={}, **options)
    for one, other in zip(asked, silent, strict=True):
        left_out = {*TIMINGS, "recall"}
        assert_frame_equal(*(frame.drop(left_out & set(frame.columns)) for frame in (one, other)))
    assert asked.recall.height > 3 and silent.recall.is_empty()


def test_the_retained_share_of_an_evicted_message_is_zero(engine: Engine) -> None:
    gist = records(engine, kind="sliding_window_gist").recall
    recent = records(engine, kind="streaming_llm", parameters={"sinks": 0}).recall
    assert gist["evidence_retained_share"].to_list()[0] == 1
    assert recent["evidence_retained_share"].to_list()[0] == 0
    assert gist["slots"].equals(recent["slots"]) and (gist["slots"] < 250).all()
    assert recent.sort("evidence_turn")["evidence_retained_share"].is_sorted()


def test_a_question_waits_until_its_evidence_is_fed(engine: Engine) -> None:
    found = records(engine, recall=ASKED | {"after_turns": [1, 3]}).recall
    assert found.select("turn", "evidence_turn").rows() == [(0, 0), (2, 0), (2, 2)]


def test_questions_on_a_shared_prefix_equal_those_of_a_run_without(engine: Engine) -> None:
    recall = ASKED | {"after_turns": (1, 2, 3, 4, 5), "max_new_tokens": 3}
    shared = records(engine, recall=recall).recall
    alone = records(engine, recall=recall, share_prefix=False).recall
    assert_frame_equal(shared, alone, rel_tol=1e-4, abs_tol=1e-5)
    assert shared["reply"].null_count() == 0 and shared["answered"].null_count() == 0


def test_needles_are_inserted_at_every_depth(engine: Engine) -> None:
    recall = {"needles_per_depth": 2}
    found, never = (
        run_dialogue(engine, talk(6), dataclasses.replace(spec, recall=recall, max_new_tokens=0))
        for spec in (BASE, BASELINE)
    )
    assert found.recall["depth"].value_counts().sort("depth").rows() == [
        ("early", 2),
        ("middle", 2),
        ("recent", 2),
    ]
    same = ["probe", "question", "answer", "distractors", "evidence_turn", "depth"]
    assert_frame_equal(found.recall.select(same), never.recall.select(same))
    for row in found.recall.iter_rows(named=True):
        prompt = found.turns.filter(pl.col("turn") == row["evidence_turn"])["prompt"].item()
        assert row["answer"].casefold() in prompt.casefold()
        assert row["question"] not in prompt
    # What judges see is the dataset's message.
    own = [turn.user for turn in talk(6).turns]
    shown = found.turns.select(pl.coalesce("message", "prompt")).to_series().to_list()
    assert shown == own
    assert found.turns["message"].null_count() == 6 - found.recall["evidence_turn"].n_unique()


def test_a_reply_is_right_if_the_answer_is_in_it() -> None:
    probe = Probe("Which pet?", "hamster", ("cat",), "early", 0)
    replies = ["It is a Hamster.", "Hamsters", None]
    found = [reply_has_answer(RecallResult(1.0, (2.0,), reply, None), probe) for reply in replies]
    assert found == [True, False, None]


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(UserError, match="unknown key 'planted'"):
        RecallSetting.of({"planted": 2})
