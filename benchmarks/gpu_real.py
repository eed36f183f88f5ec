"""SmolLM2 with its real weights: the GPU in fp32 against the CPU in fp32."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from kvfidelity.cache.evictor import EvictionSchedule, Evictor, Trigger
from kvfidelity.cache.policies import build_policy
from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.generate import generate
from kvfidelity.decoding.sampling import Sampling
from kvfidelity.dialogues.pool import Dialogue, Turn
from kvfidelity.generation.run import run_dialogue
from kvfidelity.generation.spec import RunSpec
from kvfidelity.prefix.cache import PrefixCache
from kvfidelity.records.grid import POSITIONS

TOKENS = 256
DIALOGUES = Path(__file__).parents[1] / "resources/dialogues/own.jsonl"
Row = tuple[str, str]


def compare_with_cpu(model_dir: Path) -> list[Row]:
    """Greedy tokens of every position mode under eviction, and excess nats of reference replies."""
    engines = [Engine.load(model_dir, "float32", device) for device in ("cpu", "cuda")]
    endless = [without_end(engine) for engine in engines]
    talk = dialogues()[0]
    rows = []
    for mode in POSITIONS:
        here, there = (greedy(engine, talk, mode) for engine in endless)
        pairs = enumerate(zip(here, there, strict=True))
        same = next((index for index, (one, other) in pairs if one != other), TOKENS)
        rows.append((f"SmolLM2, {mode}: equal greedy tokens", f"{same} of {TOKENS}"))
    tables = [excess(engine) for engine in engines]
    for cell, value in tables[0].items():
        rows.append(
            (f"excess nats, {' '.join(cell)}", f"{value:.4f} CPU, {tables[1][cell]:.4f} GPU")
        )
    worst = max(abs(tables[0][cell] - tables[1][cell]) for cell in tables[0])
    return [*rows, ("largest difference of excess nats", f"{worst:.6f}")]


def without_end(engine: Engine) -> Engine:
    """A copy of the engine whose replies no token ends."""
    endless = dataclasses.replace(engine, graphs={}, segmenter=copy.copy(engine.segmenter))
    endless.segmenter.stop_ids = frozenset()
    return endless


def greedy(engine: Engine, talk: Dialogue, mode: str) -> tuple[int, ...]:
    """Tokens after the first prompt; attention_top evicts 60 slots each time 20 more are filled."""
    cache = engine.new_cache(mode, collect_scores=True)
    hidden = engine.feed(cache, engine.segmenter.segments(talk.turns)[0].prompt_ids)[-1:]
    evictor = Evictor(
        build_policy("attention_top", {"sinks": 4, "recent": 20}), schedule(cache.size)
    )
    reply = generate(engine, cache, evictor, hidden.clone(), TOKENS, Sampling(), 0)
    assert len(evictor.log) > 2
    return reply.ids


def schedule(slots: int) -> EvictionSchedule:
    return EvictionSchedule(Trigger.STEP, slots + 20, slots - 40)


def excess(engine: Engine) -> dict[tuple[str, str], float]:
    """Mean excess nats per token over the baseline, by policy and positions."""
    found: dict[tuple[str, str], list[float]] = {}
    for talk in dialogues():
        prefix_cache = PrefixCache(1 << 34)
        plain = run_dialogue(
            engine, talk, spec("baseline", "original", at=None, target=None), prefix_cache
        )
        for kind in ("streaming_llm", "attention_top", "snapkv"):
            for mode in POSITIONS:
                turns = run_dialogue(engine, talk, spec(kind, mode), prefix_cache).turns
                change = turns["reference_nll"] - plain.turns["reference_nll"]
                found.setdefault((kind, mode), []).append(float(change.mean()))
    return {cell: sum(values) / len(values) for cell, values in found.items()}


def spec(kind: str, mode: str, **changes: Any) -> RunSpec:
    values: dict[str, Any] = {"at": "300tok", "target": "150tok"} | changes
    return RunSpec(
        model="smollm2-135m",
        dataset="own",
        policy=kind,
        kind=kind,
        positions=mode,
        threshold="t",
        score_every_run=True,
        max_turns=4,
        **values,
    )


def dialogues() -> list[Dialogue]:
    """Two of the project's dialogues."""
    talks = []
    for index, line in enumerate(DIALOGUES.read_text(encoding="utf-8").splitlines()):
        record = json.loads(line)
        texts = [part["value"] for part in record["conversations"]]
        turns = tuple(Turn(*pair) for pair in zip(texts[::2], texts[1::2], strict=False))
        talks.append(Dialogue(f"{index:03}", record["id"], turns))
    return talks[:2]


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    import sys

    for what, value in compare_with_cpu(Path(sys.argv[1])):
        print(f"| {what} | {value} |")
