# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "transformers>=5"]
# ///
"""Answers a probe set with transformers' DynamicCache, evicted by hand.

    python adapters/transformers_dynamic_cache.py MODEL probes.jsonl answers.jsonl

As arXiv 2511.04686 did it: rows are dropped from the cached tensors, and the next forward is called
without position_ids, so that transformers counts on from the cached length. With
`--position-ids seen` the forward is told the number of tokens seen.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DynamicCache


def evict(cache: DynamicCache, held: list[list[int]], keep: list[list[list[int]]]) -> list:
    """Drop every row whose token is not in `keep`; `held` has the token of each row, by head."""
    heads = cache.layers[0].keys.shape[1]
    keep = keep * heads if len(keep) == 1 else keep
    kept = [{t for start, stop in ranges for t in range(start, stop)} for ranges in keep]
    rows = [[i for i, t in enumerate(held[h]) if t in kept[h]] for h in range(heads)]
    index = torch.tensor(rows)[None, :, :, None]
    for layer in cache.layers:
        layer.keys = layer.keys.gather(2, index.expand(-1, -1, -1, layer.keys.shape[-1]))
        layer.values = layer.values.gather(2, index.expand(-1, -1, -1, layer.values.shape[-1]))
    return [[held[h][i] for i in rows[h]] for h in range(heads)]


@torch.inference_mode()
def answer(model: torch.nn.Module, probe: dict, seen: bool) -> list[float]:
    """Log-probability of each scored token, in nats."""
    tokens, (start, stop) = torch.tensor([probe["tokens"]]), probe["scored"]
    cache, logprobs, fed = DynamicCache(), [], 0
    held: list[list[int]] = [[] for _ in range(model.config.num_key_value_heads)]
    for eviction in [*probe["evictions"], {"after": stop - 1, "keep": None}]:
        part = tokens[:, fed : eviction["after"]]
        if part.shape[1]:
            positions = torch.arange(fed, eviction["after"])[None] if seen else None
            # Rows of logits that predict a scored token.
            rows = [max(start - 1 - fed, 0), part.shape[1]]
            out = model(
                part,
                past_key_values=cache,
                position_ids=positions,
                logits_to_keep=max(rows[1] - rows[0], 1),
            )
            if rows[0] < rows[1]:
                targets = tokens[0, fed + rows[0] + 1 : fed + rows[1] + 1]
                found = out.logits[0].float().log_softmax(-1)
                logprobs += found.gather(-1, targets[:, None])[:, 0].tolist()
            held = [[*of_head, *range(fed, eviction["after"])] for of_head in held]
            fed = eviction["after"]
        if eviction["keep"]:
            held = evict(cache, held, eviction["keep"])
    return logprobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("probes", type=Path)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--position-ids", choices=("none", "seen"), default="none")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--longest", type=int, default=10**9, help="skip probes of more tokens")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).eval()
    _, *probes = map(json.loads, options.probes.read_text(encoding="utf-8").splitlines())
    with options.answers.open("w", encoding="utf-8") as file:
        for probe in probes:
            if len(probe["tokens"]) > options.longest:
                continue
            logprobs = answer(model, probe, options.position_ids == "seen")
            file.write(json.dumps({"probe": probe["probe"], "logprob": logprobs}) + "\n")


if __name__ == "__main__":
    main()
