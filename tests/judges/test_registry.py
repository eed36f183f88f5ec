"""Judge kinds: what they declare is what the config accepts, and a file adds one."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kvfidelity.errors import UserError
from kvfidelity.judges.kinds.openai import with_defaults
from kvfidelity.judges.llm import LLMJudge
from kvfidelity.judges.pairwise import PairwiseJudge
from kvfidelity.judges.registry import build_judge, known_judges
from kvfidelity.judges.requests import Client, Failure, Outcome, Request
from kvfidelity.judges.rubric import Rubric
from kvfidelity.pipeline.rule_params import judge_limits, judge_params, judge_test_params
from kvfidelity.pipeline.settings import load_settings
from tests.judges.own_kind import WORDS_JUDGE
from tests.workflow.project import CONFIG

ROOT = Path(__file__).parents[2]
ROW = {
    "turn": 1,
    "prompt": "And then?",
    "reply": "Then é.",
    "reference": "It rained.",
    "finish_reason": "eos",
}
HISTORY = [{"prompt": "Hi", "fed_reply": "Hello"}]
#: Keys under which answers were paid for. A change here pays for every answer again.
KEYS = {
    ("schema", "blind"): "3722c81a1774488e71491612ec2f903fc0eb5b81dd6167c480ca58383439759b",
    ("object", "blind"): "fac6d2e08d25d9cbe3d2e62feb6d430f96ab6378491b36f1dca4e94babf8bdf5",
    ("text", "blind"): "a11b534e577076a4ebc0fe7208de9a5fa8459ee583767d51f866241a1ba42dcd",
    ("schema", "grounded"): "47edf813567cdb4e01a612877f99d729c139862058ba0bce167c1561759ccf1d",
    ("text", "grounded"): "373e9c77a382bf7951c4c60f68f7d4fc40d5f7bd2519c0057d885ea0a8ea1bee",
}
KEY_OF_A_REPEAT = "10a8a418a9149be1c12cf9033d4a6fde63d98565ed57ced866892eb80a1e7f61"
KEY_OF_A_PAIR = "0a5d89760e953e87cd7ba379c59aacbdfdd98785a20faf2192eb6068c9927ad7"


class RecordingClient:
    """Answers no request, and keeps the key of each."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def complete(self, requests: Sequence[Request]) -> list[Outcome]:
        self.keys += [request.key for request in requests]
        return [Failure("not asked") for _ in requests]


def scorer(form: str, rubric: str, client: Client) -> LLMJudge:
    scores = {"blind": ("score",)}.get(
        rubric, ("coherence", "faithfulness", "relevance", "overall")
    )
    entry = {"model": "m", "answer_format": form}
    return LLMJudge("x", with_defaults(entry), Rubric(rubric, "Judge it.", scores), client)


def test_requests_keep_the_keys_under_which_answers_were_paid_for() -> None:
    for (form, rubric), key in KEYS.items():
        client = RecordingClient()
        scorer(form, rubric, client).judge_each([(ROW, HISTORY)])
        assert client.keys == [key]
    client = RecordingClient()
    scorer("schema", "blind", client).judge_each([(ROW, HISTORY)], [{"repeat": 1}])
    assert client.keys == [KEY_OF_A_REPEAT]
    client = RecordingClient()
    rubric = Rubric("pairwise", "Judge it.", ("score",))
    PairwiseJudge("x", with_defaults({"model": "m"}), rubric, client).compare_each(
        [(ROW | {"reply": "a"}, "b", HISTORY)]
    )
    assert client.keys[0] == KEY_OF_A_PAIR


def test_finding_judges_imports_no_client_of_an_endpoint() -> None:
    code = (
        "import sys; from kvfidelity.judges.registry import known_judges; known_judges();"
        "assert not {'openai', 'torch'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def own_settings(tmp_path: Path, **options: Any) -> dict[str, Any]:
    file = tmp_path / "my_judge.py"
    file.write_text(WORDS_JUDGE)
    entry = {"kind": "words", "rubric": "blind", **options}
    own = {"judge_files": [str(file)], "judges": {"mine": entry}, "judging": ["mine"]}
    return load_settings(CONFIG | own)


def test_a_file_adds_a_kind(tmp_path: Path) -> None:
    settings = own_settings(tmp_path)
    spec = judge_params(settings, "mine")
    assert spec["words_per_point"] == 2
    assert judge_test_params(settings, "mine") == spec
    assert judge_limits(settings, "mine") == {"price": None}
    judge = build_judge("mine", spec, tmp_path / "blind.md", {}, tmp_path / "store")
    long, none = ROW | {"reply": "one two three four"}, ROW | {"reply": None}
    found = judge.judge([long, none])
    assert [(verdict.score, verdict.status) for verdict in found] == [(3, "ok"), (None, "no_reply")]
    assert {(v.judge, v.judge_kind, v.rubric) for v in found} == {("mine", "words", "blind")}
    (tmp_path / "my_judge.py").write_text(WORDS_JUDGE + "\n# another text\n")
    assert judge_params(settings, "mine")["judge_digest"] != spec["judge_digest"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"words_per_pint": 3}, "did you mean 'words_per_point'?"),
        ({"words_per_point": 0}, "judges.mine.words_per_point: 0 is too small"),
        ({"rubric": "pairwise"}, "kind words compares nothing"),
        ({"kind": "word"}, "did you mean 'words'?"),
        ({"concurrency": 3}, "unknown key 'concurrency'"),
    ],
)
def test_the_options_of_an_added_kind_are_checked(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        own_settings(tmp_path, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("x = 1", "defines no judge"),
        ("raise ValueError('out of ideas')", "ValueError: out of ideas"),
        (WORDS_JUDGE.replace('"words"', '"formula"'), "exists already"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    tmp_path: Path, text: str | None, message: str
) -> None:
    file = tmp_path / "my_judge.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=f"my_judge.py.*{message}"):
        known_judges([str(file)])


def test_how_a_judge_asks_is_no_part_of_what_its_verdicts_depend_on() -> None:
    entry = {"kind": "openai", "model": "m", "rubric": "blind"}
    one = load_settings(CONFIG | {"judges": {"x": entry}, "judging": ["x"]})
    limits = {"concurrency": 3, "tokens_per_minute": 9, "timeout_s": 5, "poll_s": 1, "batch": True}
    other = load_settings(CONFIG | {"judges": {"x": entry | limits}, "judging": ["x"]})
    assert judge_params(one, "x") == judge_params(other, "x")
    assert judge_limits(other, "x")["concurrency"] == 3


def test_the_documented_kind_is_the_tested_one() -> None:
    text = (ROOT / "docs/judging.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```python\n# my_judge.py\n(.*?)```", text, flags=re.DOTALL)
    assert block == WORDS_JUDGE
