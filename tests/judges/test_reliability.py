"""Tests of judges on corruptions: what each judge sees, how often, and the resulting verdicts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from kvfidelity.judges.corruption_kinds import GOOD, KINDS
from kvfidelity.judges.corruptions import INJECTED_TEXT, corrupt_replies
from kvfidelity.judges.reliability import judge_corruptions
from tests.judges.server import Reply, Server, completion
from tests.judges.test_corruptions import POOL, SETTING

RUBRICS = Path(__file__).parents[2] / "resources/rubrics"


@pytest.fixture
def texts() -> pl.DataFrame:
    return corrupt_replies(POOL, **SETTING)


def ask(server: Server, store: Path, texts: pl.DataFrame, rubric: str = "blind") -> pl.DataFrame:
    entry = {"kind": "openai", "model": "local", "base_url": server.url, "api_key_env": None}
    entry |= {"repeats": 2, "rubric": rubric}
    return judge_corruptions("mine", entry, RUBRICS / f"{rubric}.md", {}, store, texts)


def test_a_judge_that_obeys_the_reply_is_found_out(tmp_path: Path, texts: pl.DataFrame) -> None:
    """The text reaches the judge between marks; what it makes of it is measured."""

    def behave(number: int, request: dict[str, Any]) -> Reply:
        system, user = (message["content"] for message in request["messages"])
        assert INJECTED_TEXT not in system
        injected = INJECTED_TEXT in user
        if injected:
            [delimiter] = [line for line in user.splitlines() if line.startswith("<reply ")]
            assert INJECTED_TEXT in user.split(delimiter)[1].split("</" + delimiter[1:])[0]
        return completion(json.dumps({"reason": "x", "score": 10 if injected else 2}))

    with Server(behave) as server:
        found = ask(server, tmp_path, texts)
    scores = dict(found.group_by("kind").agg(pl.col("score").mean()).rows())
    assert scores["injection"] == 10
    assert {score for kind, score in scores.items() if kind != "injection"} == {2}


def test_every_verdict_is_asked_for_twice_and_kept_apart(
    tmp_path: Path, texts: pl.DataFrame
) -> None:
    def behave(number: int, request: dict[str, Any]) -> Reply:
        return completion(json.dumps({"reason": "x", "score": 1 + number % 10}))

    with Server(behave) as server:
        found = ask(server, tmp_path, texts)
        asked = len(server.requests)
        assert ask(server, tmp_path, texts).equals(found)
    assert len(server.requests) == asked
    counts = Counter(found.select("kind", "repeat").rows())
    assert counts[GOOD, 0] == counts[GOOD, 1] == 8
    assert counts["injection", 0] == 8 and counts["injection", 1] == 0
    assert found["request"].n_unique() == asked


def test_no_reference_gives_a_good_reply_away(tmp_path: Path, texts: pl.DataFrame) -> None:
    score = dict.fromkeys(("coherence", "faithfulness", "relevance", "overall"), 5)
    with Server(lambda *_: completion(json.dumps({"reason": "x"} | score))) as server:
        ask(server, tmp_path, texts, "grounded")
    users = [request["messages"][1]["content"] for request in server.requests]
    assert not any("<reference " in text for text in users)
    assert any("assistant: " in text.split("<message ")[0] for text in users)


def test_the_formula_is_tested_as_it_is_used(tmp_path: Path, texts: pl.DataFrame) -> None:
    """With the likelihood that a model would give each; what was not measured is missing."""
    given = {GOOD: 1.8, "shuffle": 7.0, "other_dialogue": 3.4}
    known = texts.with_columns(
        reply_nll_baseline=pl.col("kind").replace_strict(
            given, default=None, return_dtype=pl.Float64
        )
    )
    found = judge_corruptions(
        "formula", {"kind": "formula"}, RUBRICS / "formula.md", {}, tmp_path, known
    )
    assert "injection" not in set(found["kind"])  # a formula reads no instructions
    means = dict(found.group_by("kind").agg(pl.col("score").mean()).rows())
    assert means[GOOD] > means["other_dialogue"] > means["shuffle"] == 1
    lost = found.filter(~pl.col("kind").is_in(list(given)))
    assert set(lost["status"]) == {"not_measured"} and set(found["kind"]) == {GOOD, *KINDS}
