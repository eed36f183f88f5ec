"""Eviction policies, one file per policy or family; a new policy needs only a new file here.

A policy ranks slots (`Policy.priority`). `Policy.keep` in `base` then chooses the `budget` highest
for all of them: protected spans first, and the earlier slot of two equals. A policy that is
`ragged` also says how the budget is shared out to layers and kv heads (`Policy.shares`).
"""

from kvfidelity.cache.policies.base import Policy, parameter
from kvfidelity.cache.policies.registry import build_policy, known_policies

__all__ = ["Policy", "build_policy", "known_policies", "parameter"]
