"""All cells of one long dialogue at once, against one by one and against the arithmetic.

    python benchmarks/gpu_cells.py            # Llama-3-8B's shapes, random bf16 weights, on a GPU
    python benchmarks/gpu_cells.py --tiny     # the same code on a small model, also on a CPU

Sixteen cells of one dialogue with reference replies and scores on, from the same baseline. Their
distinct tokens are the baseline's and, for each cell, those from the turn of its first eviction on;
the floor is 2 x parameters x these over the measured rate of matrix products.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from gpu_llama import engine_around, random_model
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig

from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.scheduler import run_batch
from kvfidelity.dialogues.pool import Dialogue, Turn
from kvfidelity.dialogues.segments import Segment
from kvfidelity.generation.run import Records, run_dialogue
from kvfidelity.generation.spec import RunSpec
from kvfidelity.prefix.cache import PrefixCache

TURNS, TOKENS, AT, TARGET = 30, 8000, 5600, 2000
KINDS: dict[str, dict[str, Any]] = {
    "random": {"keep_ratio": 0.5},
    "attention_top": {"history": "accumulated"},
    "sliding_window_gist": {},
    "streaming_llm": {},
    "h2o": {},
    "snapkv": {},
    "tova": {},
    "keydiff": {},
}
POSITIONS = ("stale", "rerotated")
TINY = LlamaConfig(
    vocab_size=512,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=8192,
)
Row = tuple[str, str]


class RandomTurns:
    """A segmenter and tokenizer of random tokens; prompts take two fifths of a turn."""

    stop_ids: frozenset[int] = frozenset()
    end_of_turn_ids = (5,)

    def __init__(self, vocabulary: int, tokens: int) -> None:
        draws = torch.Generator().manual_seed(0)
        self._ids = torch.randint(10, vocabulary, (tokens,), generator=draws).tolist()

    def segments(self, turns: Sequence[Turn], **_: object) -> list[Segment]:
        size = len(self._ids) // TURNS
        parts = [self._ids[size * turn : size * (turn + 1)] for turn in range(len(turns))]
        cut = 2 * size // 5
        return [Segment(tuple(part[:cut]), tuple(part[cut:])) for part in parts]

    def decode(self, ids: Sequence[int], **_: object) -> str:
        return " ".join(map(str, ids))


def cells(at: int, target: int) -> list[RunSpec]:
    return [
        RunSpec(
            model="random",
            dataset="random",
            policy=kind,
            kind=kind,
            parameters=parameters,
            positions=positions,
            threshold="t",
            at=f"{at}tok",
            target=f"{target}tok",
            score_every_run=True,
        )
        for kind, parameters in KINDS.items()
        for positions in POSITIONS
    ]


def cell_rows(
    engine: Engine, tokens: int = TOKENS, at: int = AT, target: int = TARGET
) -> list[Row]:
    """Seconds together and one by one, without and with the baseline, and of the floor."""
    vocabulary = engine.model.config.vocab_size
    chat: Any = RandomTurns(vocabulary, tokens)
    engine = dataclasses.replace(engine, segmenter=chat, tokenizer=chat)
    talk = Dialogue("000", "random", tuple(Turn("", "") for _ in range(TURNS)))
    specs = cells(at, target)
    for _ in range(2):  # kernels and layers are compiled
        timed(engine, talk, specs, len(specs))
    timed(engine, talk, [dataclasses.replace(spec, max_turns=2) for spec in specs], 1)
    together, records = timed(engine, talk, specs, len(specs))
    alone, others = timed(engine, talk, specs, 1)
    distinct = distinct_tokens(records)
    parameters = sum(weight.numel() for weight in engine.model.parameters())
    rate = matmul_rate(engine)
    floor = 2 * parameters * distinct / rate
    largest = max(
        float((one.turns["reference_nll"] - other.turns["reference_nll"]).abs().max())  # type: ignore[arg-type]
        for one, other in zip(records, others, strict=True)
    )
    name = f"{len(specs)} cells of a dialogue of {tokens} tokens and {TURNS} turns"
    return [
        ("matrix products", f"{rate / 1e12:.3g} TFLOP/s in {engine.model.dtype}"),
        (
            f"{name}, together",
            f"{together:.1f} s, {alone / together:.1f} times less than one by one",
        ),
        (f"{name}, one by one", f"{alone:.1f} s"),
        ("floor", f"{floor:.2f} s for {distinct} distinct tokens: {floor / together:.0%} reached"),
        *gpu_time_rows(engine, talk, specs, floor),
        ("largest difference of a turn's NLL", f"{largest:.1e} nats"),
    ]


def timed(
    engine: Engine, talk: Dialogue, specs: Sequence[RunSpec], batch_size: int
) -> tuple[float, list[Records]]:
    """Seconds for all runs, with one shared baseline."""
    store = PrefixCache(1 << 40)

    def run(at: Engine, spec: RunSpec) -> Records:
        return run_dialogue(at, talk, spec, store)

    start = engine.now()
    records = run_batch(
        engine,
        [partial(run, spec=spec) for spec in specs],
        batch_size,
    )
    return engine.now() - start, records


def gpu_time_rows(
    engine: Engine, talk: Dialogue, specs: Sequence[RunSpec], floor: float
) -> list[Row]:
    """What of these seconds kernels ran; the rest is Python between them."""
    if engine.device.type != "cuda":
        return []
    together = kernel_seconds(lambda: timed(engine, talk, specs, len(specs)))
    alone = kernel_seconds(lambda: timed(engine, talk, specs, 1))
    return [
        (
            "GPU time, together",
            f"{together:.2f} s, {floor / together:.0%} of the floor, "
            f"{alone / together:.1f} times less than one by one",
        ),
        ("GPU time, one by one", f"{alone:.2f} s"),
    ]


def kernel_seconds(run: Callable[[], object]) -> float:
    """Seconds in which kernels ran; they run one after another."""
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        run()
    total: float = sum(event.self_device_time_total for event in profiler.key_averages())
    return total / 1e6


def distinct_tokens(records: Sequence[Records]) -> int:
    """Tokens of the baseline, and of each run from its first turn that is not the baseline's."""
    total = int(records[0].turns["tokens_seen_end"].max())  # type: ignore[arg-type]
    for record in records:
        own = record.turns.filter(~record.turns["shared_prefix"])
        total += int((own["tokens_seen_end"] - own["tokens_seen_start"]).sum())
    return total


def matmul_rate(engine: Engine) -> float:
    """Operations per second of a product of an MLP's size, in the model's dtype."""
    config, device = engine.model.config, engine.device
    x = torch.randn(4096, config.hidden_size, dtype=engine.model.dtype, device=device)
    w = torch.randn(config.hidden_size, config.intermediate_size, dtype=x.dtype, device=device)
    seconds = []
    for _ in range(9):
        start = engine.now()
        for _ in range(8):
            x @ w
        seconds.append((engine.now() - start) / 8)
    return 2 * x.shape[0] * w.numel() / sorted(seconds)[4]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="a small model, on a CPU too")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    if options.tiny:
        engine = engine_around(random_model(TINY, "cpu", torch.float32))
        found = cell_rows(engine, tokens=600, at=450, target=150)
    else:
        found = cell_rows(engine_around(random_model()))
    for what, measured in found:
        print(f"| {what} | {measured} |", flush=True)


if __name__ == "__main__":
    main()
