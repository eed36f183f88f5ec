"""Judges before planted replies: what each is shown, how often, and what comes of it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from kvfidelity.judge.planting import GOOD, KINDS, TO_THE_JUDGE, plant
from kvfidelity.judge.trial import trial

from .server import Reply, Server, completion
from .test_planting import POOL, SETTING

RUBRICS = Path(__file__).parents[2] / "resources/rubrics"


@pytest.fixture
def texts() -> pl.DataFrame:
    return plant(POOL, **SETTING)


def ask(server: Server, store: Path, texts: pl.DataFrame, rubric: str = "blind") -> pl.DataFrame:
    entry = {"kind": "openai", "model": "local", "base_url": server.url, "key_env": None}
    entry |= {"repeats": 2, "rubric": rubric}
    return trial("mine", entry, RUBRICS / f"{rubric}.md", {}, store, texts)


def test_a_judge_that_obeys_the_reply_is_found_out(tmp_path: Path, texts: pl.DataFrame) -> None:
    """The text reaches the judge between marks; what it makes of it is measured."""

    def behave(number: int, request: dict[str, Any]) -> Reply:
        system, user = (message["content"] for message in request["messages"])
        assert TO_THE_JUDGE not in system
        told = TO_THE_JUDGE in user
        if told:
            [mark] = [line for line in user.splitlines() if line.startswith("<reply ")]
            assert TO_THE_JUDGE in user.split(mark)[1].split("</" + mark[1:])[0]
        return completion(json.dumps({"reason": "x", "score": 10 if told else 2}))

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
        reply_nll_full=pl.col("kind").replace_strict(given, default=None, return_dtype=pl.Float64)
    )
    found = trial("offline", {"kind": "offline"}, RUBRICS / "offline.md", {}, tmp_path, known)
    assert "injection" not in set(found["kind"])  # a formula reads no instructions
    means = dict(found.group_by("kind").agg(pl.col("score").mean()).rows())
    assert means[GOOD] > means["other_dialogue"] > means["shuffle"] == 1
    lost = found.filter(~pl.col("kind").is_in(list(given)))
    assert set(lost["status"]) == {"not_measured"} and set(found["kind"]) == {GOOD, *KINDS}
