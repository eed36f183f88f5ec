"""Eviction policies, one file each; a new file here is all that a new policy takes.

A policy ranks slots (`Policy.priority`); the choice of the `budget` highest, with protected spans
first and ties to the earlier slot, is made once for all of them in `base`.
"""

from kvfidelity.cache.policies.base import Policy, parameter
from kvfidelity.cache.policies.registry import build_policy, known_policies

__all__ = ["Policy", "build_policy", "known_policies", "parameter"]
