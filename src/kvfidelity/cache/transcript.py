"""The text that a cache was fed, as token ids."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace


@dataclass
class Transcript:
    """What was fed, for policies and healings that feed it again.

    ids: one for each token seen; those of a forward are added when it starts.
    request: ids fed before a repetition, such as a turn that asks for it.
    """

    ids: list[int] = field(default_factory=list)
    request: tuple[int, ...] = ()

    def add(self, ids: Iterable[int]) -> None:
        """Add tokens."""
        self.ids.extend(ids)

    def fork(self, count: int) -> Transcript:
        """A copy of the first `count` tokens."""
        return replace(self, ids=self.ids[:count])
