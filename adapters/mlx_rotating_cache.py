# /// script
# requires-python = ">=3.11"
# dependencies = ["mlx[cpu]", "mlx-lm"]
# ///
"""Feeds a probe set's conversations to MLX LM with its RotatingKVCache, and writes runs.

    python adapters/mlx_rotating_cache.py MODEL probes.jsonl runs.jsonl

The cache chooses the keep set: once it is full, each new token takes the place of the oldest one
after the first `keep`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import mlx.core as mx
from mlx_lm.models.cache import KVCache, RotatingKVCache
from mlx_lm.models.llama import Model, ModelArgs

SINKS = 4


def load(folder: Path) -> Model:
    """A Llama in fp32."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.setdefault("rope_theta", config.get("rope_parameters", {}).get("rope_theta", 10_000))
    model = Model(ModelArgs.from_dict(config))
    weights = model.sanitize(mx.load(str(folder / "model.safetensors")))
    model.load_weights([(name, value.astype(mx.float32)) for name, value in weights.items()])
    mx.eval(model.parameters())
    return model


def logprobs(model: Model, caches: list, tokens: list[int], first: int) -> list[float]:
    """Log-probability of each token from `first` on, in nats; those from there are fed one by one,
    the others in one forward."""
    found, fed = [], 0
    for stop in range(first - 1, len(tokens)):
        logits = model(mx.array([tokens[fed:stop]]), cache=caches)[0, -1]
        row = logits - mx.logsumexp(logits)
        if fed:  # the first forward predicts a token that comes before the eviction
            found.append(row[tokens[stop]].item())
        fed = stop
    return found


def evictions(size: int, first: int, count: int) -> list[dict]:
    """What a rotating cache of `size` tokens keeps before each token is fed."""
    last = size - 1 - SINKS
    return [
        {"after": t, "keep": [[[0, SINKS], [t - last, t]]]} for t in range(first - 1, count - 1)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("probes", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--conversations", nargs="+", default=["short"])
    options = parser.parse_args()
    _, *probes = map(json.loads, options.probes.read_text(encoding="utf-8").splitlines())
    model = load(options.model)
    with options.runs.open("w", encoding="utf-8") as file:
        for probe in probes:
            name, tokens, first = probe["conversation"], probe["tokens"], probe["scored"][0]
            if probe["evictions"] or name not in options.conversations:
                continue
            size = first - 1
            layers = len(model.layers)
            for evicts in (False, True):
                caches = [
                    RotatingKVCache(size, SINKS) if evicts else KVCache() for _ in range(layers)
                ]
                run = {
                    "probe": f"{name}_{'evicted' if evicts else 'no_eviction'}",
                    "conversation": name,
                    "tokens": tokens,
                    "scored": [first, len(tokens)],
                    "evictions": evictions(size, first, len(tokens)) if evicts else [],
                    "logprob": logprobs(model, caches, tokens, first),
                }
                file.write(json.dumps(run) + "\n")


if __name__ == "__main__":
    main()
