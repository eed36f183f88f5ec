"""Decode steps in plain PyTorch: for a CPU, and the reference for the CUDA graph."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from kvfidelity.cache.packed import packed
from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.sampling import sample_tokens
from kvfidelity.decoding.sequence import SequenceState
from kvfidelity.metrics.likelihood import token_nll


@dataclass
class _Entry:
    sequence: SequenceState
    token: int
    alive: bool = True
    fed: int = 0
    ids: list[int] = field(default_factory=list)
    nll: list[float] = field(default_factory=list)


class EagerSteps:
    """See `decoding.sequence.Steps`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._entries: dict[int, _Entry] = {}

    def admit(self, index: int, sequence: SequenceState) -> None:
        if index not in self._entries:
            self._entries[index] = _Entry(sequence, sequence.token)

    def release(self, index: int) -> None:
        self._entries.pop(index, None)

    def step(self) -> float:
        entries = [entry for entry in self._entries.values() if entry.alive]
        engine, device = self._engine, self._engine.device
        tokens = torch.tensor([[entry.token for entry in entries]], device=device)
        caches = [entry.sequence.cache for entry in entries]
        logits = engine.logits(engine.forward(tokens, packed(caches, [1] * len(caches)))[0])
        settings = torch.tensor(
            [
                (
                    entry.sequence.sampling.temperature,
                    entry.sequence.sampling.top_p,
                    entry.sequence.uniform[min(entry.fed + 1, entry.sequence.max_new_tokens - 1)],
                )
                for entry in entries
            ],
            dtype=torch.float64,
            device=device,
        )
        greedy = all(entry.sequence.sampling.greedy for entry in entries)
        chosen = logits.argmax(-1) if greedy else sample_tokens(logits, *settings.unbind(1))
        nll = token_nll(logits, chosen).tolist()
        for entry, token, nats in zip(entries, chosen.tolist(), nll, strict=True):
            entry.fed += 1
            entry.token = token
            entry.alive = token not in engine.segmenter.stop_ids
            entry.ids.append(token)
            entry.nll.append(nats)
        return self.record_time()

    def ended(self) -> Sequence[int]:
        return [index for index, entry in self._entries.items() if not entry.alive]

    def sync(self, index: int) -> tuple[int, bool]:
        return self._entries[index].fed, self._entries[index].alive

    def chosen(self, index: int, count: int) -> tuple[list[int], list[float]]:
        entry = self._entries[index]
        return entry.ids[:count], entry.nll[:count]

    def record_time(self) -> float:
        return time.perf_counter()

    def seconds(self, start: float, stop: float) -> float:
        return stop - start
