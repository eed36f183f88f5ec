"""The whole path over the real protocol against a real model: `transformers serve`.

With a tiny random-weight model and with SmolLM2-135M. What so small a model says is seldom a
verdict: the path is tested, not the judge.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.import_utils import is_serve_available

from kvfidelity.judges.dispatch import build_client
from kvfidelity.judges.kinds.openai import with_defaults
from kvfidelity.judges.llm import LLMJudge
from kvfidelity.judges.rubric import Rubric
from kvfidelity.judges.store import AnswerStore
from tests.default_run import MODEL
from tests.models.tiny import save_tiny
from tests.waiting import LIMIT_S, wait_until

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not is_serve_available(), reason="needs fastapi and uvicorn: pip install -e .[dev]"
)


@contextlib.contextmanager
def served(model: Path, folder: Path) -> Iterator[str]:
    """An endpoint with this model; yields its base URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "serve.log"
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()"]
    command += ["serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with log.open("w") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=output, env=os.environ | {"HF_HUB_OFFLINE": "1"}
        )
    try:
        wait_until(lambda: healthy(port) or server.poll() is not None, log.read_text)
        assert server.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill()
        server.wait()


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=LIMIT_S):
            return True
    except (urllib.error.URLError, OSError):
        return False


def test_verdicts_of_random_weights_are_had_and_kept(tmp_path: Path) -> None:
    had_and_kept(save_tiny(tmp_path / "model"), tmp_path)


@pytest.mark.network
@pytest.mark.timeout(1500)
def test_verdicts_of_smollm2_are_had_and_kept(default_inputs: None, tmp_path: Path) -> None:
    had_and_kept(MODEL, tmp_path)


def had_and_kept(model: Path, tmp_path: Path) -> None:
    """Every answer of a small model becomes a score or a reason, and is asked for once."""
    with served(model, tmp_path) as url:
        first = judge(url, model, tmp_path).judge(ROWS)
        kept = dict(AnswerStore(tmp_path / "store").answers())
    assert [verdict.status for verdict in first[2:]] == ["no_reply"]
    for verdict in first[:2]:
        assert verdict.status in ("ok", "unparsable", "truncated")
        assert (verdict.score is None) == (verdict.status != "ok")
        assert (verdict.prompt_tokens or 0) > 100
        assert 0 < (verdict.completion_tokens or 0) <= 40
        assert (verdict.cost_usd or 0) > 0
    assert len(kept) == 2
    # The server is gone: its answers come from the store.
    assert judge(url, model, tmp_path).judge(ROWS) == first
    print(json.dumps([(v.status, v.score, v.reason) for v in first], indent=1))


ROWS: list[dict[str, Any]] = [
    {"turn": 0, "prompt": "When does the ferry leave?", "reply": "The ferry leaves at nine."},
    {"turn": 1, "prompt": "And the last one?", "reply": "one the the at last last ferry"},
    {"turn": 2, "prompt": "Thank you.", "reply": None},
]
for row in ROWS:
    row |= {"reference": None, "fed_reply": row["reply"] or "", "finish_reason": "eos"}


def judge(url: str, model: Path, folder: Path) -> LLMJudge:
    entry = {"model": str(model), "base_url": url, "api_key_env": None, "max_tokens": 40}
    entry["answer_format"] = "text"
    pace = {"concurrency": 2, "timeout_s": LIMIT_S, "price": {"input": 1.0, "output": 2.0}}
    rubric = Rubric.read(ROOT / "resources/rubrics/blind.md")
    return LLMJudge(
        "real", with_defaults(entry), rubric, build_client("real", entry, pace, folder / "store")
    )
