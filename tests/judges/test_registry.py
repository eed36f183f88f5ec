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
    ("schema", "blind"): "ddc6d3588ad963fb3159ad296e433d279db205859e1599201334d88b42e55836",
    ("object", "blind"): "04bca39caf690707070fed358f0f1af018b3be5989eb12dc8bff3257e6d2b0d7",
    ("text", "blind"): "d5ddbf4c48d80f4d25f30f6308a7df700faa6a7f1ef68ac336b85f27e7426733",
    ("schema", "grounded"): "11d705100b9f1fc8370044234eead8eaf29c29e967b41896271d5119af951b62",
    ("text", "grounded"): "ef201f343cf83c40a3bec150ff3a7b4a3c348854410d2cf981081186a92178f9",
}
KEY_OF_A_REPEAT = "a9930563df49b704e54d9469ab36ad4272273c17ddf6b94861460205ef743719"
KEY_OF_A_PAIR = "4432b8b326f1929a2c21644420e2f91773887632a5f473e44f97f6222da32b79"


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
