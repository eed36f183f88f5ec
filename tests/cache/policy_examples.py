"""Policies with parameters that they need, one of a user's own, and what is kept."""

from __future__ import annotations

from typing import Any

import torch

from kvfidelity.cache.attach import new_cache
from kvfidelity.cache.eviction_log import Eviction
from kvfidelity.cache.evictor import EvictionSchedule, Evictor
from kvfidelity.cache.hooks import cache_argument
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.policies import Policy, build_policy, known_policies
from kvfidelity.cache.ragged import RaggedKeepSet
from kvfidelity.cache.transcript import Transcript
from tests.cache.calibrated import calibrated
from tests.cache.views import random_view

REQUIRED: dict[str, dict[str, Any]] = {
    "random": {"keep_ratio": 0.9},
    "sliding_window": {"keep_ratio": 0.9},
    "evict_oldest": {"discard_ratio": 0.1},
    "block": {"which": "middle"},
}
EVICTING = [kind for kind, policy in known_policies().items() if policy.evicts]
OWN = '''
from dataclasses import dataclass
from typing import ClassVar
from torch import Tensor
from kvfidelity import CacheView, Policy, parameter

@dataclass(frozen=True)
class EveryOther(Policy):
    """Keeps every `step`-th slot first."""
    kind: ClassVar[str] = "every_other"
    step: int = parameter(2, doc="distance", low=1)
    def priority(self, view: CacheView) -> Tensor:
        return -(view.token_index[0, 0] % self.step)
'''


def example(kind: str) -> Policy:
    return build_policy(kind, REQUIRED.get(kind, {}))


def rows_of(kept: torch.Tensor | RaggedKeepSet) -> list[torch.Tensor]:
    """Every keep set of its own, int64 [k]."""
    if isinstance(kept, RaggedKeepSet):
        return [row for layer in kept.rows() for row in layer]
    return list(kept.reshape(-1, kept.shape[-1]))


def kept(kind: str, slots: int, budget: int, **parameters: Any) -> list[int]:
    return build_policy(kind, parameters).keep(random_view(slots, budget)).tolist()


def cache_of(model: Any, policy: Policy) -> ManagedCache:
    """60 tokens, fed in two forwards, with the scores and the latest queries that were computed."""
    # More queries than the policy's own: what it keeps must not depend on them.
    cache = new_cache(
        calibrated(model, policy),
        collect_scores=True,
        query_window=policy.query_window + 7,
        transcript=Transcript(),
    )
    ids = torch.randint(3, 97, (1, 60), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for part in torch.split(ids, [45, 15], dim=1):
            model(part, **{cache_argument(model): cache})
    return cache


def evict(cache: ManagedCache, policy: Policy) -> list[Eviction]:
    """Evict 60 slots down to 24, and return the log."""
    evictor = Evictor(policy, EvictionSchedule("turn", 60, 24))
    evictor.before_turn(cache)
    return evictor.log
