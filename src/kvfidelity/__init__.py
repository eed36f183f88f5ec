"""KV Fidelity: what happens to a chat when an LLM's KV cache is evicted.

    from kvfidelity import new_cache, build_policy, Evictor, EvictionSchedule

The names of `__all__` are the public surface. Each is imported when it is first used, so that
`import kvfidelity` takes milliseconds and a Snakefile can afford it.

One folder per idea, imports pointing one way:

- `cache`       slots, positions, policies, evictor, attention scores
- `metrics`     integrity of positions, likelihoods, properties of a reply's text
- `models`      where weights come from, how they are checked, converted and loaded
- `dialogues`   where conversations come from, how they are cleaned, selected and turned into tokens
- `prefix`      the part of a run before its first eviction, computed once for all policies
- `decoding`    batches of sequences through a model, with CUDA graphs on a GPU
- `generation`  one run: a dialogue through a model, the cache living across turns
- `worker`      a warm process that keeps the model loaded between jobs
- `judges`      verdicts from 1 to 10
- `records`     columns, run keys and files
- `analysis`    tables, statistics, claims
- `report`      page and figures
- `engine_check`  is an inference engine's eviction right? `kvfidelity check`
- `pipeline`    settings, rule parameters, code digest, resources, merge, verify
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvfidelity.cache.attach import new_cache
    from kvfidelity.cache.evictor import EvictionSchedule, Evictor, Trigger
    from kvfidelity.cache.policies import Policy, build_policy, parameter
    from kvfidelity.cache.positions import PositionMode
    from kvfidelity.cache.view import CacheView

__all__ = [
    "CacheView",
    "EvictionSchedule",
    "Evictor",
    "Policy",
    "PositionMode",
    "Trigger",
    "build_policy",
    "new_cache",
    "parameter",
]

_MODULES = {
    "CacheView": "kvfidelity.cache.view",
    "EvictionSchedule": "kvfidelity.cache.evictor",
    "Evictor": "kvfidelity.cache.evictor",
    "Policy": "kvfidelity.cache.policies",
    "PositionMode": "kvfidelity.cache.positions",
    "Trigger": "kvfidelity.cache.evictor",
    "build_policy": "kvfidelity.cache.policies",
    "new_cache": "kvfidelity.cache.attach",
    "parameter": "kvfidelity.cache.policies",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
