"""What models answer, over real HTTP: the score that is said, or a missing verdict."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from kvfidelity.judges.answers import choice_in
from kvfidelity.judges.store import AnswerStore
from tests.judges.server import Reply, Server
from tests.judges.test_llm import judge, row

FINE = '{"reason": "fine", "score": 8}'
DEEP = "[" * 5000 + "]" * 5000
USAGE = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}


def body(message: Any, finish: Any = "stop", **more: Any) -> Any:
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {"id": "x", "choices": [choice], "usage": USAGE} | more


def says(content: Any, finish: Any = "stop", **more: Any) -> Any:
    return body({"role": "assistant", "content": content}, finish, **more)


def choices(*contents: str | None) -> Any:
    """Several choices, though one was asked for."""
    one = [
        {"index": number, "message": {"content": content}, "finish_reason": "stop"}
        for number, content in enumerate(contents)
    ]
    return body({}, choices=one)


def calls(*arguments: Any, words: Any = None) -> Any:
    tools = [
        {"type": "function", "function": {"name": "verdict", "arguments": a}} for a in arguments
    ]
    return body({"role": "assistant", "content": words, "tool_calls": tools}, "tool_calls")


#: Openings of reasoning, and what ends each.
REASONING = [
    ("<think>", "</think>"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel>thought\n", "<channel|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<|channel|>commentary to=x<|message|>", "<|channel|>final <|constrain|>json<|message|>"),
]


#: Answers that say a score, and the score.
SCORED: list[tuple[Any, int]] = [
    (says(FINE), 8),
    (choices(FINE, FINE), 8),
    (choices(FINE, None), 8),
    (says({"reason": "x", "score": 8}), 8),
    (says('{"score": 1, "reason": "bad"}'), 1),
    (says('{"reason": "", "score": 10}'), 10),
    (says('{"reason": "x", "score": "8"}'), 8),
    (says('{"reason": "x", "score": " 8 "}'), 8),
    (says('{"reason": "x", "score": "8.0"}'), 8),
    (says('{"reason": "x", "score": 8.0}'), 8),
    (says('{"reason": "x", "score": 8e0}'), 8),
    (says('{"Reason": "x", "Score": 8}'), 8),
    (says('{"reason": "x", "SCORE": 8}'), 8),
    (says('{"reason": "x", " score": 8}'), 8),
    (says('{"score": 8}'), 8),
    (says('{"reason": null, "score": 8}'), 8),
    (says('{"reason": "x", "score": 8, "confidence": 3}'), 8),
    (says(f"<think>maybe {{2}} or {{3}}</think>{FINE}"), 8),
    (says(f'<think>{{"reason": "draft", "score": 3}}</think>\n\n{FINE}'), 8),
    (says(f"<thinking>hm</thinking>{FINE}"), 8),
    (says(f"no opening tag</think>\n{FINE}"), 8),
    (says(f"<|channel|>analysis<|message|>a 3?<|end|><|channel|>final<|message|>{FINE}"), 8),
    (says(FINE + FINE), 8),
    (says(f"{FINE}\n\n{FINE}\n"), 8),
    (says('{"reason": "a", "score": 8} {"reason": "b", "score": "8"}'), 8),
    (says('{"score": 8, "score": 8}'), 8),
    (says(f"```json\n{FINE}\n```"), 8),
    (says(f"```json\n{FINE}\n```", "length"), 8),
    (says(f"{FINE}\n \n ", "length"), 8),
    (says(f"<think>hm</think>{FINE}", "length"), 8),
    (says(f"[{FINE}]"), 8),
    (says(f"<answer>{FINE}</answer><|return|>"), 8),
    (says('I weigh both.\n\n**{"score": 8}**'), 8),
    (says(f"The fares are right: 8/10.\n{FINE}"), 8),
    (says(f"**Score:** 8 of ten\n{FINE}"), 8),
    (says('{"reason": "it prints <think> and </think>", "score": 8}'), 8),
    *((says(f'{start}a {{"score": 3}}?{end}{FINE}'), 8) for start, end in REASONING),
    (says(f"Score: 8\n{FINE}"), 8),
    (says(f"Here is my score: {FINE}"), 8),
    (says(f"\ufeff{FINE}"), 8),
    (says('{"reason": "it says \\"score\\": 2", "score": 8}'), 8),
    (says('{"reason": "good {enough}", "score": 8}'), 8),
    (says('{"reason": "\\ud800", "score": 8}'), 8),
    (says('{"reason": "\\u0000 and \\u2028", "score": 8}'), 8),
    (says(FINE, "length"), 8),
    (says(FINE, None), 8),
    (says(FINE, 7), 8),
    (says([{"type": "text", "text": FINE}]), 8),
    (says([{"type": "text", "text": FINE[:12]}, {"type": "text", "text": FINE[12:]}]), 8),
    (says([{"type": "thinking", "thinking": "x"}, {"type": "text", "text": FINE}]), 8),
    (says([FINE]), 8),
    (says([{"text": FINE}]), 8),
    (says([{"type": "output_text", "text": FINE}]), 8),
    *(
        (says([{"type": kind, "text": '{"score": 3}'}, {"type": "text", "text": FINE}]), 8)
        for kind in ("reasoning", "thinking", "reasoning_text", "summary_text")
    ),
    (calls(FINE), 8),
    (calls('{"score": 8}', words="Let me rate this."), 8),
    (calls(FINE, words=[{"type": "text", "text": "Let me rate this."}]), 8),
    (calls(FINE, words=FINE), 8),
    (calls(FINE, words=""), 8),
    (calls({"reason": "x", "score": 8}), 8),
    (calls({"score": 8}, words="Let me rate this."), 8),
    (body({"content": "So:", "function_call": {"name": "v", "arguments": {"score": 8}}}), 8),
    (calls(FINE, FINE), 8),
    (body({"content": None, "function_call": {"name": "v", "arguments": FINE}}), 8),
    (body({"content": FINE, "refusal": ""}), 8),
    (body({"content": FINE, "refusal": None, "reasoning_content": "long"}), 8),
    (says(FINE, usage=None), 8),
    (says(FINE, usage=[]), 8),
    (says(FINE, usage="many"), 8),
    (says(FINE, usage={"prompt_tokens": "100", "completion_tokens": "20"}), 8),
    (says(FINE, usage={"prompt_tokens": 3e9, "completion_tokens": 3_000_000_000}), 8),
    (says(FINE, usage={"prompt_tokens": -100, "completion_tokens": -20}), 8),
    (says(FINE, usage={"prompt_tokens": 10**400, "completion_tokens": 1.5}), 8),
    (says(FINE, usage={"prompt_tokens": True, "completion_tokens": None}), 8),
    (says(FINE, error=None), 8),
]
#: Answers that say no score, and their status.
MISSING: list[tuple[Any, str]] = [
    (says('{"score": 10, "score": 2}'), "unparsable"),
    (says('{"score": 10, "Score": 2}'), "unparsable"),
    (says('{"score": 10} {"score": 2}'), "unparsable"),
    (says(f'{FINE}\n"score": 3'), "unparsable"),
    (says(f"Score: 3/10\n{FINE}"), "unparsable"),
    (says(f'The reply says {{"score": 10}}. {FINE}'), "unparsable"),
    (calls(FINE, '{"reason": "x", "score": 2}'), "unparsable"),
    (calls('{"reason": "x", "score": 2}', words='{"score": 9}'), "unparsable"),
    (calls({"score": 2}, words="I give it 9/10."), "unparsable"),
    (calls([8]), "unparsable"),
    (calls({"verdict": {"score": 8}}), "unparsable"),
    (says(f"Here it is: {FINE} Thanks!"), "unparsable"),
    (says('I will not follow the reply, which says {"score": 10}.'), "unparsable"),
    (says('I will not follow the reply, which says {"score": 10}'), "unparsable"),
    (says('{"score": 10} is what the reply demands; it is poor.'), "unparsable"),
    (says('The reply demands {"score": 10}; I give it 2/10.'), "unparsable"),
    (says(f"I give it 2 out of 10, though it says:\n{FINE}"), "unparsable"),
    (says("The reply says {\"score\": 10}. Mine: {'score': 2}"), "unparsable"),
    (says(f"Mine: {{'score': 2}}. The reply says:\n{FINE}"), "unparsable"),
    (says('**Score:** 3\n{"score": 8}'), "unparsable"),
    (says('__Score__: *3*\n{"score": 8}'), "unparsable"),
    (says('My score is **3**\n{"score": 8}'), "unparsable"),
    *((says(f'Okay.\n{start}maybe {{"score": 3}} but'), "unparsable") for start, _ in REASONING),
    *(
        (says(f'{start}a{end}{start}\n{{"score": 3}}', "length"), "truncated")
        for start, end in REASONING
    ),
    (says([{"type": "reasoning", "text": 'maybe {"score": 3} but'}], "length"), "truncated"),
    (says([{"type": "thinking", "text": FINE}, {"type": "text", "text": "No."}]), "unparsable"),
    (says('The reply asks me to say {"score": 10}. My own verdict would', "length"), "truncated"),
    (says(f"The reply asks me to answer\n{FINE}", "length"), "truncated"),
    (says(f"The reply asks me to answer\n{FINE}", "max_tokens"), "truncated"),
    (says(f"{FINE} That is what the reply", "length"), "truncated"),
    (says('{"reason": "x", "score": 11}'), "unparsable"),
    (says('{"reason": "x", "score": 0}'), "unparsable"),
    (says('{"reason": "x", "score": -8}'), "unparsable"),
    (says('{"reason": "x", "score": 7.5}'), "unparsable"),
    (says('{"reason": "x", "score": "eight"}'), "unparsable"),
    (says('{"reason": "x", "score": "8 or 9"}'), "unparsable"),
    (says('{"reason": "x", "score": "\u0668"}'), "unparsable"),
    (says('{"reason": "x", "score": true}'), "unparsable"),
    (says('{"reason": "x", "score": null}'), "unparsable"),
    (says('{"reason": "x", "score": [8]}'), "unparsable"),
    (says('{"reason": "x", "score": {"value": 8}}'), "unparsable"),
    (says('{"reason": "x", "score": NaN}'), "unparsable"),
    (says('{"reason": "x", "score": 1e999}'), "unparsable"),
    (says('{"reason": "x", "score": ' + "8" * 5000 + "}"), "unparsable"),
    (says('{"reason": "x"}'), "unparsable"),
    (says('{"verdict": {"score": 8}}'), "unparsable"),
    (says('{"reason": ' + DEEP + ', "score": 8}'), "unparsable"),
    (says("[" * 20_000), "unparsable"),
    (says('{"a":' * 5000), "unparsable"),
    (says("8"), "unparsable"),
    (says("no JSON at all"), "unparsable"),
    (says("<think>I would give it {8}, or"), "unparsable"),
    (says('<think>"score": 8, {"score": 8}'), "unparsable"),
    (says(""), "unparsable"),
    (says(None), "unparsable"),
    (says(17), "unparsable"),
    (says({"score": 11}), "unparsable"),
    (calls('{"reason"'), "unparsable"),
    (says('{"reason": "x', "length"), "truncated"),
    (says('{"verdict": {"score": 10}, "sc', "length"), "truncated"),
    (says(FINE + '{"reason": "b", "sc', "length"), "truncated"),
    (says("<think>so long", "length"), "truncated"),
    (says(None, "length"), "truncated"),
    (body({"content": None, "refusal": "I will not"}), "refused"),
    (body({"content": FINE, "refusal": "I will not"}), "refused"),
    (choices(FINE, '{"score": 3}'), "unparsable"),
    (choices('{"score": 3}', None, FINE), "unparsable"),
    (choices(FINE, "I would rather say 3/10."), "unparsable"),
    (body({"content": 8}), "unparsable"),
    (body({"content": {"verdict": "good"}}), "unparsable"),
    (body({"content": None, "reasoning_content": FINE}), "unparsable"),
    (says(None, "content_filter"), "refused"),
    ([], "failed"),
    ("text", "failed"),
    (None, "failed"),
    ({}, "failed"),
    ({"choices": []}, "failed"),
    ({"choices": [{}]}, "failed"),
    ({"choices": [{"message": None}]}, "failed"),
    ({"choices": {"0": FINE}}, "failed"),
    ({"choices": "x", "usage": 7}, "failed"),
]
#: Bodies that are not JSON at all, and their status.
RAW: list[tuple[bytes, str]] = [
    (b"", "failed"),
    (b"no JSON", "failed"),
    (b'{"choices": [', "failed"),
    (b'{"x": ' + DEEP.encode() + b"}", "failed"),
    (b"\xff\xfe{}", "failed"),
    (b'{"choices": ' + b"1" * 5000 + b"}", "failed"),
]


def answered(tmp_path: Path, bodies: list[bytes]) -> list[Any]:
    """The verdicts on one reply each, of which number n gets body n; a good one comes first."""
    bodies = [json.dumps(says(FINE)).encode(), *bodies]
    rows = [row(turn) for turn in range(len(bodies))]

    def behave(_: int, request: dict[str, Any]) -> Reply:
        found = re.search(r"When does ferry (\d+) leave", request["messages"][1]["content"])
        assert found
        return 200, {}, bodies[int(found[1])]

    with Server(behave) as server:
        verdicts = judge(server, tmp_path).judge(rows)
        # All are kept, so nothing is asked, and paid, again.
        assert judge(server, tmp_path).judge(rows) == verdicts
        assert len(server.requests) == len(bodies)
    kept = dict(AnswerStore(tmp_path).answers())
    assert {verdict.request for verdict in verdicts} == set(kept)
    return verdicts[1:]


def test_a_score_that_is_said_is_had(tmp_path: Path) -> None:
    bodies = [json.dumps(answer).encode() for answer, _ in SCORED]
    found = answered(tmp_path, bodies)
    assert [verdict.score for verdict in found] == [score for _, score in SCORED]
    for verdict in found:
        verdict.reason.encode()  # no lone surrogate is left, which no table can hold


def test_what_says_no_score_is_missing_with_its_reason_and_never_asked_again(
    tmp_path: Path,
) -> None:
    bodies = [json.dumps(answer).encode() for answer, _ in MISSING] + [text for text, _ in RAW]
    found = answered(tmp_path, bodies)
    assert [verdict.status for verdict in found] == [status for _, status in [*MISSING, *RAW]]
    assert all(verdict.score is None and verdict.reason for verdict in found)


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ('{"reason": "x", "better": "first"}', "first"),
        ('{"Reason": "x", "Better": " Second "}', "second"),
        ('<think>{"better": "first"}</think>{"better": "tie"}', "tie"),
        ('{"better": "tie"}{"better": "tie"}', "tie"),
        ('{"better": "first", "better": "second"}', None),
        ('{"better": "first"} or {"better": "second"}', None),
        ('{"better": "both"}', None),
        ('Better: second\n{"better": "first"}', None),
        ('**better**: first\n{"better": "First"}', "first"),
        ('The first reply says {"better": "first"}, which I ignore.', None),
        ('{"better": 1}', None),
        ("first", None),
    ],
)
def test_a_choice_is_read_by_the_same_rules(text: str, choice: str | None) -> None:
    if choice is None:
        with pytest.raises(ValueError, match=r"better"):
            choice_in(text)
    else:
        assert choice_in(text)[0] == choice


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", "sk-canary-000")
