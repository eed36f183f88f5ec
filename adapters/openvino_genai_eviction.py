# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy", "openvino-genai>=2026.4"]
# ///
"""Lets OpenVINO GenAI generate with cache eviction, and writes what it generated as runs.

    optimum-cli export openvino --model MODEL --task text-generation-with-past \\
        --weight-format fp32 openvino_model      # in an environment with optimum-intel
    python adapters/openvino_genai_eviction.py openvino_model probes.jsonl runs.jsonl --rotate

The engine evicts blocks of 32 tokens by itself: it keeps a start area, a recent area and, between
them, the blocks that received most attention, in each layer its own. It does not report which. So a
run names the documented rule, and the check plays it with the scores of the core. Each run ends
before a second eviction.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai as genai

BLOCK = 32
START, RECENT, MOST = BLOCK, 2 * BLOCK, 4 * BLOCK
#: Tokens over whose scores OpenVINO GenAI takes a maximum.
POOL = 7
#: Tokens of a prompt and tokens to generate: the cache is full again 23 tokens after the eviction.
PROMPT, NEW = 200, 24


def pipeline(model: Path, evict: bool, rotate: bool) -> genai.ContinuousBatchingPipeline:
    """The engine in fp32 on a CPU."""
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 1
    scheduler.max_num_batched_tokens = 8192
    scheduler.dynamic_split_fuse = False
    scheduler.enable_prefix_caching = False
    if evict:
        scheduler.use_cache_eviction = True
        scheduler.cache_eviction_config = genai.CacheEvictionConfig(
            START,
            RECENT,
            MOST,
            genai.AggregationMode.SUM,
            apply_rotation=rotate,
            snapkv_window_size=0,
        )
    precision = {"KV_CACHE_PRECISION": "f32", "INFERENCE_PRECISION_HINT": "f32"}
    return genai.ContinuousBatchingPipeline(model, scheduler, "CPU", precision)


def generate(engine: genai.ContinuousBatchingPipeline, prompt: list[int], count: int) -> tuple:
    """Greedy tokens and their log-probabilities."""
    config = genai.GenerationConfig()
    config.max_new_tokens, config.logprobs = count, 1
    config.ignore_eos, config.apply_chat_template = True, False
    handle = engine.add_request(0, ov.Tensor(np.array([prompt], dtype=np.int64)), config)
    tokens: list[int] = []
    logprobs: list[float] = []
    while engine.has_non_finished_requests():
        engine.step()
        while handle.can_read():
            for output in handle.read().values():
                tokens += output.generated_ids
                logprobs += output.generated_log_probs
    return tokens, logprobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("probes", type=Path, help="its longest conversation is cut into prompts")
    parser.add_argument("runs", type=Path)
    parser.add_argument("--rotate", action="store_true", help="apply_rotation")
    parser.add_argument("--prompts", type=int, default=6)
    options = parser.parse_args()
    _, *probes = map(json.loads, options.probes.read_text(encoding="utf-8").splitlines())
    text = max((probe["tokens"] for probe in probes), key=len)
    with options.runs.open("w", encoding="utf-8") as file:
        for evict in (False, True):
            engine = pipeline(options.model, evict, options.rotate)
            for number in range(options.prompts):
                prompt = text[PROMPT * number :][:PROMPT]
                new, logprobs = generate(engine, prompt, NEW)
                # The first new token comes from the prompt; the second is fed before the eviction.
                after = PROMPT + 1
                run = {
                    "probe": f"{number}_{'evicted' if evict else 'no_eviction'}",
                    "tokens": prompt + new,
                    "scored": [after + 1, PROMPT + NEW],
                    "logprob": logprobs[2:],
                }
                if evict:
                    rule = {"name": "attention_blocks", "prompt": PROMPT, "after": after}
                    areas = {"block": BLOCK, "start": START, "recent": RECENT, "most": MOST}
                    run["rule"] = rule | areas | {"pool": POOL}
                file.write(json.dumps(run) + "\n")


if __name__ == "__main__":
    main()
