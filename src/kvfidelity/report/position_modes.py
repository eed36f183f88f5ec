"""How each position mode is shown: its meaning in the config's documentation, its look in figures.

Runs do not import this, so another wording or colour makes none of them again. What a mode does is
in `cache.positions`. Nothing heavy is imported: the Snakefile's settings read this.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvfidelity.cache.positions import PositionMode


@dataclass(frozen=True)
class Presentation:
    """How one position mode is shown.

    meaning: for the configuration's documentation.
    colour, marker: in figures; a hex colour that colour-blind readers can tell from the others, and
        a Vega-Lite point shape.
    """

    meaning: str
    colour: str
    marker: str


_PRESENTATIONS = {
    PositionMode.STALE: Presentation(
        meaning="survivors keep their rotation, the next position is the number of cached slots "
        "(what Hugging Face does if you evict by hand)",
        colour="#D55E00",
        marker="circle",
    ),
    PositionMode.ORIGINAL: Presentation(
        meaning="survivors keep their position, the next position is the number of tokens seen",
        colour="#0072B2",
        marker="square",
    ),
    PositionMode.REROTATED: Presentation(
        meaning="the n survivors are rotated to positions 0..n-1, the next position is n",
        colour="#009E73",
        marker="triangle-up",
    ),
}
#: In the order of the modes.
PRESENTATIONS = {mode: _PRESENTATIONS[mode] for mode in PositionMode}
#: Of `shifted-512`, `shifted+64` and so on, which the axis tells apart.
SHIFTED = Presentation(
    meaning="survivors keep their position, and from the first eviction on the next position is "
    "the number of tokens seen, moved by this number (from -999999 to 999999)",
    colour="#767676",
    marker="diamond",
)


def presentation(mode: str) -> Presentation:
    """How a mode is shown, by its name."""
    return PRESENTATIONS.get(PositionMode(mode), SHIFTED)


def position_order(mode: str) -> tuple[int, int]:
    """What to sort modes by: the named ones first, then shifted ones by their shift."""
    known = PositionMode(mode)
    order = list(PositionMode)
    return (order.index(known) if known in order else len(order), known.traits.shift or 0)


def position_mode_schema() -> dict[str, object]:
    """JSON schema of one position mode, with the meaning of each."""
    shown = {mode.value: one for mode, one in PRESENTATIONS.items()} | {"shifted-512": SHIFTED}
    meanings = "; ".join(f"`{mode}`: {one.meaning}" for mode, one in shown.items())
    names = [mode.value for mode in PositionMode]
    return {
        "type": "string",
        "pattern": f"^({'|'.join(PositionMode.patterns())})$",
        "x-names": names,
        "x-expected": f"one of {', '.join(names)}, or a shift such as shifted-512 or shifted+64",
        "description": meanings,
    }
