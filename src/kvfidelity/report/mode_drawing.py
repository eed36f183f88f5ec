"""A small drawing of what each position mode does to the same eviction."""

from __future__ import annotations

from typing import Any

from kvfidelity.cache.positions import PositionMode
from kvfidelity.report.position_modes import PRESENTATIONS

#: The conversation that is drawn: so many tokens, and those that an eviction keeps.
TOKENS = 8
KEPT = (0, 1, 5, 6, 7)


def mode_drawing() -> dict[str, Any]:
    """What the drawing shows, computed from the modes' own traits.

    Returns:
        `tokens`: token indices. `kept`: of each, whether it is kept. `modes`: per mode `name`,
        `meaning`, `positions` (of each token; None if it is evicted), `next` (the position of the
        next token) and `late` (of each token, whether its position is not before the next one's).
    """
    modes = []
    for mode in PositionMode:
        following = mode.traits.next_position(len(KEPT), TOKENS, True)
        slots = {token: slot for slot, token in enumerate(KEPT)}
        positions = [
            (slots[token] if mode.traits.renumbers else token) if token in slots else None
            for token in range(TOKENS)
        ]
        modes.append(
            {
                "name": mode.value,
                "meaning": PRESENTATIONS[mode].meaning,
                "positions": positions,
                "next": following,
                "late": [place is not None and place >= following for place in positions],
            }
        )
    kept = [token in KEPT for token in range(TOKENS)]
    return {"tokens": list(range(TOKENS)), "kept": kept, "modes": modes}
