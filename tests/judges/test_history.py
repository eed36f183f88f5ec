"""What a judge is shown of a conversation that its context does not hold."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kvfidelity.judges.dispatch import build_client
from kvfidelity.judges.history import conversation, messages_cut, messages_of
from kvfidelity.judges.kinds.openai import with_defaults
from kvfidelity.judges.llm import LLMJudge, history_cut
from kvfidelity.judges.pairwise import PairwiseJudge
from kvfidelity.judges.requests import Failure, Outcome, Request
from kvfidelity.judges.rubric import Rubric, rubric_parts
from kvfidelity.pipeline.rule_params import judge_params
from kvfidelity.pipeline.settings import load_settings
from tests.judges.server import Server, completion, good
from tests.judges.test_llm import ROOT, judge
from tests.judges.test_llm import _key as _key


def turn(number: int, words: int, reply: str | None = None) -> dict[str, Any]:
    reference = f"reply{number} " * words
    return {
        "turn": number,
        "prompt": f"prompt{number} " * words,
        "reply": reply or reference,
        "fed_reply": reply or reference,
        "reference": reference,
        "finish_reason": "eos",
    }


HISTORIES = st.lists(
    st.builds(turn, st.integers(0, 99), st.integers(1, 60)), min_size=0, max_size=12
)


@given(HISTORIES, st.integers(0, 3000))
def test_whole_messages_are_cut_from_the_middle_and_the_text_says_so(
    history: list[dict[str, Any]], tokens: int
) -> None:
    first, stop = messages_cut(history, tokens)
    whole = messages_of(history)
    assert 0 <= first <= stop <= len(whole)
    kept = [*whole[:first], *whole[stop:]]
    if first == stop:
        assert conversation(history, (first, stop)) == "\n\n".join(whole)
        return
    mark = f"[{stop - first} messages are left out here]"
    shown = conversation(history, (first, stop)).split("\n\n")
    assert shown == [*whole[:first], mark, *whole[stop:]]
    # What is kept fits, by the estimate; one more message at neither end would.
    sizes = [len(text.split(": ", 1)[1].encode()) // 3 + 5 for text in whole]
    assert sum(sizes) > tokens
    left = tokens - sum(sizes[:first]) - sum(sizes[stop:])
    assert left >= 0 and len(kept) < len(whole)
    assert sizes[first] > left and sizes[stop - 1] > left


@pytest.mark.parametrize("tokens", [0, 10, 50, 100, 200, 400, 5000])
def test_messages_of_one_length_are_kept_from_both_ends_alike(tokens: int) -> None:
    words = "word " * 8
    history = [{"prompt": words, "fed_reply": words, "reference": words}] * 10
    first, stop = messages_cut(history, tokens)
    kept_at_end = 20 - stop
    assert first == stop or kept_at_end - first in (0, 1)  # the latest first


OWN = ("No.", "Yes, and " * 300, "\u00fc" * 900)


def test_every_policy_is_cut_at_the_same_place() -> None:
    """Judged replies differ in length; the history that all are shown decides where the cut is."""
    entry = with_defaults({"model": "m", "context_tokens": 3000})
    rubric = Rubric.read(ROOT / "resources/rubrics/grounded.md")
    history = [turn(number, 60, OWN[number % 3]) for number in range(8)]
    cuts = {
        history_cut(rubric, turn(8, 60) | {"reply": own}, [h | {"reply": own} for h in history], e)
        for own in OWN
        for e in (entry, {**entry, "reply_tokens": 30})
    }
    assert len(cuts) == 1 and cuts != {(0, 0)}


@pytest.mark.parametrize("rubric", ["grounded", "pairwise"])
@pytest.mark.parametrize("words", [9, 100, 400])
@pytest.mark.parametrize("bound", ["the baseline's reply", "reply_tokens"])
def test_own_replies_that_are_longer_than_the_datasets_fit(
    rubric: str, words: int, bound: str
) -> None:
    rows = [turn(number, 3, "word " * words) for number in range(60)]
    entry = with_defaults({"model": "m", "context_tokens": 8000})
    if bound == "reply_tokens":  # what the baseline said to the judged message is short
        entry["reply_tokens"], rows[-1]["fed_reply"] = words, "No."
    read = Rubric.read(ROOT / f"resources/rubrics/{rubric}.md")
    if rubric == "grounded":
        request = LLMJudge("j", entry, read, Unused()).request(rows[-1], rows[:-1])
    else:
        asked = PairwiseJudge("j", entry, read, kept := Unused())
        asked.compare_each([(rows[-1], "word " * words, rows[:-1])])
        request = kept.requests[0]
    assert request.prompt_tokens + request.answer_tokens <= 8000
    cut = re.search(r"\[(\d+) messages are left out here\]", request.body["messages"][1]["content"])
    assert (cut is not None) == (words >= 100)


class Unused:
    """Keeps the requests; no answer comes."""

    def complete(self, requests: Sequence[Request]) -> list[Outcome]:
        self.requests = list(requests)
        return [Failure("no answer")] * len(requests)


def test_a_judge_keeps_room_for_the_longest_reply_of_the_session() -> None:
    def params(**changes: Any) -> dict[str, Any]:
        content = yaml.safe_load((ROOT / "config/config.yaml").read_text())
        entry = {"kind": "openai", "model": "m", "rubric": "grounded", **changes}
        content["judges"], content["judging"] = {"mine": entry}, ["mine"]
        content["session"]["max_new_tokens"] = 77
        return judge_params(load_settings(content), "mine")

    assert params(context_tokens=8000)["reply_tokens"] == 77
    assert params(context_tokens=8000, reply_tokens=5)["reply_tokens"] == 5
    assert params()["reply_tokens"] is None  # nothing is cut, so nothing depends on it


def request_text(request: dict[str, Any]) -> str:
    return str(request["messages"][1]["content"])


@pytest.mark.parametrize("rubric", ["grounded", "blind"])
def test_a_request_fits_the_judges_context(tmp_path: Path, rubric: str) -> None:
    rows = [turn(number, 40) for number in range(12)]
    names = ("coherence", "faithfulness", "relevance", "overall", "score")
    scores = completion(json.dumps(dict.fromkeys(names, 7) | {"reason": "x"}))
    context = 2000
    with Server(lambda *_: scores) as server:
        given = {"rubric": rubric, "context_tokens": context}
        verdicts = judge(server, tmp_path, **given).judge(rows)
    sent = {
        int(found[1]): request
        for request in server.requests
        if (found := re.search(r"<reply \w+>\nreply(\d+) ", request_text(request)))
    }
    assert [verdict.status for verdict in verdicts] == ["ok"] * 12
    for verdict in verdicts:
        request = sent[verdict.turn]
        text = request_text(request)
        told = re.search(r"\[(\d+) messages are left out here\]", text)
        assert (verdict.messages_cut or 0) == (int(told[1]) if told else 0)
        assert len(text.encode()) // 3 + 99 <= context
        assert Request(request).prompt_tokens + 99 <= context
    counts = [verdict.messages_cut or 0 for verdict in verdicts]
    if rubric == "blind":
        assert counts == [0] * 12  # it shows no history
    else:
        assert counts[0] == 0 and counts == sorted(counts) and counts[-1] > 0
        assert "prompt0 " in request_text(sent[11]) and "reply10 " in request_text(sent[11])


def test_a_comparison_counts_what_was_cut(tmp_path: Path) -> None:
    """The baseline's conversation is cut, at the same place for both orders."""
    rows = [turn(number, 40) for number in range(12)]
    own = [row | {"reply": f"own {row['reply']}"} for row in rows]
    answer = completion(json.dumps({"reason": "x", "better": "tie"}))
    entry = with_defaults({"model": "m", "api_key_env": None, "context_tokens": 2000})
    with Server(lambda *_: answer) as server:
        entry["base_url"] = server.url
        rubric = Rubric.read(ROOT / "resources/rubrics/pairwise.md")
        client = build_client("mine", entry, {}, tmp_path)
        [found] = PairwiseJudge("mine", entry, rubric, client).compare([(own, rows)])
    marks = [
        int(told[1])
        for request in server.requests
        if (told := re.search(r"\[(\d+) messages are left out here\]", request_text(request)))
    ]
    assert [one.outcome for one in found] == ["tie"] * 12
    assert found[0].messages_cut == 0 and found[-1].messages_cut
    assert sorted(marks) == sorted(2 * [one.messages_cut for one in found if one.messages_cut])


def test_without_a_limit_nothing_is_cut(tmp_path: Path) -> None:
    with Server(lambda *_: good()) as server:
        [*_, last] = judge(server, tmp_path, "grounded").judge([turn(n, 300) for n in range(3)])
    assert last.messages_cut == 0
    assert "left out" not in "".join(map(request_text, server.requests))


def test_needles_are_in_the_history_and_not_in_the_message_that_is_judged() -> None:
    needle = "By the way, my dog is called Otto."
    row = turn(1, 3) | {"prompt": f"{needle}\n\nHow late is it?", "message": "How late is it?"}
    plain = turn(1, 3) | {"prompt": "How late is it?", "message": None}
    for name in ("blind", "grounded", "pairwise"):
        rubric = Rubric.read(ROOT / f"resources/rubrics/{name}.md")
        earlier = turn(0, 3) | {"prompt": f"Hi.\n\n{needle}", "message": "Hi."}
        parts = dict(rubric_parts(rubric, row, [earlier]))
        assert parts["message"] == "How late is it?"
        assert parts == dict(rubric_parts(rubric, plain, [earlier]))
        assert (needle in parts.get("conversation", "")) == (name != "blind")
