"""Feeds random and damaged texts to what reads texts from outside; stops at the first crash.

python tests/fuzz/run.py --seconds 1800
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import io
import json
import math
import os
import random
import shutil
import socket
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

from kvfidelity.dialogues.cleaning import other_roles, questions_of, turns_of  # noqa: E402
from kvfidelity.dialogues.formats import SourceCounts, read_conversations  # noqa: E402
from kvfidelity.dialogues.formats.registry import known_formats  # noqa: E402
from kvfidelity.dialogues.segments import ChatSegmenter  # noqa: E402
from kvfidelity.dialogues.tokenizer import load_tokenizer  # noqa: E402
from kvfidelity.errors import UserError  # noqa: E402
from kvfidelity.judges.answers import choice_in, score_in  # noqa: E402
from kvfidelity.judges.batch_lines import Lines  # noqa: E402
from kvfidelity.judges.completion import MOST_TOKENS, read_completion  # noqa: E402
from kvfidelity.judges.failures import HttpError  # noqa: E402
from kvfidelity.judges.json_text import parse_json as parse_foreign_json  # noqa: E402
from kvfidelity.judges.rubric import Rubric  # noqa: E402
from kvfidelity.judges.store import AnswerStore  # noqa: E402
from kvfidelity.models.end_tokens import end_token_ids  # noqa: E402
from kvfidelity.models.geometry import Geometry  # noqa: E402
from kvfidelity.models.load import load_model  # noqa: E402
from kvfidelity.worker.job import job_from  # noqa: E402
from kvfidelity.worker.protocol import first_message  # noqa: E402
from tests.judges.batch_server import STEPS, BatchServer  # noqa: E402
from tests.judges.server import Reply  # noqa: E402
from tests.judges.test_batch import judge as batch_judge  # noqa: E402
from tests.judges.test_batch import row as batch_row  # noqa: E402
from tests.judges.test_batch import sent  # noqa: E402
from tests.models.tiny import save_tiny  # noqa: E402

CORPUS = ROOT / "tests/fuzz/corpus"
RUBRIC = Rubric.read(ROOT / "resources/rubrics/blind.md")


def answers(content: bytes) -> None:
    text = content.decode("utf-8", "surrogateescape")  # lone surrogates too
    for cut in (False, True):
        with contextlib.suppress(ValueError):
            score, reason = score_in(text, RUBRIC, cut=cut)
            assert 1 <= score <= 10
            assert not cut or score_in(text, RUBRIC) == (score, reason)
            reason.encode()
        with contextlib.suppress(ValueError):
            choice_in(text, cut=cut)


def completions(content: bytes) -> None:
    """A body of an endpoint, from its bytes to a verdict."""
    text = content.decode("utf-8", "replace")
    HttpError(400, {}, text).remedy("model")
    try:
        body = parse_foreign_json(text)
    except ValueError:
        return
    answer = read_completion(body, lambda prompt, answered: prompt + answered)
    assert answer.usd is None or 0 <= answer.usd <= 2 * MOST_TOKENS
    json.dumps(asdict(answer)).encode()


def store_lines(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "other.jsonl").write_bytes(content)
        store = AnswerStore(Path(folder))
        with contextlib.redirect_stderr(io.StringIO()):  # it names what it skips
            store.missing(["key"])
        assert 0 <= store.spent("j") < math.inf
        store.answered_lately("m")
        for batch in store.open_batches("j", "openai http://x/v1"):
            assert sum(batch.prices[key] for key in batch.keys[: len(batch.usd)]) >= 0
            assert (batch.at or 0) - 1 < math.inf
        for key, outcome in store.answers():
            assert store.get(key) == replace(outcome, possible_usd=store.possible_usd(key))


def records(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.json"
        file.write_bytes(content)
        for name in known_formats():
            counts = SourceCounts()
            with contextlib.suppress(UserError):
                for conversation in read_conversations(file, name, counts):
                    turns, _ = turns_of(conversation, counts.notes)
                    json.dumps([asdict(turn) for turn in turns], ensure_ascii=False).encode()
                    questions_of(conversation, turns)
                    json.dumps(other_roles(conversation), ensure_ascii=False).encode()


def parquet(content: bytes) -> None:
    """A process for each, so few are tried: what is looked for is another error than a refusal."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.parquet"
        file.write_bytes(content)
        with contextlib.suppress(UserError):
            list(read_conversations(file, "sharegpt", SourceCounts()))


def messages(content: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(content[:10_000] + b"\n")
        with contextlib.suppress(ValueError):
            job_from(first_message(theirs, 10).get("job"))


#: Files of a model's folder, and what is found in none of the others.
MODEL_FILES = {
    "config.json": b'"architectures"',
    "tokenizer_config.json": b'"tokenizer_class"',
    "tokenizer.json": b'"added_tokens"',
    "chat_template.jinja": b"{%",
    "generation_config.json": b'"_from_model_config"',
}


@cache
def _tiny_model() -> Path:
    # On the disk of the folders that are linked to it.
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    return save_tiny(Path(folder))


def model_folders(content: bytes) -> None:
    """A model's folder in which one file is another; which one, its content says."""
    names = [name for name, mark in MODEL_FILES.items() if mark in content]
    name = (names or list(MODEL_FILES))[zlib.crc32(content) % (len(names) or len(MODEL_FILES))]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for file in _tiny_model().iterdir():
            os.link(file, folder / file.name)
        (folder / name).unlink()
        (folder / name).write_bytes(content)
        with contextlib.suppress(UserError):
            assert Geometry.of(folder).token_bytes("float32") > 0
        transformers_logging.set_verbosity(transformers_logging.CRITICAL)
        with contextlib.suppress(UserError):
            ChatSegmenter(load_tokenizer(folder), end_token_ids(folder))
        with contextlib.suppress(UserError):
            load_model(folder, "float32", "cpu")


def batches(content: bytes) -> None:
    """What the Batch API gives: a file's lines, and any call of a run and of the run after it."""
    lines = Lines()
    lines.add(content, ["KEY"])
    assert set(lines.by_key) <= {"KEY"} and lines.answers + len(lines.errors) == len(lines.by_key)
    for line in lines.by_key.values():
        line.reason.encode()
        assert line.error is None or 300 <= line.error.status < 600
    draw = zlib.crc32(content) % (4 * len(STEPS))
    if draw >= len(STEPS):
        return  # a run takes a while
    step = STEPS[draw]
    with tempfile.TemporaryDirectory() as folder, BatchServer(looks=1) as server:
        judge = batch_judge(server.url, Path(folder), {"poll_s": 0.001}, api_key_env=None)
        key = judge.request(batch_row(0), []).key

        def answer(here: str, right: bytes) -> Reply:
            if here == "create" and step == "list" and len(server.batches) == 1:
                return 502, {}, b""
            return 200, {}, content.replace(b"KEY", key.encode()) if here == step else right

        server.answer = answer
        for _ in range(2):
            with contextlib.suppress(UserError), contextlib.redirect_stderr(io.StringIO()):
                judge.judge([batch_row(0)])
            server.answer = lambda _, body: (200, {}, body)
        # Others may say that it was never taken, that it failed, or that each request is at fault.
        assert len(sent(server)) <= (1 if step in ("upload", "create") else 2), step
        assert 0 <= AnswerStore(Path(folder)).spent("mine") < math.inf


TARGETS: dict[str, Callable[[bytes], None]] = {
    "answers": answers,
    "completions": completions,
    "batches": batches,
    "model_folders": model_folders,
    "store_lines": store_lines,
    "records": records,
    "parquet": parquet,
    "messages": messages,
}


def damaged(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """A text of the corpus with one stretch replaced."""
    piece = st.binary(max_size=8) | st.sampled_from([b"[" * 3000, b"9" * 4301, b'{"a":', b"null"])
    return st.builds(
        lambda seed, at, length, new: (
            seed[: at % (len(seed) + 1)] + new + seed[at % (len(seed) + 1) + length :]
        ),
        st.sampled_from(seeds),
        st.integers(0, 4096),
        st.integers(0, 16),
        piece,
    )


#: Values that stand where another is expected.
ODD = (None, True, -1, 3.5, 1e308, 10**30, -(10**30), "", "1", "\ud800", [], {}, [None], {"a": 1})


def reshaped(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """Lines of the corpus that are JSON, with some of their values replaced or left out."""
    lines = [line for seed in seeds for line in seed.splitlines() if is_json(line)]

    def changed(chosen: list[bytes], seed: int) -> bytes:
        rng = random.Random(seed)
        return b"\n".join(
            json.dumps(_with_odd_values(json.loads(line), rng)).encode() for line in chosen
        )

    if not lines:
        return st.nothing()
    chosen = st.lists(st.sampled_from(lines), min_size=1, max_size=6)
    return st.builds(changed, chosen, st.integers(0, 2**32))


def is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _with_odd_values(value: Any, rng: random.Random) -> Any:
    if rng.random() < 0.1:
        return rng.choice(ODD)
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if rng.random() > 0.05}
        return {key: _with_odd_values(item, rng) for key, item in kept.items()}
    if isinstance(value, list):
        return [_with_odd_values(item, rng) for item in value]
    return value


def fuzz(name: str, seconds: float) -> int:
    """Run one target; the number of texts."""
    seeds = [file.read_bytes() for file in sorted((CORPUS / name).iterdir())]
    for seed in seeds:
        TARGETS[name](seed)
    tried, deadline = len(seeds), time.monotonic() + seconds

    @settings(
        max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(damaged(seeds) | reshaped(seeds) | st.binary(max_size=200))
    def one_round(content: bytes) -> None:
        nonlocal tried
        if time.monotonic() > deadline:
            return
        tried += 1
        try:
            TARGETS[name](content)
        except BaseException:
            print(f"{name}: a crash on {content[:300]!r}", file=sys.stderr)
            raise

    while time.monotonic() < deadline:
        one_round()
    return tried


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("targets", nargs="*", default=list(TARGETS))
    options = parser.parse_args()
    for name in options.targets:
        tried = fuzz(name, options.seconds / len(options.targets))
        print(f"{name}: {tried} texts, no crash", flush=True)


if __name__ == "__main__":
    main()
