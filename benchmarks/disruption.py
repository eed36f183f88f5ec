"""What it costs to measure the disruption of one eviction.

    python benchmarks/disruption.py [--device cuda]

On a model of SmolLM2-135M's shape with random weights, 2,000 of 5,600 tokens are kept (and
700 of 1,400) under stale positions, so that both rotations are computed. The medians of several
measurements, next to the seconds that feeding the same tokens took.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kvfidelity import new_cache
from kvfidelity.metrics.disruption import disruption

SIZES = ((1400, 700), (5600, 2000))
WINDOWS = (8, 32, 128)
CONFIG = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device(options.device)
    model = LlamaForCausalLM(CONFIG).eval().to(device)
    print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads")
    print(f"{'cached':>7} {'kept':>6} {'queries':>8} {'measuring':>11} {'feeding':>9}")
    for cached, kept in SIZES:
        cache = new_cache(model, positions="stale", query_window=max(WINDOWS))
        ids = torch.randint(10, CONFIG.vocab_size, (1, cached), device=device)
        began = now(device)
        with torch.inference_mode():
            for part in ids.split(512, dim=1):
                model.get_decoder()(part, past_key_values=cache, use_cache=True)
        fed_s = now(device) - began
        survivors = torch.cat([torch.arange(4), torch.arange(cached - kept + 4, cached)])
        for window in WINDOWS:
            seconds = []
            for _ in range(options.repeats):
                began = now(device)
                disruption(cache, survivors, window)
                seconds.append(now(device) - began)
            measured_s = statistics.median(seconds)
            print(f"{cached:7} {kept:6} {window:8} {measured_s:9.4f} s {fed_s:7.2f} s")


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
