"""Comparisons in both orders, over real HTTP: preferences, ties, position bias, missing ones."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvfidelity.judges.comparison import comparisons_frame
from kvfidelity.judges.corruption_kinds import KINDS
from kvfidelity.judges.dispatch import build_client
from kvfidelity.judges.kinds.openai import with_defaults
from kvfidelity.judges.pairwise import PairwiseJudge
from kvfidelity.judges.reliability import compare_corruptions
from kvfidelity.judges.rubric import Rubric
from tests.judges.server import Reply, Server, completion
from tests.judges.test_corruptions import POOL, SETTING, corrupt_replies

RUBRIC = Path(__file__).parents[2] / "resources/rubrics/pairwise.md"
GOOD, BAD = "The ferry leaves at nine.", "ferry nine the at leaves"


def row(turn: int, reply: str | None) -> dict[str, Any]:
    about = {"turn": turn, "prompt": f"Question {turn}.", "finish_reason": "eos"}
    return about | {"reply": reply, "reference": "Nine.", "fed_reply": f"Said {turn}."}


def order_of_replies(request: dict[str, Any]) -> dict[str, str]:
    """What stands first and second in a request."""
    text = request["messages"][1]["content"]
    return {
        name: re.search(rf"<{name} \w+>\n(.*?)\n</{name} ", text, re.S)[1]  # type: ignore[index]
        for name in ("first", "second")
    }


def choosing(choose: Callable[[dict[str, str]], str]) -> Callable[..., Reply]:
    return lambda number, request: completion(
        json.dumps({"reason": "x", "better": choose(order_of_replies(request))})
    )


def likes(good: str) -> Callable[..., Reply]:
    return choosing(lambda shown: "first" if shown["first"] == good else "second")


def judge(server: Server, store: Path, **changes: Any) -> PairwiseJudge:
    entry = {"model": "local", "base_url": server.url, "api_key_env": None} | changes
    client = build_client("pairs", entry, {}, store)
    return PairwiseJudge("pairs", with_defaults(entry), Rubric.read(RUBRIC), client)


@pytest.mark.parametrize(
    ("behave", "outcome", "choices"),
    [
        (likes(GOOD), "better", ("first", "second")),
        (likes(BAD), "worse", ("second", "first")),
        (choosing(lambda _: "tie"), "tie", ("tie", "tie")),
        (choosing(lambda _: "first"), "tie", ("first", "first")),
        (choosing(lambda _: "second"), "tie", ("second", "second")),
        (
            choosing(lambda shown: "first" if shown["first"] == GOOD else "tie"),
            "tie",
            ("first", "tie"),
        ),
    ],
)
def test_only_what_both_orders_say_is_a_preference(
    tmp_path: Path, behave: Callable[..., Reply], outcome: str, choices: tuple[str, str]
) -> None:
    with Server(behave) as server:
        [[found]] = judge(server, tmp_path).compare([([row(0, GOOD)], [row(0, BAD)])])
    assert (found.outcome, found.status) == (outcome, "ok")
    assert (found.choice, found.choice_swapped) == choices
    assert len(server.requests) == 2
    assert found.prompt_tokens == 200
    form = server.requests[0]["response_format"]["json_schema"]["schema"]["properties"]
    assert form["better"]["enum"] == ["first", "second", "tie"]


def test_equal_replies_are_ties_without_a_request(tmp_path: Path) -> None:
    with Server(likes(GOOD)) as server:
        rows = [row(0, GOOD), row(1, None), row(2, GOOD)]
        others = [row(0, GOOD), row(1, BAD), row(2, None)]
        [found] = judge(server, tmp_path).compare([(rows, others)])
    assert [one.status for one in found] == ["same", "no_reply", "no_reply"]
    assert [one.outcome for one in found] == ["tie", None, None]
    assert server.requests == []
    assert comparisons_frame({"a/run": found})["run"].to_list() == ["a/run"] * 3


def test_half_a_comparison_is_none(tmp_path: Path) -> None:
    def behave(number: int, request: dict[str, Any]) -> Reply:
        if order_of_replies(request)["first"] == GOOD:
            return completion('{"reason": "x", "better": "neither"}')
        return completion('{"reason": "x", "better": "second"}')

    with Server(behave) as server:
        [[found]] = judge(server, tmp_path).compare([([row(0, GOOD)], [row(0, BAD)])])
    assert (found.outcome, found.status) == (None, "unparsable")
    assert "'neither'" in (found.reason or "")
    assert found.prompt_tokens == 200


def test_the_conversation_that_is_shown_is_the_never_evicted_runs(tmp_path: Path) -> None:
    baseline = [row(0, BAD) | {"fed_reply": "Said by the full cache."}, row(1, BAD)]
    with Server(likes(GOOD)) as server:
        judge(server, tmp_path).compare([([row(0, None), row(1, GOOD)], baseline)])
    texts = [request["messages"][1]["content"] for request in server.requests]
    assert all("Said by the full cache." in text and "Said 0." not in text for text in texts)
    assert all("Nine." not in text for text in texts)  # nor the reference


def test_good_replies_are_compared_with_their_corruptions(tmp_path: Path) -> None:
    texts = corrupt_replies(POOL, **SETTING)
    with Server(choosing(lambda _: "first")) as server:
        found = compare_corruptions(judge(server, tmp_path), texts)
    assert set(found["kind"]) == set(KINDS)
    assert found.height == texts.height - 8
    assert set(found["outcome"]) == {"tie"}
