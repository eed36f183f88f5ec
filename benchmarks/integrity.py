"""What positional integrity costs where kv heads hold different slots: processor milliseconds.

    python benchmarks/integrity.py

No model is needed: slot tables after an eviction to 2,000 slots per kv head on average, 5,600
tokens seen. One thread, the least of 7; integrity at a moment, and over a reply of 200 tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from kvfidelity.cache.positions import PositionMode
from kvfidelity.cache.ragged import RaggedKeepSet
from kvfidelity.cache.slots import SlotTable
from kvfidelity.metrics.positions import integrity
from kvfidelity.metrics.reply_positions import integrity_over_reply

SEEN, KEPT, REPLY, WINDOW, TIMES = 5600, 2000, 200, 8192, 7
SHAPES = {"30 layers of 3": (30, 3), "32 layers of 8": (32, 8)}


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    frequencies = 10000.0 ** -(torch.arange(32) / 32)
    for name, (layers, heads) in SHAPES.items():
        for kind in ("ragged", "of equal size"):
            table = evicted(layers, heads, ragged=kind == "ragged")
            end = table.tokens_seen + REPLY
            moment = least(partial(integrity, table, frequencies, WINDOW))
            reply = least(partial(integrity_over_reply, table, [], end, frequencies, WINDOW))
            print(f"| {name}, {kind} | {moment:.0f} | {reply:.0f} |")


def evicted(layers: int, heads: int, *, ragged: bool) -> SlotTable:
    """A table in stale positions of which each head has kept random slots."""
    table = SlotTable(PositionMode.STALE)
    table.append(SEEN)
    order = torch.rand(layers, heads, SEEN).argsort(-1)
    if not ragged:
        table.keep(order[..., :KEPT].sort(-1).values)
        return table
    more = 400 * (torch.arange(layers * heads).reshape(layers, heads) % 2) - 200
    counts = KEPT + more
    rows = zip(order.flatten(0, 1), counts.flatten().tolist(), strict=True)
    slots = torch.cat([row[:count].sort().values for row, count in rows])
    table.keep(RaggedKeepSet(slots, counts))
    return table


def least(work: Callable[[], object]) -> float:
    """Least processor milliseconds of a call."""
    found = []
    for _ in range(TIMES):
        start = time.process_time()
        work()
        found.append(1000 * (time.process_time() - start))
    return min(found)


if __name__ == "__main__":
    main()
