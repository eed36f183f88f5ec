"""Any policy, with a penalty for slots whose positions would disturb attention."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvfidelity.cache.policies.base import parameter, pinned
from kvfidelity.cache.policies.wrapper import PolicyWrapper
from kvfidelity.cache.rotary import rotate
from kvfidelity.cache.view import CacheView


@dataclass(frozen=True)
class DisruptionPenalty(PolicyWrapper):
    """Keeps the slots with the highest salience - weight * disruption (this project; the third open
    question of arXiv 2511.04686).

    Salience is the wrapped policy's ranking, and disruption is how much a slot adds to the output
    error by positions (`metrics.disruption`) if it is kept: the mean over the latest `window`
    queries and the heads of |moved attention - true attention| times its value's norm. Moved: at
    the offset that the cache's position mode would leave it with. Both are ranks from 0 to 1 among
    the slots, because policies rank on different scales; where no position moves, as under
    `original`, disruption is 0 and the ranking is the wrapped policy's. What a keep set does to
    offsets depends on the keep set: the first is the wrapped policy's, and each round starts from
    the one before. Slots that the wrapped policy pins stay pinned.
    """

    kind: ClassVar[str] = "disruption_penalty"

    weight: float = parameter(1.0, doc="lambda: ranks of disruption per rank of salience", low=0)
    window: int = parameter(32, doc="latest queries looked through", low=1)
    rounds: int = parameter(2, doc="how often the keep set is computed again", low=1, high=16)

    @property
    def query_window(self) -> int:
        return max(self.window, self.policy.query_window)

    def priority(self, view: CacheView) -> Tensor:
        rank = self.policy.rank(view)
        if not self.weight:
            return rank
        salience = _ranks(rank)
        fixed = pinned(rank)
        for start, stop in view.protected:
            fixed[..., start:stop] = True
        score = salience
        for _ in range(self.rounds):
            kept = _highest(score.masked_fill(fixed, torch.inf), view.budget)
            added = self._disruption(view, kept)
            while added.dim() > rank.dim():
                added = added.mean(0 if rank.dim() == 1 else 1)
            cost = torch.where(added > 0, _ranks(added), 0).to(salience.device)
            score = salience - self.weight * cost
        return torch.where(pinned(rank), rank.double(), score).to(rank.dtype)

    def _disruption(self, view: CacheView, kept: Tensor) -> Tensor:
        """What each slot adds to the output error, fp32 [L, G, n]; `kept`: bool, as the ranking."""
        (layers, groups), device = view.grid, view.layers[0].keys.device
        if kept.dim() == 2:
            kept = kept[:, None]
        kept = kept.expand(layers, groups, -1).to(device)
        token = view.token_index.to(device).expand(layers, groups, -1)
        position = view.position.to(device).expand(layers, groups, -1)
        if view.mode.traits.renumbers:
            position = kept.long().cumsum(-1) - kept.long()  # how many survivors are before it
        following = view.mode.traits.next_position(view.budget, view.tokens_seen, True)
        error = following - position - (view.tokens_seen - token)
        if not bool(error.any()):
            return torch.zeros(error.shape, device=device)
        rows = zip(token, error, kept, strict=True)
        return torch.stack([self._of_layer(view, at, *row) for at, row in enumerate(rows)])

    def _of_layer(
        self, view: CacheView, layer: int, token: Tensor, error: Tensor, kept: Tensor
    ) -> Tensor:
        """[G, n] of one layer; token, error and kept are [G, n]."""
        assert view.angles is not None
        keys, values = view.layers[layer].keys.float(), view.layers[layer].values.float()
        queries = view.recent_queries(layer)[:, -self.window :].float()
        count, device = queries.shape[1], keys.device
        own = torch.arange(view.tokens_seen - count, view.tokens_seen, device=device)
        rotated = rotate(queries, *view.angles(own, device)) * view.scaling
        rotated = rotated.reshape(keys.shape[0], -1, keys.shape[-1])
        hidden = (token[:, None] > own[:, None]).repeat(1, rotated.shape[1] // count, 1)
        shares = []
        for position in (token, token - error):
            logits = rotated @ rotate(keys, *view.angles(position, device)).transpose(1, 2)
            logits = logits.masked_fill(hidden, -torch.inf)
            survivors = logits.masked_fill(~kept[:, None], -torch.inf)
            whole = torch.logsumexp(survivors, -1, keepdim=True)
            # A slot that is not kept would join the others.
            whole = torch.where(kept[:, None], whole, torch.logaddexp(whole, logits))
            shares.append((logits - whole).exp().nan_to_num())
        change = (shares[1] - shares[0]).abs().mean(1)
        added: Tensor = change * torch.linalg.vector_norm(values, dim=-1)
        return added


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 0 to 1 along the last axis; of equal values the earlier has the higher rank, as
    where a keep set is made of them."""
    slots = values.shape[-1]
    order = torch.sort(values, dim=-1, descending=True, stable=True).indices
    places = torch.arange(slots - 1, -1, -1, device=values.device, dtype=torch.float64)
    ranks = torch.empty(values.shape, dtype=torch.float64, device=values.device)
    return ranks.scatter_(-1, order, places.expand(values.shape)) / max(1, slots - 1)


def _highest(score: Tensor, budget: int) -> Tensor:
    """Which slots a keep set of `budget` slots has, bool of the score's shape."""
    best = torch.sort(score, dim=-1, descending=True, stable=True).indices[..., :budget]
    return torch.zeros_like(score, dtype=torch.bool).scatter_(-1, best, True)
