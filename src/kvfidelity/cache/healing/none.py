"""No healing."""

from dataclasses import dataclass
from typing import ClassVar

from kvfidelity.cache.healing.base import Healing


@dataclass(frozen=True)
class NoHealing(Healing):
    """Leaves the gap as it is; all other healings are compared with it."""

    kind: ClassVar[str] = "none"
    acts: ClassVar[bool] = False
