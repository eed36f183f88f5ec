"""How fast runs are on one GPU, against what that GPU could do and against Hugging Face.

    python benchmarks/gpu.py [--smollm2 resources/models/smollm2-135m] [--skip static,grid]

First every kernel is checked against plain attention in fp64. Then, with Llama-3-8B's shapes and
random bf16 weights (speed only), side by side: prefill, decoding one sequence and a batch,
eviction, ragged and uniform keep sets, a grid of runs, all cells of one dialogue. Times are medians
by device events after a warm-up. With --smollm2 real weights in fp32 are compared with the CPU:
tokens, and excess nats of reference replies.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
import triton
from gpu_batches import compare_batch_with_one
from gpu_cells import cell_rows
from gpu_checks import check_kernels
from gpu_grid import POLICIES, PROMPTS, grid_seconds, huggingface_cell_seconds
from gpu_llama import engine_around, random_model
from gpu_ragged import ragged_rows
from gpu_real import compare_with_cpu
from gpu_timing import bandwidth, median_ms, weight_bytes
from transformers import DynamicCache, StaticCache

from kvfidelity.cache.evictor import EvictionSchedule, Evictor, Trigger
from kvfidelity.cache.policies import build_policy
from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.sampling import Sampling, uniform_draws
from kvfidelity.decoding.sequence import SequenceState
from kvfidelity.decoding.steps_cudagraph import GraphSteps

PROMPT, CACHED, BATCH_SIZE, BATCH_SLOTS, STEPS = 8192, 5600, 16, 4000, 32
TOKEN_BYTES = 131072
Row = tuple[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smollm2", type=Path, help="directory of the converted model")
    parser.add_argument("--skip", default="", help="parts to leave out, with commas")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}, "
        f"transformers {transformers.__version__}"
    )
    table: list[Row] = []
    parts: dict[str, Callable[[], list[Row]]] = {
        "checks": lambda: [("kernels against fp64", check_kernels())],
        "llama": llama,
        "evictions": evictions,
        "ragged": lambda: list(ragged_rows(attached(random_model()))),
        "grid": grid,
        "cells": lambda: cell_rows(attached(random_model())),
        "static": static,
        "real": lambda: compare_with_cpu(options.smollm2) if options.smollm2 else [],
        "batches": lambda: compare_batch_with_one(options.smollm2) if options.smollm2 else [],
    }
    failed = False
    for name, part in parts.items():
        if name in options.skip.split(","):
            continue
        start = time.perf_counter()
        try:
            rows = part()
        except Exception:  # noqa: BLE001 - the other parts are still worth their time
            traceback.print_exc()
            rows, failed = [(name, "failed, see above")], True
        table += rows
        gc.collect()
        torch.cuda.empty_cache()
        print(f"-- {name}: {time.perf_counter() - start:.0f} s", flush=True)
        for what, found in rows:
            print(f"| {what} | {found} |", flush=True)
    print("\n| what | measured |\n|---|---|")
    for what, found in table:
        print(f"| {what} | {found} |")
    sys.exit(failed)


def llama() -> list[Row]:
    """Prefill and decode; Hugging Face's code runs first, because a model cannot be detached."""
    speed = bandwidth()
    rows = [("copy bandwidth", f"{speed / 1e12:.2f} TB/s")]
    model = random_model()
    ids = torch.randint(10, 128000, (1, PROMPT), device="cuda")
    model.set_attn_implementation("sdpa")
    plain_ms, plain_bytes = prefill(lambda: feed_plain(model, ids, DynamicCache()))
    theirs = {}
    for name in ("sdpa", "eager"):
        model.set_attn_implementation(name)
        theirs[name] = plain_decode(model, ids)
        rows.append(
            (f"Hugging Face decode, {name}, {CACHED} cached", f"{1e3 / theirs[name]:.1f} tok/s")
        )

    engine = attached(model)
    tokens = ids[0].tolist()
    for scored in (False, True):
        ms, held = prefill(partial(feed_managed, engine, tokens, scored))
        name = "with scores" if scored else "without scores"
        rows.append(
            (
                f"prefill of {PROMPT} {name}",
                f"{ms:.0f} ms, {ms / plain_ms:.2f} of SDPA's {plain_ms:.0f} ms; "
                f"{(held - plain_bytes) / 2**30:+.2f} GiB",
            )
        )
    single = decode_rows(engine, tokens, speed, rows)
    best = min(theirs.values())
    rows.append(("one sequence against Hugging Face's best of the above", f"{best / single:.1f}x"))
    return rows


def static() -> list[Row]:
    """Hugging Face's static cache with a compiled forward; it takes a minute to compile."""
    model = random_model()
    model.set_attn_implementation("sdpa")
    ids = torch.randint(10, 128000, (1, PROMPT), device="cuda")
    cache = StaticCache(config=model.config, max_cache_len=CACHED + 256)
    feed_plain(model, ids[:, :CACHED], cache)
    forward = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)
    token = ids[:, :1].clone()

    def step() -> None:
        out = forward(token, past_key_values=cache, use_cache=True)
        token.copy_(out.logits[:, -1].argmax(-1, keepdim=True))

    for _ in range(4):
        step()
    ms = median_ms(lambda: [step() for _ in range(STEPS)], 3) / STEPS
    return [("Hugging Face decode, static cache, compiled", f"{1e3 / ms:.1f} tok/s")]


def grid() -> list[Row]:
    """8 policies, 2 dialogues, 8 turns: a batch and a shared prefix against one by one."""
    model = random_model()
    model.set_attn_implementation("eager")
    rows, theirs = [], 0.0
    for name in PROMPTS:
        seconds, note = huggingface_cell_seconds(model, name)
        theirs += len(POLICIES) * seconds
        rows.append((f"grid, Hugging Face eager, a {name} cell", f"{seconds:.1f} s ({note})"))
    del model  # its modules keep collecting attentions: a fresh model for ours
    gc.collect()
    torch.cuda.empty_cache()
    engine = attached(random_model())
    for batch_size in (BATCH_SIZE, 1):
        ours, tokens = grid_seconds(engine, batch_size)
        rows.append(
            (
                f"grid, here, all 16 cells, batch of {batch_size}",
                f"{ours:.1f} s, {tokens} new tokens, {tokens / ours:.0f} a second; "
                f"{theirs / ours:.1f} times less than eight cells of each, one by one",
            )
        )
    return rows


def decode_rows(engine: Engine, tokens: list[int], speed: float, rows: list[Row]) -> float:
    """Add rows on decoding one sequence and a batch; milliseconds of a step with one."""
    times = {}
    for batch_size, slots in ((1, CACHED), (1, BATCH_SLOTS), (BATCH_SIZE, BATCH_SLOTS)):
        ms = step_ms(engine, tokens[:slots], batch_size)
        times[batch_size, slots] = ms
        least = (weight_bytes(engine) + batch_size * slots * TOKEN_BYTES) / speed * 1e3
        rows.append(
            (
                f"decode, batch of {batch_size}, {slots} cached each, scores on",
                f"{batch_size * 1e3 / ms:.0f} tok/s, {1e3 / ms:.0f} a sequence, "
                f"{least / ms:.0%} of the roofline",
            )
        )
    gain = BATCH_SIZE * times[1, BATCH_SLOTS] / times[BATCH_SIZE, BATCH_SLOTS]
    rows.append((f"batch of {BATCH_SIZE} against one", f"{gain:.1f}x"))
    return times[1, CACHED]


def step_ms(engine: Engine, tokens: list[int], batch_size: int) -> float:
    """Milliseconds of one step of a CUDA graph with scores on."""
    key = ("benchmark", batch_size)
    if key not in engine.graphs:
        engine.graphs[key] = GraphSteps(engine, batch_size, sampled=False, max_new_tokens=512)
    steps = engine.graphs[key]
    for index in range(batch_size):
        cache = engine.new_cache("rerotated", collect_scores=True)
        engine.feed(cache, tokens)
        baseline = Evictor(build_policy("baseline", {}), EvictionSchedule(Trigger.TURN, None))
        steps.admit(
            index, SequenceState(cache, baseline, Sampling(), 500, uniform_draws(500, 0), token=17)
        )
    for _ in range(4):
        steps.step()
    ms = median_ms(lambda: [steps.step() for _ in range(STEPS)], 5) / STEPS
    for index in range(batch_size):
        steps.release(index)
    return ms


def evictions() -> list[Row]:
    """Milliseconds to move the survivors in all layers, and of the whole eviction."""
    engine = attached(random_model())
    tokens = torch.randint(10, 128000, (PROMPT,)).tolist()
    cache = engine.new_cache("rerotated", collect_scores=True)
    engine.feed(cache, tokens)
    rows = []
    for kind in ("streaming_llm", "attention_top", "h2o"):
        moving, whole = [], []
        for _ in range(6):
            copy = cache.fork()
            copy.reserve(copy.size)
            evictor = Evictor(build_policy(kind, {}), EvictionSchedule(Trigger.STEP, PROMPT, 2000))
            torch.cuda.synchronize()
            start = time.perf_counter()
            eviction = evictor.before_step(copy)
            torch.cuda.synchronize()
            whole.append(time.perf_counter() - start)
            assert eviction is not None and copy.size == 2000
            moving.append(eviction.eviction_s)
        rows.append(
            (
                f"eviction of {PROMPT} to 2000, {kind}",
                f"{median(moving[1:]) * 1e3:.1f} ms to move, {median(whole[1:]) * 1e3:.1f} in all",
            )
        )
    return rows


def attached(model: Any) -> Engine:
    engine = engine_around(model)
    assert engine.token_bytes == TOKEN_BYTES
    return engine


def feed_managed(engine: Engine, tokens: list[int], scored: bool) -> torch.Tensor:
    return engine.feed(engine.new_cache("stale", collect_scores=scored), tokens)


def feed_plain(model: Any, ids: torch.Tensor, cache: Any) -> torch.Tensor:
    hidden: torch.Tensor = model.model(ids, past_key_values=cache, use_cache=True)[0]
    return hidden


def plain_decode(model: Any, ids: torch.Tensor) -> float:
    """Milliseconds a token by the shortest loop over `forward`."""
    cache = DynamicCache()
    if model.config._attn_implementation == "eager":
        for part in ids[:, :CACHED].split(512, dim=1):  # its attention matrix has to fit
            feed_plain(model, part, cache)
    else:
        feed_plain(model, ids[:, :CACHED], cache)
    token = ids[:, :1]

    def step() -> None:
        nonlocal token
        out = model(token, past_key_values=cache, use_cache=True)
        token = out.logits[:, -1].argmax(-1, keepdim=True)

    step()
    return median_ms(lambda: [step() for _ in range(STEPS)], 3) / STEPS


def prefill(run: Callable[[], Any]) -> tuple[float, int]:
    """Milliseconds, and the most bytes held at once beyond those held before."""
    run()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    held = torch.cuda.max_memory_allocated() - before
    return median_ms(run, 5), held


if __name__ == "__main__":
    main()
