"""Keep sets of another size in each kv head, and how a budget is shared out to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

#: Halvings of the interval that holds the scale of the shares: more than float64 can tell apart.
HALVINGS = 200


@dataclass(frozen=True)
class RaggedKeepSet:
    """Which slots survive, with a number of slots of its own for each layer and kv head.

    slots: int64 [total] on any device: the first kv head's slots, then the next one's, layer by
        layer; sorted within each head.
    counts: int64 [L, G] on the CPU: how many slots each head keeps.

    Raises:
        ValueError: the counts are not those of the slots, or not a whole number per head on
            average: the total of a budget of b slots is b * L * G.
    """

    slots: Tensor
    counts: Tensor

    def __post_init__(self) -> None:
        total, heads = int(self.counts.sum()), self.counts.numel()
        if self.counts.dim() != 2 or self.slots.shape != (total,) or bool((self.counts < 0).any()):
            raise ValueError(
                f"a ragged keep set has {list(self.slots.shape)} slots and counts "
                f"{list(self.counts.shape)} of {total}; they must be [total] and [L, G]"
            )
        if total % heads:
            raise ValueError(
                f"a ragged keep set must hold a whole number of slots per kv head on average, and "
                f"{total} slots are kept in {heads} heads"
            )

    @classmethod
    def of_rows(cls, rows: Sequence[Sequence[Tensor]]) -> RaggedKeepSet:
        """Of the slots of each layer's kv heads, int64 [k] each."""
        flat = [row.cpu() for layer in rows for row in layer]
        counts = torch.tensor([[row.numel() for row in layer] for layer in rows])
        return cls(torch.cat(flat), counts)

    @classmethod
    def of_grid(cls, grid: Tensor) -> RaggedKeepSet:
        """Of a keep set of the same size in each head, int64 [L, G, k]."""
        counts = torch.full(grid.shape[:2], grid.shape[-1])
        return cls(grid.reshape(-1), counts)

    def to(self, device: torch.device | str) -> RaggedKeepSet:
        """The same with its slots on `device`."""
        return RaggedKeepSet(self.slots.to(device), self.counts)

    @property
    def per_head(self) -> int:
        """Slots per kv head on average, exactly."""
        return int(self.counts.sum()) // self.counts.numel()

    def rows(self) -> list[list[Tensor]]:
        """The slots of each layer's kv heads, int64 [k] each."""
        parts = iter(torch.split(self.slots, self.counts.flatten().tolist()))
        return [[next(parts) for _ in layer] for layer in self.counts]

    def row(self, layer: int, head: int) -> Tensor:
        """One head's slots, int64 [k]."""
        index = layer * self.counts.shape[1] + head
        start = int(self.counts.flatten()[:index].sum())
        return self.slots[start : start + int(self.counts[layer, head])]

    def columns(self, pad: Tensor) -> Tensor:
        """The same as a rectangle, int64 [L, G, k], aligned at the right, with -1 before.

        Args:
            pad: int64 [L, G] on the CPU, the first column of each head's slots: column = slot +
                pad.
        """
        device, width = self.slots.device, int(self.counts.max())
        ends = self.counts.flatten().cumsum(0).view_as(self.counts)
        numbers = torch.stack([width - self.counts, ends - self.counts, pad])
        firsts, starts, pads = upload(numbers, device)
        place = torch.arange(width, device=device) - firsts[..., None]
        index = (place + starts[..., None]).clamp(0, max(self.slots.numel() - 1, 0))
        # No boolean index: on a GPU it would wait for the device.
        return torch.where(place >= 0, self.slots[index] + pads[..., None], -1)

    def check(self, counts: Tensor) -> None:
        """Refuse slots that heads with `counts` slots, int64 [L, G] on the CPU, do not have.

        Raises:
            ValueError: another number of layers or heads; unsorted, repeated or unknown slots.
        """
        if counts.shape != self.counts.shape:
            raise ValueError(
                f"keep set is for {list(self.counts.shape)} layers and kv heads, and the cache has "
                f"{list(counts.shape)}"
            )
        device, total = self.slots.device, self.slots.numel()
        if not total:
            return
        kept, before = self.counts.flatten(), counts.flatten()
        sizes = upload(torch.stack([kept, before]), device)
        most = sizes[1].repeat_interleave(sizes[0], output_size=total)
        rising = self.slots.diff() > 0
        firsts = kept.cumsum(0)[:-1]
        firsts = firsts[(firsts > 0) & (firsts < total)]
        rising[upload(firsts, device) - 1] = True
        inside = ((self.slots >= 0) & (self.slots < most)).all()
        known, ascending = torch.stack([inside, rising.all()]).tolist()
        if not known:
            raise ValueError("keep set names slots outside those of its kv head")
        if not ascending:
            raise ValueError("keep set must be sorted and without repeats")


def upload(numbers: Tensor, device: torch.device) -> Tensor:
    """A few numbers of the CPU on `device`, without waiting for what it still computes."""
    return numbers.to(device, non_blocking=True)


def apportion(shares: Tensor, total: int, low: Tensor, high: Tensor) -> Tensor:
    """Share `total` slots out to kv heads: exactly that many, in proportion as far as bounds allow.

    Args:
        shares: weights of any scale, at least 0, [L, G].
        low, high: int64 [L, G], the fewest and the most slots of each head.

    Returns:
        int64 [L, G]. What is left after rounding down goes to the largest remainders, the earlier
        head of two equals.

    Raises:
        ValueError: the bounds allow no such total.
    """
    if not int(low.sum()) <= total <= int(high.sum()):
        raise ValueError(
            f"{total} slots cannot be shared out within {low.tolist()}, {high.tolist()}"
        )
    least, most = low.flatten().numpy(), high.flatten().numpy()
    weights = shares.expand(low.shape).double().flatten().numpy()
    # A head without a share gets what no other has room for.
    weights = np.maximum(weights / max(weights.max(), 1e-300), 1e-12)
    small, large = 0.0, float(total) * 1e12 + 1
    for _ in range(HALVINGS):
        middle = (small + large) / 2
        if middle in (small, large):
            break
        reached = np.clip(weights * middle, least, most).sum() >= total
        small, large = (small, middle) if reached else (middle, large)
    exact = np.clip(weights * large, least, most)
    # What float64 cannot tell from a whole number is one.
    counts = np.floor(exact + 1e-6).astype(np.int64)
    for index in np.argsort(counts - exact, kind="stable"):
        if counts.sum() >= total:
            break
        counts[index] += counts[index] < most[index]
    return torch.from_numpy(counts).view(low.shape)
