"""The arms of a fine-tuning: what a training shows. Nothing heavy is imported."""

from __future__ import annotations

from kvfidelity.cache.positions import PositionMode

#: In tables and claims, the arm of a model that is not fine-tuned.
NO_ARM = "none"
#: Arms in which nothing is evicted: the training as such, and jumps of positions alone.
CONTROL, SKIPS = "control", "skips"
#: The others are position modes: evictions, with positions as under that mode.
ARMS = (CONTROL, *(mode.value for mode in PositionMode), SKIPS)
