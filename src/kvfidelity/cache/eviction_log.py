"""What evictions did, and how to replay them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
from torch import Tensor

from kvfidelity.cache.healing.base import Healed
from kvfidelity.cache.positions import PositionMode
from kvfidelity.cache.ragged import RaggedKeepSet
from kvfidelity.cache.slots import SlotTable, as_grid


@dataclass(frozen=True)
class Disruption:
    """How much an eviction changes what attention computes; see `metrics.disruption`.

    All are fp64 [L, H] on the CPU. tokens, positions: relative errors of a query head's output, by
    the slots that are gone and by the positions of those that stay. future: share of attention on
    slots whose position is not before the next token's.
    """

    tokens: Tensor
    positions: Tensor
    future: Tensor

    def means(self) -> tuple[float, float, float]:
        """Each as the mean over layers and query heads."""
        tokens, positions, future = (
            float(values.mean()) for values in (self.tokens, self.positions, self.future)
        )
        return tokens, positions, future

    def of_group(self, name: str, groups: int) -> Disruption:
        """Its part for a keep set that `groups` names, of a cache with that number of kv heads."""
        if name == "shared":
            return self
        _, layer, *head = name.split(":")
        rows = slice(int(layer), int(layer) + 1)
        ratio = self.tokens.shape[1] // groups
        columns = slice(int(head[0]) * ratio, (int(head[0]) + 1) * ratio) if head else slice(None)
        return Disruption(*(getattr(self, one.name)[rows, columns] for one in fields(self)))


@dataclass(frozen=True)
class Eviction:
    """One eviction: when, and which slots survived.

    slots_before: per kv head, on average if heads hold different numbers of slots.
    kept: int64 [L', G', k], or ragged: slots before the eviction that survived.
    scoring_s, eviction_s: seconds to rank the slots, and to move the survivors.
    attention_share: the evicted slots' share of the latest forward's attention; None without
    scores. healing: kind of what was done about the gap; healed: the slots and bytes that this
    took. ghosts_before, ghosts_after: slots that stand for tokens that are gone, per kv head.
    healing_s: seconds of the healing. disruption: None if it is not measured.
    ranking_bytes: most bytes that ranking held at once, beyond the cache and what it collects for
    the policy; None if it was not measured. held_bytes: what the cache and the model keep for the
    policy between evictions: scores, queries, calibration.
    """

    turn: int
    step: int
    tokens_seen: int
    slots_before: int
    kept: Tensor | RaggedKeepSet
    scoring_s: float
    eviction_s: float
    attention_share: float | None = None
    healing: str = "none"
    healed: Healed = Healed()  # noqa: RUF009 - frozen
    ghosts_before: float = 0.0
    ghosts_after: float = 0.0
    healing_s: float = 0.0
    disruption: Disruption | None = None
    ranking_bytes: int | None = None
    held_bytes: int | None = None

    @property
    def slots_after_healing(self) -> int:
        """`slots_after` with the tokens that the healing fed."""
        return self.slots_after + self.healed.tokens

    @property
    def tokens_evicted(self) -> int:
        """Tokens of the conversation that are gone, per kv head: a ghost slot holds none, neither
        one that is new nor one that is evicted."""
        ghosts = self.ghosts_after - self.ghosts_before
        return round(self.slots_before - self.slots_after + ghosts)

    @property
    def slots_after(self) -> int:
        """Per kv head, on average if heads keep different numbers of slots."""
        if isinstance(self.kept, RaggedKeepSet):
            return self.kept.per_head
        return self.kept.shape[-1]


def replay(evictions: Iterable[Eviction], mode: PositionMode, tokens_seen: int) -> SlotTable:
    """Slots and positions as they were when `tokens_seen` tokens had been fed.

    Evictions that happened at exactly that moment are included.
    """
    slots = SlotTable(mode)
    for eviction in evictions:
        if eviction.tokens_seen > tokens_seen:
            break
        advance(slots, eviction)
    slots.append(tokens_seen - slots.tokens_seen)
    return slots


def advance(slots: SlotTable, eviction: Eviction) -> None:
    """Feed `slots` up to the moment of `eviction`, and evict."""
    slots.append(eviction.tokens_seen - slots.tokens_seen)
    slots.keep(eviction.kept)


def spans(numbers: Tensor) -> list[tuple[int, int]]:
    """Sorted int64 [k] as half-open spans: [3, 4, 5, 9] -> [(3, 6), (9, 10)]."""
    _, starts, stops = span_edges(numbers)
    return list(zip(starts.tolist(), stops.tolist(), strict=True))


def span_edges(rows: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spans of each row of int64 [..., k], one row after another: their number in each row, and
    where they start and stop."""
    values = rows.reshape(-1, rows.shape[-1]).cpu().numpy()
    starts, stops = np.ones(values.shape, dtype=bool), np.ones(values.shape, dtype=bool)
    starts[:, 1:] = stops[:, :-1] = np.diff(values) != 1
    return starts.sum(1), values[starts], values[stops] + 1


def group_names(kept: Tensor) -> list[str]:
    """The names of the distinct keep sets of [L', G', k]: see `groups`."""
    layers, heads, _ = kept.shape
    if layers == 1 and heads == 1:
        return ["shared"]
    if heads == 1:
        return [f"layer:{layer}" for layer in range(layers)]
    return [f"head:{layer}:{head}" for layer in range(layers) for head in range(heads)]


def groups(kept: Tensor | RaggedKeepSet) -> list[tuple[str, Tensor]]:
    """The distinct keep sets of [L', G', k] by name: "shared", "layer:3" or "head:3:1"."""
    if isinstance(kept, RaggedKeepSet):
        return [
            (f"head:{layer}:{head}", slots)
            for layer, row in enumerate(kept.rows())
            for head, slots in enumerate(row)
        ]
    kept = as_grid(kept)
    return list(zip(group_names(kept), kept.flatten(0, 1), strict=True))
