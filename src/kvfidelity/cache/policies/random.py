"""Random eviction."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvfidelity.cache.policies.base import Policy, keep_ratio, slots_for_ratio
from kvfidelity.cache.view import CacheView


@dataclass(frozen=True)
class Random(Policy):
    """Keeps slots drawn uniformly, whatever their content or age (arXiv 2511.04686).

    It scatters as attention_top does but ranks by nothing: the control for the choice of tokens.
    """

    kind: ClassVar[str] = "random"

    keep_ratio: float = keep_ratio()

    def default_size(self, slots: int) -> int:
        return slots_for_ratio(slots, self.keep_ratio)

    def priority(self, view: CacheView) -> Tensor:
        return torch.from_numpy(view.rng.random(view.slots))
