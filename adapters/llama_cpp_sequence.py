# /// script
# requires-python = ">=3.11"
# dependencies = ["llama-cpp-python>=0.3.30", "numpy"]
# ///
"""Answers a probe set with llama.cpp, through its Python binding.

    python adapters/llama_cpp_sequence.py model.gguf probes.jsonl answers.jsonl --shift

Evicted ranges are removed with `llama_memory_seq_rm`. With `--shift` the ranges after them are
moved down with `llama_memory_seq_add`, as llama.cpp's context shift does; without it the next
position is the number of tokens seen. llama.cpp keeps the same tokens in all heads, so probes with
keep sets per head are not answered.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import llama_cpp
import numpy as np


class RefusedError(Exception):
    """llama.cpp takes no batch whose first position does not follow the last cached one, as after
    an eviction of the latest tokens without `--shift`."""


class Sequence:
    """One sequence in a llama.cpp context."""

    def __init__(self, model: object, context: int, threads: int, cache: str) -> None:
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = context
        parameters.n_ubatch = 256
        parameters.n_threads = parameters.n_threads_batch = threads
        kind = {"f16": llama_cpp.GGML_TYPE_F16, "f32": llama_cpp.GGML_TYPE_F32}[cache]
        parameters.type_k = parameters.type_v = kind
        self.context = llama_cpp.llama_init_from_model(model, parameters)
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.words = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self.held: list[int] = []  # the token index of each cached slot
        self.position: list[int] = []
        self.next = 0

    def feed(self, tokens: list[int], first: int, targets: list[int | None]) -> list[float]:
        """Decode tokens from token index `first` on; log-probability of each target that is asked
        for, in nats."""
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, self.next + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = targets[i] is not None
        status = llama_cpp.llama_decode(self.context, batch)
        if status:
            llama_cpp.llama_batch_free(batch)
            raise RefusedError(f"llama_decode returns {status}")
        self.held += range(first, first + len(tokens))
        self.position += range(self.next, self.next + len(tokens))
        self.next += len(tokens)
        found = []
        for i, target in enumerate(targets):
            if target is not None:
                row = llama_cpp.llama_get_logits_ith(self.context, i)
                logits = np.ctypeslib.as_array(row, (self.words,)).astype(np.float64)
                top = logits.max()
                found.append(float(logits[target] - top - np.log(np.exp(logits - top).sum())))
        llama_cpp.llama_batch_free(batch)
        return found

    def evict(self, ranges: list[list[int]], shift: bool) -> None:
        """Keep the slots whose token index lies in one of the half-open ranges."""
        kept = [any(a <= token < b for a, b in ranges) for token in self.held]
        runs = np.flatnonzero(np.diff(np.r_[False, kept, False].astype(int))).reshape(-1, 2)
        ends = [0, *runs.ravel().tolist(), len(kept)]
        for start, stop in zip(ends[::2], ends[1::2], strict=True):  # the gaps
            if start < stop:
                a, b = self.position[start], self.position[stop - 1] + 1
                llama_cpp.llama_memory_seq_rm(self.memory, 0, a, b)
        if shift:
            new = 0
            for start, stop in runs.tolist():  # first to last, so that none overlap
                a, b = self.position[start], self.position[stop - 1] + 1
                assert b - a == stop - start
                if a != new:
                    llama_cpp.llama_memory_seq_add(self.memory, 0, a, b, new - a)
                new += stop - start
            self.next = new
        positions = [p for p, keep in zip(self.position, kept, strict=True) if keep]
        self.position = list(range(len(positions))) if shift else positions
        self.held = [t for t, keep in zip(self.held, kept, strict=True) if keep]

    def close(self) -> None:
        """Free the context."""
        llama_cpp.llama_free(self.context)


def answer(sequence: Sequence, probe: dict, shift: bool) -> list[float]:
    """Log-probability of each scored token, in nats."""
    tokens, (start, stop) = probe["tokens"], probe["scored"]
    logprobs, fed = [], 0
    for eviction in [*probe["evictions"], {"after": stop - 1, "keep": None}]:
        after = eviction["after"]
        if fed < after:
            targets = [tokens[i + 1] if start <= i + 1 < stop else None for i in range(fed, after)]
            targets[-1] = tokens[after]  # at least one row of logits
            found = sequence.feed(tokens[fed:after], fed, targets)
            asked = sum(start <= i + 1 < stop for i in range(fed, after))
            logprobs += found[:asked]
            fed = after
        if eviction["keep"]:
            sequence.evict(eviction["keep"][0], shift)
    return logprobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("probes", type=Path)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--shift", action="store_true")
    parser.add_argument("--cache", choices=("f16", "f32"), default="f16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--longest", type=int, default=10**9, help="skip probes of more tokens")
    options = parser.parse_args()
    model = llama_cpp.llama_model_load_from_file(
        str(options.model).encode(), llama_cpp.llama_model_default_params()
    )
    _, *probes = map(json.loads, options.probes.read_text(encoding="utf-8").splitlines())
    with options.answers.open("w", encoding="utf-8") as file:
        for probe in probes:
            per_head = any(len(eviction["keep"]) > 1 for eviction in probe["evictions"])
            if per_head or len(probe["tokens"]) > options.longest:
                continue
            size = 256 * -(-len(probe["tokens"]) // 256)
            sequence = Sequence(model, size, options.threads, options.cache)
            try:
                logprobs = answer(sequence, probe, options.shift)
            except RefusedError as error:
                print(f"{probe['probe']} is left out: {error}")
                continue
            finally:
                sequence.close()
            file.write(json.dumps({"probe": probe["probe"], "logprob": logprobs}) + "\n")
    llama_cpp.llama_model_free(model)


if __name__ == "__main__":
    main()
