"""Which token is in which slot, and by which position RoPE rotates it.

Integers only: no keys, no model. `PositionMode.traits` says what differs between the modes; this
file applies it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kvfidelity.cache.positions import PositionMode
from kvfidelity.cache.ragged import RaggedKeepSet, upload


class SlotTable:
    """Token index and position of every slot, sorted by token index.

    Both are int64 of shape [L', G', n]: L' is 1 or the number of layers, G' is 1 or the number of
    kv heads. They start shared (1, 1) on the CPU, and widen when an eviction keeps different slots
    per layer or per head; from then on they are on the device of those keep sets.

    After a ragged eviction kv heads have different numbers of slots. Rows are then aligned at the
    right, so that new tokens are one more column for all, and a row's first `pad` columns are not
    slots: they hold -1. A head counts its own slots, so positions of new tokens differ by head.
    """

    def __init__(self, mode: PositionMode, capacity: int = 1024) -> None:
        self.mode = mode
        self.tokens_seen = 0
        self.evictions = 0
        self._slots = 0  # columns in use; the slots of every row unless it is ragged
        self._pad: Tensor | None = None
        self._mean_pad = 0
        self._token_index = torch.empty(1, 1, capacity, dtype=torch.int64)
        self._position = torch.empty(1, 1, capacity, dtype=torch.int64)

    def __len__(self) -> int:
        """Slots per row; on average, and exactly so, if rows are ragged."""
        return self._slots - self._mean_pad

    @property
    def is_ragged(self) -> bool:
        """Whether kv heads may have different numbers of slots."""
        return self._pad is not None

    @property
    def columns(self) -> int:
        """Width of `token_index`: the slots of the longest row."""
        return self._slots

    @property
    def pad(self) -> Tensor:
        """The first column of each row's slots, int64 [L', G']."""
        if self._pad is not None:
            return self._pad
        return torch.zeros(self._token_index.shape[:2], dtype=torch.int64)

    @property
    def counts(self) -> Tensor:
        """Slots of each row, int64 [L', G']."""
        return self._slots - self.pad

    @property
    def token_index(self) -> Tensor:
        """int64 [L', G', n], strictly increasing along the last axis."""
        return self._token_index[..., : self._slots]

    @property
    def position(self) -> Tensor:
        """int64 [L', G', n]."""
        return self._position[..., : self._slots]

    @property
    def next_position(self) -> int:
        """The position that the next fed token gets, the same for every layer and head.

        Raises:
            ValueError: it is not the same, because kv heads hold different numbers of slots.
        """
        if self._pad is not None:
            common = self.common_next_position
            if common is None:
                raise ValueError("the next position differs between kv heads: see next_positions")
            return common
        return self._next_position(self._slots)

    @property
    def common_next_position(self) -> int | None:
        """The position that the next fed token gets; None if it differs between kv heads."""
        if self._pad is None:
            return self.next_position
        least, most = self.next_positions.aminmax()
        return int(least) if bool(least == most) else None

    @property
    def position_bound(self) -> int:
        """No slot has this position or a higher one."""
        return self.tokens_seen + max(0, self.mode.traits.shift or 0)

    @property
    def next_positions(self) -> Tensor:
        """The position that the next fed token gets in each row, int64 [L', G']."""
        counts = self.counts
        by_count = {count: self._next_position(count) for count in set(counts.flatten().tolist())}
        return counts.clone().apply_(by_count.__getitem__)

    def _next_position(self, slots: int) -> int:
        """The same of a row of that many slots."""
        return self.mode.traits.next_position(slots, self.tokens_seen, self.evictions > 0)

    def append(self, count: int) -> Tensor:
        """Add `count` new tokens; returns their positions, int64 [count], or [L, G, count] if rows
        are ragged."""
        self._reserve(self._slots + count)
        new, device = slice(self._slots, self._slots + count), self._position.device
        if self._pad is None:
            positions = torch.arange(self.next_position, self.next_position + count, device=device)
        else:
            firsts = upload(self.next_positions, device)
            positions = firsts[..., None] + torch.arange(count, device=device)
        self._token_index[..., new] = torch.arange(
            self.tokens_seen, self.tokens_seen + count, device=device
        )
        self._position[..., new] = positions
        self._slots += count
        self.tokens_seen += count
        return positions

    def keep(self, kept: Tensor | RaggedKeepSet) -> None:
        """Evict every slot that is not in `kept`.

        Args:
            kept: int64 [k], [L, k] or [L, G, k]: sorted, distinct slots, the same k everywhere; or
                another k for each head.

        Raises:
            ValueError: unsorted, repeated or out-of-range slots.
        """
        if self._pad is not None or isinstance(kept, RaggedKeepSet):
            self.keep_ragged(self.as_ragged(kept))
            return
        kept = as_grid(kept)
        if self._position.is_cuda:
            kept = kept.to(self._position.device)
        size = kept.shape[-1]
        check_keep_set(kept, self._slots)
        if self._keep_shared(kept):
            return
        self._token_index = _gather(self.token_index, kept)
        if self.mode.traits.renumbers:
            renumbered = torch.arange(size, device=self._token_index.device)
            self._position = renumbered.expand(self._token_index.shape).contiguous()
        else:
            self._position = _gather(self.position, kept)
        self._slots = size
        self.evictions += 1

    def _keep_shared(self, kept: Tensor) -> bool:
        """Evict if the table and the grid `kept` have one row on the CPU; whether they have.

        The same as for any table, but room is left for new tokens: a run that evicts a hundredth
        of its slots again and again would else copy the table at every token after an eviction.
        """
        rows, size = self._token_index, kept.shape[-1]
        if rows.shape[0] * rows.shape[1] * kept.shape[0] * kept.shape[1] != 1:
            return False
        if rows.is_cuda or kept.is_cuda:
            return False
        chosen = kept[0, 0].numpy()
        # Others may look at the slots before, so they stay as they are. A buffer made in inference
        # mode could not be written to by `generate`, which is not in it.
        with torch.inference_mode(False):
            buffers = torch.empty_like(rows), torch.empty_like(rows)
        for name, after in zip(("_token_index", "_position"), buffers, strict=True):
            before = getattr(self, name)
            if name == "_position" and self.mode.traits.renumbers:
                after.numpy()[0, 0, :size] = np.arange(size)
            else:
                after.numpy()[0, 0, :size] = before.numpy()[0, 0, : self._slots].take(chosen)
            setattr(self, name, after)
        self._slots = size
        self.evictions += 1
        return True

    def as_ragged(self, kept: Tensor | RaggedKeepSet) -> RaggedKeepSet:
        """A keep set for this table as a ragged one."""
        if isinstance(kept, RaggedKeepSet):
            return kept
        return RaggedKeepSet.of_grid(as_grid(kept).expand(*self._token_index.shape[:2], -1))

    def row(self, layer: int, head: int) -> SlotTable:
        """A copy of one kv head's slots alone, as a table of one row."""
        index = tuple(
            min(i, size - 1) for i, size in zip((layer, head), self.pad.shape, strict=True)
        )
        first = int(self.pad[index])
        copy = SlotTable(self.mode, capacity=1)
        copy.tokens_seen, copy.evictions = self.tokens_seen, self.evictions
        copy._slots = self._slots - first
        copy._token_index = self.token_index[index][None, None, first:].cpu().clone()
        copy._position = self.position[index][None, None, first:].cpu().clone()
        return copy

    def on_cpu(self) -> SlotTable:
        """The same table on the CPU: a copy if it is on a device."""
        if self._position.device.type == "cpu":
            return self
        copy = self.fork()
        copy._token_index, copy._position = copy._token_index.cpu(), copy._position.cpu()
        return copy

    def keep_ragged(self, kept: RaggedKeepSet) -> Tensor:
        """`keep` of a ragged keep set; returns its columns before, see `RaggedKeepSet.columns`."""
        if self._position.is_cuda:
            kept = kept.to(self._position.device)
        shape, device = kept.counts.shape, kept.slots.device
        kept.check(self.counts.expand(shape))
        columns = kept.columns(self.pad.expand(shape))
        empty = columns < 0
        width = columns.shape[-1]
        pad = width - kept.counts
        known = columns.clamp(min=0)
        self._token_index = _gather(self.token_index, known).masked_fill(empty, -1)
        if self.mode.traits.renumbers:
            first = upload(pad, device)[..., None]
            self._position = torch.arange(width, device=device) - first
        else:
            self._position = _gather(self.position, known)
        self._position = self._position.masked_fill(empty, -1)
        self._slots, self._pad, self._mean_pad = width, pad, width - kept.per_head
        self.evictions += 1
        return columns

    def fork(self, slots: int | None = None) -> SlotTable:
        """An independent copy, or one of the first `slots` slots of a table without evictions.

        Raises:
            ValueError: fewer slots than there are, after an eviction.
        """
        copy = SlotTable(self.mode, capacity=1)
        if slots == len(self):
            slots = None
        if slots is None:
            copy.tokens_seen, copy.evictions = self.tokens_seen, self.evictions
        elif self.evictions:
            raise ValueError("after an eviction a cache cannot be forked at an earlier moment")
        else:
            copy.tokens_seen = slots
        copy._slots = self._slots if slots is None else slots
        copy._pad, copy._mean_pad = self._pad, self._mean_pad
        copy._token_index = self._token_index[..., : copy._slots].clone()
        copy._position = self._position[..., : copy._slots].clone()
        return copy

    def _reserve(self, slots: int) -> None:
        for name in ("_token_index", "_position"):
            rows = getattr(self, name)
            if slots > rows.shape[-1]:
                setattr(self, name, _grown(rows, self._slots, max(slots, 2 * rows.shape[-1])))


def as_grid(kept: Tensor) -> Tensor:
    """[k], [L, k] or [L, G, k] as [L', G', k]."""
    if kept.dim() == 1:
        return kept[None, None]
    return kept[:, None] if kept.dim() == 2 else kept


def check_keep_set(kept: Tensor, slots: int) -> None:
    """Refuse a keep set [L', G', k] that `slots` slots cannot follow.

    Raises:
        ValueError: unsorted, repeated or out-of-range slots.
    """
    sorted_, inside = _order_and_range(kept, slots)
    if not inside:
        raise ValueError(f"keep set names slots outside 0..{slots - 1}")
    if not sorted_:
        raise ValueError("keep set must be sorted and without repeats")


def _order_and_range(kept: Tensor, slots: int) -> tuple[bool, bool]:
    """Whether keep sets [L', G', k] are sorted without repeats, and within 0..slots - 1."""
    if not kept.shape[-1]:
        return True, True
    if kept.is_cuda:
        ends = (kept[..., 0].min() >= 0) & (kept[..., -1].max() < slots)
        ascending, inside = torch.stack([(kept.diff(dim=-1) > 0).all(), ends]).tolist()
        return ascending, inside
    # NumPy here and below: for this little work torch's threads cost more than they save.
    values = kept.numpy()
    inside = bool(values[..., 0].min() >= 0 and values[..., -1].max() < slots)
    return bool((np.diff(values, axis=-1) > 0).all()), inside


def _gather(slots: Tensor, kept: Tensor) -> Tensor:
    lead = [max(sizes) for sizes in zip(slots.shape[:-1], kept.shape[:-1], strict=True)]
    if kept.is_cuda:
        return slots.to(kept.device).expand(*lead, -1).gather(-1, kept.expand(*lead, -1))
    rows, kept_slots = (tensor.expand(*lead, -1).numpy() for tensor in (slots, kept))
    return torch.from_numpy(np.take_along_axis(rows, kept_slots, -1))


def _grown(slots: Tensor, used: int, capacity: int) -> Tensor:
    grown = slots.new_empty(*slots.shape[:-1], capacity)
    grown[..., :used] = slots[..., :used]
    return grown
