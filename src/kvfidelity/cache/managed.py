"""The managed cache: a `transformers` cache that stores an integer position per slot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kvfidelity.cache import attention
from kvfidelity.cache.attention import window_scores
from kvfidelity.cache.device_positions import DevicePositions
from kvfidelity.cache.healing.changed_attention import ChangedAttention
from kvfidelity.cache.interface import AttentionCache
from kvfidelity.cache.layers import SlotLayer
from kvfidelity.cache.positions import PositionMode
from kvfidelity.cache.ragged import RaggedKeepSet, upload
from kvfidelity.cache.ragged_gpu import RaggedOnGpu
from kvfidelity.cache.ragged_heads import RaggedHeads, ragged_heads
from kvfidelity.cache.recent_queries import RecentQueries
from kvfidelity.cache.rotary import IdentityRotary, rotate
from kvfidelity.cache.scores import AttentionScores
from kvfidelity.cache.slots import SlotTable, as_grid
from kvfidelity.cache.transcript import Transcript
from kvfidelity.cache.triton import kernels_run_on

if TYPE_CHECKING:
    from kvfidelity.cache.triton.compact import Addresses


class ManagedCache(AttentionCache):
    """Un-rotated keys, values, and a position per slot; `keep` evicts.

    Pass it as a model's cache after `attach(model)`. One sequence (batch 1), no padding.

    Args:
        rotary: the attached model's IdentityRotary.
        layers: number of decoder layers.
        positions: how positions are handled after an eviction.
        collect_scores: whether each forward's attention column sums are kept.
        query_window: how many of the latest queries to keep per layer, un-rotated, for policies
            that rank by them.
        before_forward: called with this cache before each forward appends its tokens;
            `new_cache(model, evictor=evictor)` sets it and all others here.
        transcript: where the fed text is noted, for policies that feed it again.
    """

    def __init__(
        self,
        rotary: IdentityRotary,
        layers: int,
        positions: PositionMode | str = PositionMode.REROTATED,
        *,
        collect_scores: bool = False,
        query_window: int = 0,
        before_forward: Callable[[ManagedCache], None] | None = None,
        transcript: Transcript | None = None,
    ) -> None:
        super().__init__(layers=[SlotLayer() for _ in range(layers)])
        self.rotary = rotary
        self.slot_table = SlotTable(PositionMode(positions))
        self.scores = AttentionScores(layers) if collect_scores else None
        self.recent_queries = RecentQueries(layers, query_window) if query_window else None
        self.before_forward = before_forward
        self.transcript = transcript
        self.ragged: RaggedHeads | None = None  # from the first ragged eviction on
        self.scaling = 1.0
        #: Set by a healing that changes attention; computed in plain torch on any device.
        self.changed_attention: ChangedAttention | None = None
        self._continues = False
        self._latest_is_last = False
        self._fed_positions: Tensor | None = None
        self._angles: tuple[Tensor, Tensor] | None = None
        self._device_positions: DevicePositions | None = None
        self._addresses: Addresses | None = None
        self._latest_grid: tuple[Tensor, Tensor] | None = None

    @property
    def size(self) -> int:
        """Slots in use, the same in every layer and kv head; after a ragged eviction the mean over
        kv heads, which is a whole number."""
        return len(self.slot_table)

    @property
    def query_window(self) -> int:
        """How many of the latest queries are kept."""
        return self.recent_queries.window if self.recent_queries is not None else 0

    @property
    def ghosts_per_head(self) -> float:
        """Slots that stand for tokens that are gone, the mean over kv heads."""
        changed = self.changed_attention
        return changed.ghosts_per_head if changed is not None else 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of all live keys and values, and of what changes attention to them."""
        changed = self.changed_attention.nbytes if self.changed_attention is not None else 0
        total: int = changed + sum(layer.nbytes for layer in self.layers)
        return total

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen, evicted ones included: `generate` slices its input by this number."""
        return self.slot_table.tokens_seen

    @property
    def device(self) -> torch.device:
        """The device of keys and values; known after the first forward."""
        device: torch.device = self.layers[0].device
        return device

    @property
    def groups(self) -> int:
        """G, the number of kv heads; known after the first forward."""
        layer = self.layers[0]
        if self.ragged is not None:
            return len(layer.heads)
        return int(layer.key_buffer.shape[1])

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append one layer's new keys (un-rotated) and values, both [1, G, q, d].

        Returns:
            All rotated keys and all values of the layer, [1, G, n, d]; the new ones alone if kv
            heads hold different numbers of slots: `attend` then reads the others itself.
        """
        if layer_idx == 0:
            if key_states.shape[0] != 1:
                raise ValueError(
                    f"a managed cache holds one sequence, not a batch of {key_states.shape[0]}"
                )
            self._append_tokens(key_states.shape[2], key_states.device)
        layer = self.layers[layer_idx]
        if self.ragged is not None:
            self.ragged.update(self, layer_idx, key_states, value_states)
            return key_states, value_states
        layer.append(key_states, value_states, self._angles)
        return self.rotated_keys(layer_idx)[None], layer.live_values[None]

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """One layer's attention output [1, q, H, d] for un-rotated queries [1, H, q, d]."""
        layer_idx: int = module.layer_idx
        self.scaling = scaling
        if self.ragged is not None:
            return self.ragged.attend(self, layer_idx, query, key, value)
        self.note_queries(layer_idx, query)
        rotated = self._rotated_query(query[0])
        if self.changed_attention is not None:
            return self._attend_changed(self.changed_attention, layer_idx, rotated, key, value)
        attention = _attention_backend(query)
        out: Tensor
        if self.scores is None:
            out = attention.attend(rotated, key[0], value[0], scaling)
        else:
            out, sums = attention.attend_with_scores(rotated, key[0], value[0], scaling)
            last = None
            if self._latest_is_last:
                one = query.shape[2] == 1
                last = sums if one else window_scores(rotated[:, -1:], key[0], scaling)[:, 0]
            self.scores.add(layer_idx, sums, continues=self._continues, last=last)
        return out.transpose(0, 1)[None]

    def note_queries(self, layer_idx: int, query: Tensor) -> None:
        """Add one layer's queries [1, H, q, d] of the tokens just appended to the latest ones."""
        if self.recent_queries is not None:
            first = self.slot_table.tokens_seen - query.shape[2]
            self.recent_queries.add(layer_idx, query[0], first)

    def rotated_keys(self, layer_idx: int) -> Tensor:
        """One layer's keys rotated by their slots' positions [G, n, d].

        On a CPU they are stored (see SlotLayer); on a GPU they are rotated here.
        """
        layer = self.layers[layer_idx]
        if layer.has_workspace:
            rotated: Tensor = layer.rotated_keys
            return rotated
        return self.rotate_by(
            layer.live_keys, self.device_positions.of_layer(layer_idx, layer.slots)
        )

    def rotated_head_keys(self, layer_idx: int, group: int) -> Tensor:
        """One kv head's keys rotated by their slots' positions [1, n, d], in a ragged cache."""
        assert self.ragged is not None
        return self.ragged.rotated_keys(self, layer_idx, group)

    @property
    def device_positions(self) -> DevicePositions:
        """Positions on the device."""
        if self._device_positions is None:
            self._device_positions = DevicePositions(self.slot_table.position, self.device)
        return self._device_positions

    @property
    def position_buffer(self) -> Tensor:
        """Positions on the device, int32 [L', G', capacity]; undefined after the last slots."""
        if isinstance(self.ragged, RaggedOnGpu):
            return self.ragged.positions.positions
        return self.device_positions.positions

    def reserve(self, slots: int) -> None:
        """Make room for `slots` slots; no buffer moves in memory until they are filled."""
        extra = slots - self.size
        if self.ragged is not None:
            self.ragged.reserve(self, extra)
        else:
            for layer in self.layers:
                layer.reserve(slots)
            if kernels_run_on(self.device):
                self.device_positions.reserve(slots, self.size)
        if self.scores is not None and self.scores.available:
            columns = self.slot_table.columns + extra
            self.scores.reserve(columns, self.scores.heads, self.device)

    def note_tokens(self, ids: Callable[[], list[int]]) -> None:
        """Note the text that a forward feeds, if it is kept."""
        if self.transcript is not None:
            self.transcript.add(ids())

    def note_decoded(self, count: int) -> None:
        """Note that decode steps on the device filled `count` more slots."""
        self.slot_table.append(count)
        self._set_slots()
        if self.scores is not None:
            self.scores.note_decoded(self.slot_table.columns)
        if self.recent_queries is not None:
            self.recent_queries.note_added(self.slot_table.tokens_seen - count, count)

    @contextmanager
    def feeding(self, *, continues: bool = False, latest_is_last: bool = False) -> Iterator[None]:
        """How forwards inside count.

        Args:
            continues: a forward is a further chunk of the latest one.
            latest_is_last: after a forward, the latest scores are those of its last token, as if
                that one had been fed alone.
        """
        self._continues, self._latest_is_last = continues, latest_is_last
        try:
            yield
        finally:
            self._continues = self._latest_is_last = False

    @torch.inference_mode()
    def keep(self, kept: Tensor | RaggedKeepSet) -> None:
        """Evict all but `kept`: int64 [k], [L, k] or [L, G, k], sorted slots; or ragged.

        Raises:
            ValueError: unsorted, repeated or out-of-range slots.
        """
        if self.slot_table.is_ragged or isinstance(kept, RaggedKeepSet):
            self._keep_ragged(self.slot_table.as_ragged(kept))
            return
        self.slot_table.keep(kept)
        grid = self._grid(kept)
        self._latest_grid = None
        if kernels_run_on(self.device):
            self._compact(grid)
        else:
            for index, layer in enumerate(self.layers):
                rows = grid[index if grid.shape[0] > 1 else 0]
                layer.keep(rows[0] if rows.shape[0] == 1 else rows)
        if self.scores is not None:
            self.scores.keep(grid)
        if self.changed_attention is not None:
            self.changed_attention = self.changed_attention.keep(grid)
        renumbers = self.slot_table.mode.traits.renumbers
        if self._device_positions is not None and renumbers:
            self._device_positions.append(0, 0, self.size)  # the same for all layers and heads
        elif self._device_positions is not None:
            self._device_positions.replace(self.slot_table.position)
        if renumbers and self.layers[0].has_workspace:
            cos, sin = self.rotary.angles(torch.arange(self.size), self.device)
            for layer in self.layers:
                layer.rerotate(cos, sin)

    def attention_share_outside(self, kept: Tensor | RaggedKeepSet) -> float | None:
        """Share of the latest forward's attention that went to slots not in `kept`; None without
        scores."""
        if self.scores is None:
            return None
        if self.slot_table.is_ragged or isinstance(kept, RaggedKeepSet):
            ragged = self.slot_table.as_ragged(kept).to(self.device)
            columns = ragged.columns(self.slot_table.pad.expand(ragged.counts.shape))
            return self.scores.share_outside_columns(columns)
        return self.scores.share_outside(self._grid(kept))

    def fork(
        self,
        slots: int | None = None,
        scores: AttentionScores | None = None,
        positions: PositionMode | str | None = None,
    ) -> ManagedCache:
        """An independent copy, or one of the first `slots` slots of a cache without evictions.

        Args:
            slots: how many slots; all by default.
            scores: the attention scores at that moment; needed for fewer slots than there are.
            positions: another position mode; ignored after an eviction.
        """
        copy = ManagedCache(
            self.rotary,
            len(self.layers),
            self.slot_table.mode,
            before_forward=self.before_forward,
        )
        copy.slot_table = self.slot_table.fork(slots)
        if positions is not None and not self.slot_table.evictions:
            copy.slot_table.mode = PositionMode(positions)
        if self.ragged is None:
            copy.layers = [layer.fork(copy.size) for layer in self.layers]
        else:
            copy.layers = self.layers
            copy.ragged = self.ragged.fork(copy)
        forked_scores = scores or (self.scores if slots in (None, self.size) else None)
        copy.scores = forked_scores.fork() if forked_scores is not None else None
        if self.recent_queries is not None:
            copy.recent_queries = (
                self.recent_queries.fork()
                if copy.slot_table.tokens_seen == self.slot_table.tokens_seen
                else RecentQueries(len(self.layers), self.query_window)
            )
        copy.scaling = self.scaling
        if self.changed_attention is not None:
            copy.changed_attention = self.changed_attention.fork()
        if self.transcript is not None:
            copy.transcript = self.transcript.fork(copy.slot_table.tokens_seen)
        return copy

    def empty(self) -> ManagedCache:
        """An empty cache of the same model and mode that collects nothing."""
        return ManagedCache(self.rotary, len(self.layers), self.slot_table.mode)

    @torch.inference_mode()
    def overwrite(self, layer_idx: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Give slots of one layer other contents; what they are and where stays.

        Args:
            slots: int64 [G, c]. keys: un-rotated, and values [G, c, d].
        """
        layer, table = self.layers[layer_idx], self.slot_table
        index = slots[..., None].expand(-1, -1, keys.shape[-1])
        layer.live_keys.scatter_(1, index, keys.to(layer.live_keys.dtype))
        layer.live_values.scatter_(1, index, values.to(layer.live_values.dtype))
        if layer.has_workspace:
            position = table.position[min(layer_idx, table.position.shape[0] - 1)]
            at = position.expand(slots.shape[0], -1).gather(-1, slots)
            rotated = rotate(keys, *self.rotary.angles(at, self.device))
            layer.rotated_keys.scatter_(1, index, rotated.to(layer.live_keys.dtype))

    def replace_contents(self, other: ManagedCache) -> None:
        """Take over the keys and values of a cache of as many slots, which is not used any more.

        Raises:
            ValueError: it has another number of slots, or other positions.
        """
        if not torch.equal(other.slot_table.position.cpu(), self.slot_table.position.cpu()):
            raise ValueError("contents can be replaced only by those of the same positions")
        self.layers[:] = other.layers

    def section(self, before: int) -> ManagedCache:
        """A cache of the slots so far and the `before` next ones, in the same buffers.

        Its scores and recent queries hold only what it is fed itself. Room must be reserved.
        """
        section = ManagedCache(
            self.rotary, len(self.layers), self.slot_table.mode, query_window=self.query_window
        )
        section.slot_table = self.slot_table.fork()
        section.slot_table.append(before)
        section.ragged = None if self.ragged is None else self.ragged.sharing()
        sizes = section._slots_of_layers()
        section.layers = [
            layer.sharing(size) for layer, size in zip(self.layers, sizes, strict=True)
        ]
        section.scaling = self.scaling
        section._device_positions = self._device_positions
        if self.scores is not None:
            rows = (len(self.layers), self.scores.heads, section.slot_table.columns)
            section.scores = AttentionScores.from_rows(
                torch.zeros(rows, device=self.device), torch.zeros(rows, device=self.device)
            )
        return section

    @contextmanager
    def rollback_after(self) -> Iterator[None]:
        """Afterwards slots, scores and recent queries are again as before.

        Raises:
            RuntimeError: slots were evicted inside; their content is lost.
        """
        before = (self.slot_table.fork(), self.scores, self.recent_queries)
        evictions, text = self.slot_table.evictions, self.transcript
        if text is not None:
            self.transcript = text.fork(self.slot_table.tokens_seen)
        self.scores = self.recent_queries = None
        try:
            yield
            if self.slot_table.evictions != evictions:
                raise RuntimeError("an eviction cannot be rolled back")
        finally:
            self.slot_table, self.scores, self.recent_queries = before
            self.transcript = text
            self._set_slots()

    def append_unfilled(self, count: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Append `count` slots in all layers, for kernels that fill them during a forward.

        On a GPU. Keys, values, score sums and recent queries of the new slots are undefined until
        the forward has ended; no buffer moves until then.

        Args:
            query: [1, H, *, d], key, value: [1, G, *, d]: their shapes and dtype are those of the
                buffers.
        """
        self._append_tokens(count, key.device)
        self.make_room(count, query, key, value)

    def make_room(self, count: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        """The part of `append_unfilled` that follows the slot table, which has appended."""
        if self.ragged is not None:
            self.ragged.reserve(self, count)
        else:
            for layer in self.layers:
                if not layer.is_initialized:
                    layer.lazy_initialization(key, value)
                layer.reserve(self.size)
        self._set_slots()
        _, heads, _, size = query.shape
        if self.scores is not None:
            self.scores.reserve(self.slot_table.columns, heads, key.device)
            self.scores.note_decoded(self.slot_table.columns)
        if self.recent_queries is not None:
            self.recent_queries.reserve(heads, size, query.dtype, query.device)
            self.recent_queries.note_added(self.slot_table.tokens_seen - count, count)

    @property
    def continues(self) -> bool:
        """Whether a forward now counts as a further chunk of the latest one."""
        return self._continues

    @property
    def latest_is_last(self) -> bool:
        """Whether the latest scores after a forward now are those of its last token."""
        return self._latest_is_last

    def _append_tokens(self, count: int, device: torch.device) -> None:
        if self.before_forward is not None and not self._continues:
            self.before_forward(self)
        if self.ragged is not None:
            self.ragged.append(self, self.slot_table.append(count))
            return
        start, first = self.size, self.slot_table.next_position
        positions = self.slot_table.append(count)
        self._angles = None
        if kernels_run_on(device):
            if self._device_positions is None:
                self._device_positions = DevicePositions(
                    self.slot_table.position[..., :start], device
                )
            self._device_positions.append(start, first, count)
            self._fed_positions = self._device_positions.positions[0, :1, start : start + count]
        else:
            self._angles = self.rotary.angles(positions, device)

    def _attend_changed(
        self, changed: ChangedAttention, layer_idx: int, rotated: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        """One layer's attention output [1, q, H, d] for rotated queries [H, q, d]."""
        out, sums, last = changed.attend(layer_idx, rotated, key[0], value[0], self.scaling)
        if self.scores is not None:
            shown = last if self._latest_is_last else None
            self.scores.add(layer_idx, sums, continues=self._continues, last=shown)
        return out.transpose(0, 1)[None]

    def _slots_of_layers(self) -> list[Any]:
        """Of each layer its slots; those of each kv head, if these differ."""
        if self.ragged is None:
            return [self.size] * len(self.layers)
        return self.slot_table.counts.tolist()

    def _set_slots(self) -> None:
        for layer, slots in zip(self.layers, self._slots_of_layers(), strict=True):
            if self.ragged is None:
                layer.slots = slots
            else:
                layer.set_counts(slots)

    def _keep_ragged(self, kept: RaggedKeepSet) -> None:
        table, kept = self.slot_table, kept.to(self.device)
        if kept.counts.shape != (len(self.layers), self.groups):
            raise ValueError(
                f"keep set is for {list(kept.counts.shape)} layers and kv heads, and the cache has "
                f"{[len(self.layers), self.groups]}"
            )
        # Buffers made in inference mode could not be written to by `generate`, which is not in it.
        with torch.inference_mode(False), torch.no_grad():
            columns = table.keep_ragged(kept)
            if self.ragged is None:
                self.ragged = ragged_heads(self.device)
            self.ragged.keep(self, kept)
        if self.scores is not None:
            self.scores.keep_columns(columns)

    def _grid(self, kept: Tensor) -> Tensor:
        """A keep set on the device, int64 [L', G', k]. A copy is kept until the eviction: the share
        of attention is asked for before."""
        if kept.device == self.device:
            return as_grid(kept)
        if self._latest_grid is None or self._latest_grid[0] is not kept:
            self._latest_grid = kept, upload(as_grid(kept), self.device)
        return self._latest_grid[1]

    def _compact(self, kept: Tensor) -> None:
        from kvfidelity.cache.triton.compact import Addresses, compact

        buffers = (
            [layer.key_buffer for layer in self.layers],
            [layer.value_buffer for layer in self.layers],
        )
        if self._addresses is None:
            self._addresses = Addresses()
        for each, addresses in zip(buffers, self._addresses.of(*buffers), strict=True):
            compact(each, kept, addresses)
        for layer in self.layers:
            layer.slots = kept.shape[-1]

    def _rotated_query(self, query: Tensor) -> Tensor:
        if self._angles is not None:
            return rotate(query, *self._angles)
        assert self._fed_positions is not None
        return self.rotate_by(query, self._fed_positions)

    def rotate_by(self, x: Tensor, position: Tensor) -> Tensor:
        """Rotate [G, n, d] by positions int32 [1, n] or [G, n], on a GPU."""
        from kvfidelity.cache.triton.prefill import rotate_by

        cos, sin = self.rotary.table(self.slot_table.position_bound, x.device)
        return rotate_by(x, position, cos, sin)


def _attention_backend(query: Tensor) -> Any:
    """The module with `attend` and `attend_with_scores` for the query's device."""
    if kernels_run_on(query.device):
        from kvfidelity.cache.triton import prefill

        return prefill
    return attention
