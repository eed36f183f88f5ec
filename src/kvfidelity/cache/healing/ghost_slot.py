"""A slot per gap that stands for what was evicted there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from kvfidelity.cache.healing.base import Choice, FedMessages, Healed, Healing, KeepSet
from kvfidelity.cache.healing.changed_attention import ChangedAttention
from kvfidelity.cache.healing.gaps import gaps_of, largest, rows_of
from kvfidelity.cache.healing.window import window_logits, window_queries
from kvfidelity.cache.rotary import rotate_back
from kvfidelity.cache.slots import as_grid
from kvfidelity.errors import UserError

if TYPE_CHECKING:
    from kvfidelity.cache.managed import ManagedCache


@dataclass(frozen=True)
class GhostSlot(Healing):
    """Keeps, of each of the largest gaps, one slot with the mean evicted key and value, and a bias
    on its logit that gives it the attention mass that was evicted.

    The slot is the gap's middle one: its token index and its position are that one's, and it counts
    in the budget. The key is the mean rotated key, so that its logit is the mean of the evicted
    ones. It is stored so that in every position mode queries after the eviction meet it as those
    before it did: were it moved as other survivors are, its logit would no longer fit its bias. The
    value is the mean value. The bias of query
    head h is log(mass) + log(sum_q p_gap(q) / sum_q p_ghost(q)) over the latest `window` queries,
    with p_gap their softmax mass on the gap, and p_ghost what the mean key alone would get at the
    same normaliser. The mean of a cluster of keys with the log of its size as bias is that of token
    merging (arXiv 2210.09461, proportional attention); here the mass is measured. A ghost that is
    evicted in turn counts as the tokens that it stands for.

    mass: share of the evicted mass that the ghost gets; 0 gives it none. most: ghosts per keep set.
    window: latest queries that the mass is measured by.
    """

    kind: ClassVar[str] = "ghost_slot"
    changes_attention: ClassVar[bool] = True
    edits_slots: ClassVar[bool] = True

    mass: float = 1.0
    most: int = 16
    window: int = 32

    @property
    def query_window(self) -> int:
        return self.window

    def choose(self, keep: Callable[[int], KeepSet], budget: int, slots: int) -> Choice:
        number = self._ghosts(_uniform(keep(budget)), slots)
        # Each ghost takes a slot, and fewer slots can leave fewer gaps.
        while True:
            if budget <= number:
                raise UserError(
                    f"healing {self.kind} takes {number} slots of the {budget} that remain: raise "
                    "the threshold's target"
                )
            kept = _uniform(keep(budget - number))
            # A protected prompt can need more slots than are left for the policy.
            found = min(self._ghosts(kept, slots), budget - kept.shape[-1])
            if found >= number:
                break
            number = found
        rows = [largest(gaps_of(row, slots), number) for row in rows_of(kept)]
        middles = torch.stack([(row[:, 0] + row[:, 1] - 1) // 2 for row in rows])
        ghosts = middles.view(*kept.shape[:-1], number)
        whole = torch.cat([kept, ghosts.to(kept.device)], dim=-1).sort(dim=-1).values
        return Choice(whole, as_grid(ghosts))

    def _ghosts(self, kept: Tensor, slots: int) -> int:
        """How many ghosts each keep set can have: as many in all of them."""
        return min(self.most, *(len(gaps_of(row, slots)) for row in rows_of(kept)))

    def read(self, cache: ManagedCache, choice: Choice) -> Any:
        assert choice.ghosts is not None and isinstance(choice.kept, Tensor)
        earlier = cache.ghosts_per_head > 0
        if not choice.ghosts.shape[-1] and not earlier:
            return None
        kept = as_grid(choice.kept).cpu()
        whose = _owners(kept, choice.ghosts, cache.size)
        found = []
        for layer in range(len(cache.layers)):
            row = min(layer, whose.shape[0] - 1)
            new = self._of_layer(cache, layer, whose[row], choice.ghosts[row])
            held = _rotated(cache, layer, kept[min(layer, kept.shape[0] - 1)]) if earlier else None
            found.append((*new, held))
        places = torch.searchsorted(kept.contiguous(), choice.ghosts.contiguous())
        return places, cache.slot_table.next_position, found

    def _of_layer(
        self, cache: ManagedCache, index: int, whose: Tensor, ghosts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rotated keys and values [G, c, d], biases [H, c] and counts [G, c] of one layer's ghosts.

        Args:
            whose: which ghost each slot is evicted into, -1 for none, int64 [G', n].
            ghosts: slots, int64 [G', c].
        """
        layer, device = cache.layers[index], cache.device
        groups, slots, size = layer.live_keys.shape
        number = ghosts.shape[-1]
        changed = cache.changed_attention or ChangedAttention()
        counts = changed.counts_of(index, groups, slots).to(device)
        member = (whose[..., None] == torch.arange(number)).float().to(device)
        member = member.expand(groups, -1, -1)
        weight = (member * counts[..., None]).transpose(1, 2)
        total = weight.sum(-1)
        mean = weight / total[..., None]
        rotated, values = mean @ cache.rotated_keys(index).float(), mean @ layer.live_values.float()
        queries = window_queries(cache, index, self.window)
        logits = window_logits(cache, index, queries)
        normaliser = logits.logsumexp(-1)
        received = (logits - normaliser[..., None]).exp().sum(1)
        heads = received.shape[0]
        in_gap = (received.view(groups, -1, slots) @ member).reshape(heads, number)
        flat = (queries * cache.scaling).reshape(groups, -1, size)
        own = (flat @ rotated.transpose(1, 2)).view(heads, queries.shape[1], number) - normaliser[
            ..., None
        ]
        bias = in_gap.log() - own.logsumexp(1)
        bias += math.log(self.mass) if self.mass > 0 else -math.inf
        return rotated, values, bias, total

    def write(self, cache: ManagedCache, found: Any, messages: FedMessages | None) -> Healed:
        if found is None:
            return Healed()
        places, end, layers = found
        changed = cache.changed_attention or ChangedAttention()
        # Later queries are this much nearer to a slot whose position stays.
        nearer = end - cache.slot_table.next_position
        biases, counts, ghosts = [], [], []
        for index, (rotated, values, bias, total, held) in enumerate(layers):
            groups, heads = rotated.shape[0], bias.shape[0]
            at = places[min(index, places.shape[0] - 1)].expand(groups, -1).to(rotated.device)
            position = cache.slot_table.position.to(rotated.device)
            position = position[min(index, position.shape[0] - 1)].expand(groups, -1) + nearer
            known_ghosts = changed.ghosts_of(index, groups, cache.size).to(at.device)
            if held is not None:
                _move(cache, index, known_ghosts, held, position)
            angles = cache.rotary.angles(position.gather(-1, at), rotated.device)
            cache.overwrite(index, at, rotate_back(rotated, *angles), values)
            known = changed.bias_of(index, cache.size)
            known = bias.new_zeros(heads, cache.size) if known is None else known.clone()
            biases.append(known.scatter(-1, at.repeat_interleave(heads // groups, dim=0), bias))
            before = changed.counts_of(index, groups, cache.size).to(total.device)
            counts.append(before.scatter(-1, at, total))
            ghosts.append(known_ghosts.scatter(-1, at, True))
        cache.changed_attention = ChangedAttention(
            changed.factor, torch.stack(biases), torch.stack(counts), torch.stack(ghosts)
        )
        return Healed(slots=places.shape[-1], nbytes=cache.changed_attention.nbytes)


def _rotated(cache: ManagedCache, layer: int, kept: Tensor) -> Tensor:
    """One layer's rotated keys of the slots [G', k], fp32 [G, k, d]."""
    keys = cache.rotated_keys(layer).float()
    index = kept.to(keys.device).expand(keys.shape[0], -1)
    return keys.gather(1, index[..., None].expand(-1, -1, keys.shape[-1]))


def _move(
    cache: ManagedCache, layer: int, ghosts: Tensor, rotated: Tensor, position: Tensor
) -> None:
    """Store the keys of one layer's earlier ghosts, bool [G, k], again: `rotated` at `position`."""
    keys = rotate_back(rotated, *cache.rotary.angles(position, rotated.device))
    own = cache.layers[layer]
    slots = torch.arange(cache.size, device=keys.device).expand(keys.shape[0], -1)
    chosen = torch.where(ghosts[..., None], keys, own.live_keys.float())
    cache.overwrite(layer, slots, chosen, own.live_values.clone())


def _uniform(kept: KeepSet) -> Tensor:
    assert isinstance(kept, Tensor)  # the evictor refuses policies whose budgets differ
    return kept


def _owners(kept: Tensor, ghosts: Tensor, slots: int) -> Tensor:
    """Which ghost each slot is evicted into, -1 for none, int64 [L', G', n]: a ghost's own slot and
    all evicted slots around it."""
    owners = torch.full((*kept.shape[:-1], slots), -1)
    flat = owners.view(-1, slots)
    for row, own, members in zip(rows_of(kept), rows_of(ghosts), flat, strict=True):
        real = row[~torch.isin(row, own)]
        gaps = gaps_of(real, slots)
        holds = torch.searchsorted(gaps[:, 0].contiguous(), own, right=True) - 1
        for number, gap in enumerate(holds.tolist()):
            members[int(gaps[gap, 0]) : int(gaps[gap, 1])] = number
    return owners
