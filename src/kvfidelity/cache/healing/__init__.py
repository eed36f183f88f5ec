"""What is done about the gap that an eviction leaves, one file per healing.

A healing acts at an eviction, on a keep set that a policy chose: it may set slots aside for itself
(`choose`), read what is about to be lost (`read`), and change what is left (`write`). A new healing
needs only a new file here. `docs/healing.md` has the formulas.
"""

from kvfidelity.cache.healing.base import Choice, FedMessages, Healed, Healing
from kvfidelity.cache.healing.registry import build_healing, known_healings

__all__ = ["Choice", "FedMessages", "Healed", "Healing", "build_healing", "known_healings"]
