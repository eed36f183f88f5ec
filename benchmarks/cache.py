"""What the managed cache costs on a CPU, side by side with `DynamicCache`.

    python benchmarks/cache.py resources/models/smollm2-135m

Two runs, each the median of several, interleaved so that noise of the machine affects both alike:
teacher-forced feeding of 4,000 tokens in turns, and decoding 256 tokens with 4,000 cached.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from kvfidelity.cache.attach import attach, new_cache
from kvfidelity.cache.hooks import cache_argument

TOKENS, DECODED = 4000, 256
TURNS = [180, 420] * 6 + [400]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="directory of a converted model")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    managed = attach(AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32))
    ids = torch.randint(10, plain.config.vocab_size, (1, TOKENS + DECODED))

    makers: dict[str, tuple[Any, Callable[[], Any]]] = {
        "DynamicCache": (plain, lambda: DynamicCache(config=plain.config)),
        "managed": (managed, lambda: new_cache(managed)),
        "managed, scores": (managed, lambda: new_cache(managed, collect_scores=True)),
    }
    feed: dict[str, list[float]] = {name: [] for name in makers}
    decode: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(options.repeats):
        for name, (model, make) in makers.items():
            cache = make()
            feed[name].append(seconds(model, cache, ids[:, :TOKENS].split(TURNS, dim=1)))
            decode[name].append(seconds(model, cache, ids[:, TOKENS:].split(1, dim=1)))
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.repeats} repeats"
    )
    print(f"{'cache':18} {'feed 4,000':>12} {'ratio':>6} {'decode 256':>12} {'ratio':>6}")
    for name in makers:
        fed, decoded = statistics.median(feed[name]), statistics.median(decode[name])
        fed_ratio = fed / statistics.median(feed["DynamicCache"])
        decoded_ratio = decoded / statistics.median(decode["DynamicCache"])
        print(f"{name:18} {fed:10.2f} s {fed_ratio:6.2f} {decoded:10.2f} s {decoded_ratio:6.2f}")


@torch.inference_mode()
def seconds(model: Any, cache: Any, parts: Any) -> float:
    """Seconds to feed the parts, without the output layer."""
    decoder = model.get_decoder()
    began = time.perf_counter()
    for part in parts:
        decoder(part, use_cache=True, **{cache_argument(decoder): cache})
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
