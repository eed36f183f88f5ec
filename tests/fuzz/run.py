"""Feeds random and damaged texts to what reads texts from outside; stops at the first crash.

python tests/fuzz/run.py --seconds 1800
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import random
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from kvfidelity.dialogues.cleaning import other_roles, questions_of, turns_of  # noqa: E402
from kvfidelity.dialogues.formats import SourceCounts, read_conversations  # noqa: E402
from kvfidelity.dialogues.formats.registry import known_formats  # noqa: E402
from kvfidelity.errors import UserError  # noqa: E402
from kvfidelity.judges.answers import choice_in, score_in  # noqa: E402
from kvfidelity.judges.completion import MOST_TOKENS, read_completion  # noqa: E402
from kvfidelity.judges.failures import HttpError  # noqa: E402
from kvfidelity.judges.json_text import parse_json as parse_foreign_json  # noqa: E402
from kvfidelity.judges.rubric import Rubric  # noqa: E402
from kvfidelity.judges.store import AnswerStore  # noqa: E402
from kvfidelity.worker.job import job_from  # noqa: E402
from kvfidelity.worker.protocol import first_message  # noqa: E402

CORPUS = ROOT / "tests/fuzz/corpus"
RUBRIC = Rubric.read(ROOT / "resources/rubrics/blind.md")


def answers(content: bytes) -> None:
    text = content.decode("utf-8", "surrogateescape")  # lone surrogates too
    with contextlib.suppress(ValueError):
        score, reason = score_in(text, RUBRIC)
        assert 1 <= score <= 10
        reason.encode()
    with contextlib.suppress(ValueError):
        choice_in(text)


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


TARGETS: dict[str, Callable[[bytes], None]] = {
    "answers": answers,
    "completions": completions,
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
