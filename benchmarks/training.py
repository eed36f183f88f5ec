"""Seconds and peak memory of a training's steps on one dialogue, see docs/finetuning.md.

    python benchmarks/training.py resources/models/smollm2-135m --device cpu --tokens 4990

The dialogue's tokens are random: neither time nor memory depends on what they are. With a CPU the
memory is the process's, from before the first step to its peak.
"""

from __future__ import annotations

import argparse
import resource
import time
from itertools import pairwise
from pathlib import Path
from random import Random

import torch

from kvfidelity.finetuning.examples import Example
from kvfidelity.finetuning.recipe import Recipe
from kvfidelity.finetuning.train import Trainer
from kvfidelity.models.load import load_model
from kvfidelity.records.arms import ARMS

TURNS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="folder of a fetched model")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--tokens", type=int, default=4990)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--arm", choices=list(ARMS), default="stale")
    options = parser.parse_args()
    if options.device == "cuda":
        torch.set_float32_matmul_precision("high")  # as in the rule's script
    model, _ = load_model(options.model, "float32", options.device)
    recipe = Recipe(options.arm, 0, options.steps, 1, 16, 3e-4, "kl", (0.25, 0.75))
    vocabulary = model.config.vocab_size
    trainer = Trainer(model, recipe, [dialogue(options.tokens, vocabulary)])
    before = gigabytes(options.device)
    for step in range(options.steps):
        start = time.perf_counter()
        trainer._step(step)
        print(f"step {step + 1}: {time.perf_counter() - start:.2f} s")
    print(
        f"{options.tokens} tokens: {before:.1f} GB before, {gigabytes(options.device):.1f} GB peak"
    )


def dialogue(tokens: int, vocabulary: int) -> Example:
    """Turns of equal length, of which the second half is a reply."""
    ids = tuple(Random(0).choices(range(vocabulary), k=tokens))
    edges = [tokens * n // TURNS for n in range(TURNS + 1)]
    replies = tuple(((start + stop) // 2, stop) for start, stop in pairwise(edges))
    return Example(ids, tuple(edges[1:-1]), replies)


def gigabytes(device: str) -> float:
    """Most memory so far: of the process, or of PyTorch's tensors on the GPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
