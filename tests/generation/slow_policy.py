"""A policy that takes `SLEEP_S` longer to rank the slots than it needs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kvfidelity.cache.policies.base import Policy, slot_indices
from kvfidelity.cache.view import CacheView

SLEEP_S = 0.4


@dataclass(frozen=True)
class SlowPolicy(Policy):
    """Keeps the last slots."""

    kind: ClassVar[str] = "slow_policy"

    def priority(self, view: CacheView) -> Tensor:
        time.sleep(SLEEP_S)
        return slot_indices(view)
