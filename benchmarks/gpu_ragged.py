"""Caches whose kv heads hold different numbers of slots against uniform ones, side by side.

    python benchmarks/gpu_ragged.py            # Llama-3-8B's shapes, random bf16 weights, on a GPU
    python benchmarks/gpu_ragged.py --tiny     # the same code on a small model, also on a CPU

Evictions, decode steps, the attention of a step alone, and feeding. Ragged budgets are drawn at
random, with the largest of a layer's heads about three times the mean; all caches of a row hold the
same bytes. The roofline of a step is the time to read the weights and the keys and values once, at
the rate of a large copy.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from gpu_llama import engine_around, random_model
from gpu_timing import bandwidth, elapsed_ms, median_ms, weight_bytes
from transformers import LlamaConfig

from kvfidelity.cache.evictor import EvictionSchedule, Evictor, Trigger
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.policies import build_policy
from kvfidelity.cache.ragged import RaggedKeepSet, apportion
from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.sampling import Sampling, uniform_draws
from kvfidelity.decoding.sequence import SequenceState
from kvfidelity.decoding.steps import StepsKind, steps_of

POLICIES: list[tuple[str, dict[str, Any]]] = [
    ("h2o", {}),
    ("adakv", {"policy": "h2o"}),
    ("pyramidkv", {"policy": "h2o"}),
]
TINY = LlamaConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=8192,
)
Row = tuple[str, str]


@dataclass(frozen=True)
class Sizes:
    """prompt: tokens before an eviction. target, large: slots after one, per kv head."""

    prompt: int = 8192
    target: int = 2000
    large: int = 5600
    batch: int = 16
    steps: int = 32
    fed: int = 512
    times: int = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="a small model; a GPU is not needed")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    if options.tiny:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        engine = engine_around(random_model(TINY, device, torch.float32))
        rows = ragged_rows(engine, Sizes(200, 50, 120, 3, 4, 8, 2))
    else:
        print(torch.cuda.get_device_name())
        rows = ragged_rows(engine_around(random_model()), Sizes())
    for what, found in rows:
        print(f"| {what} | {found} |", flush=True)


def ragged_rows(engine: Engine, sizes: Sizes | None = None) -> Iterator[Row]:
    """Rows of the table; without a GPU no rates."""
    sizes = sizes or Sizes()
    on_gpu = engine.device.type == "cuda"
    speed = bandwidth() if on_gpu else None
    vocabulary = engine.model.config.vocab_size
    draws = torch.Generator().manual_seed(0)
    tokens = torch.randint(10, vocabulary, (sizes.prompt,), generator=draws).tolist()
    cache = engine.new_cache("rerotated", collect_scores=True)
    engine.feed(cache, tokens)
    yield from eviction_rows(engine, cache, sizes)
    for slots in (sizes.target, sizes.large):
        kept = keep_sets(cache, slots)
        for name, chosen in kept.items():
            yield decode_row(engine, cache, chosen, name, 1, sizes, speed)
        if on_gpu:
            yield from (attention_row(cache, each, name, speed) for name, each in kept.items())
    kept = keep_sets(cache, sizes.target)
    for name, chosen in kept.items():
        yield feed_row(engine, cache, chosen, name, sizes)
    for name, chosen in kept.items():
        yield decode_row(engine, cache, chosen, name, sizes.batch, sizes, speed)


def eviction_rows(engine: Engine, cache: ManagedCache, sizes: Sizes) -> Iterator[Row]:
    """Milliseconds to move the survivors in all layers, and of the whole eviction."""
    for name, kept in keep_sets(cache, sizes.target).items():
        moving = []
        for _ in range(sizes.times):
            copy = cache.fork()
            moving.append(clock_ms(engine, lambda copy=copy, kept=kept: copy.keep(kept)))
        yield (
            f"eviction of {sizes.prompt} to {sizes.target}, {name} keep set",
            f"{median(moving[1:]):.1f} ms to move",
        )
    for kind, parameters in POLICIES:
        stages = [(cache, sizes.prompt, sizes.target)]
        for start, threshold, target in stages:
            moving, whole = [], []
            for _ in range(sizes.times):
                copy = start.fork()
                schedule = EvictionSchedule(Trigger.STEP, threshold, target)
                evictor = Evictor(build_policy(kind, parameters), schedule)
                whole.append(clock_ms(engine, lambda at=copy, it=evictor: it.before_step(at)))
                assert copy.size == target
                moving.append(evictor.log[0].eviction_s * 1e3)
            yield (
                f"eviction of {threshold} to {target}, {kind}" + (" again" * (start is not cache)),
                f"{median(moving[1:]):.1f} ms to move, {median(whole[1:]):.1f} in all",
            )
            if start is cache and copy.slot_table.is_ragged:
                stages.append((copy, target, target // 2))


def decode_row(
    engine: Engine,
    cache: ManagedCache,
    kept: Any,
    name: str,
    batch: int,
    sizes: Sizes,
    speed: float | None,
) -> Row:
    """Steps of a batch with scores on."""
    policy = build_policy("baseline", {})
    states = []
    for _ in range(batch):
        copy = cache.fork()
        copy.keep(kept)
        evictor = Evictor(policy, EvictionSchedule(Trigger.TURN, None))
        states.append(
            SequenceState(copy, evictor, Sampling(), 500, uniform_draws(500, 0), token=17)
        )
    slots, held = states[0].cache.size, sum(state.cache.nbytes for state in states)
    steps = steps_of(engine, batch, StepsKind.of(states[0]))
    for index, state in enumerate(states):
        steps.admit(index, state)
    for _ in range(4):
        steps.step()
    times = max(2, sizes.times - 2)
    ms = median_ms(lambda: [steps.step() for _ in range(sizes.steps)], times) / sizes.steps
    for index in range(batch):
        steps.release(index)
    found = f"{1e3 / ms:.1f} steps/s"
    if speed is not None:
        found += f", {(weight_bytes(engine) + held) / speed * 1e3 / ms:.0%} of the roofline"
    return f"decode, batch of {batch}, {slots} slots a head, {name}", found


def attention_row(cache: ManagedCache, kept: Any, name: str, speed: float) -> Row:
    """The attention of one step, all layers in one CUDA graph, against the bytes of the cache."""
    from kvfidelity.cache.triton.head_step_table import HeadStepTable
    from kvfidelity.cache.triton.step_table import StepTable

    copy = cache.fork()
    copy.keep(kept)
    copy.reserve(copy.size + 8)
    layers, groups, size = len(copy.layers), *cache.layers[0].live_keys.shape[::2]
    half = copy.rotary.table(1, copy.device)[0].shape[1]
    table = (
        HeadStepTable(layers, 1, groups, half, copy.device)
        if copy.slot_table.is_ragged
        else StepTable(layers, 1, half, copy.device)
    )
    table.admit(0, copy, alive=True, max_new_tokens=8)
    modules = [SimpleNamespace() for _ in range(layers)]
    table.give_rows(modules)
    assert copy.scores is not None
    query, key, value = (
        torch.randn(1, heads, 1, size, device=copy.device, dtype=copy.layers[0].dtype)
        for heads in (copy.scores.heads, groups, groups)
    )

    def attend() -> None:
        for module in modules:
            table.attend(module, query, key, value, size**-0.5)

    attend()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attend()
    ms = median_ms(lambda: [graph.replay() for _ in range(16)], 5) / 16
    return (
        f"attention of a step, {copy.size} slots a head, {name}",
        f"{1e3 * ms:.0f} us, {copy.nbytes / speed * 1e3 / ms:.0%} of the bandwidth",
    )


def feed_row(engine: Engine, cache: ManagedCache, kept: Any, name: str, sizes: Sizes) -> Row:
    """Feeding a prompt's tokens after an eviction, scores on."""
    tokens, found = list(range(10, 10 + sizes.fed)), []
    for _ in range(sizes.times):
        copy = cache.fork()
        copy.keep(kept)
        found.append(elapsed_ms(lambda copy=copy: engine.feed(copy, tokens)))
    what = f"feeding {sizes.fed} tokens, {sizes.target} slots a head, {name}"
    return what, f"{median(found[1:]):.1f} ms"


def keep_sets(cache: ManagedCache, slots: int) -> dict[str, Any]:
    """Random keep sets of the same total on the cache's device: uniform and ragged."""
    layers, groups = len(cache.layers), cache.layers[0].live_keys.shape[0]
    draws = torch.Generator().manual_seed(1)
    counts = torch.full((layers, groups), cache.size)
    shares = torch.rand(layers, groups, generator=draws) ** 2
    ragged = apportion(shares, slots * counts.numel(), torch.ones_like(counts), counts)
    order = torch.rand(layers, groups, cache.size, generator=draws).argsort(-1)
    uniform = order[..., :slots].sort(-1).values
    rows = [
        [row[:count].sort().values for row, count in zip(*pair, strict=True)]
        for pair in zip(order, ragged.tolist(), strict=True)
    ]
    return {
        "uniform": uniform.to(cache.device),
        "ragged": RaggedKeepSet.of_rows(rows).to(cache.device),
    }


def clock_ms(engine: Engine, run: Any) -> float:
    """Milliseconds by the clock, until the device has finished."""
    start = engine.now()
    run()
    return (engine.now() - start) * 1e3


if __name__ == "__main__":
    main()
