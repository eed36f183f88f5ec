"""The drawing of the position modes in docs/concepts.md, computed by the library."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from kvfidelity.cache.positions import PositionMode
from kvfidelity.cache.slots import SlotTable

PAGE = (Path(__file__).parents[1] / "docs/concepts.md").read_text(encoding="utf-8")
SEEN, EVICTED = 8, (2, 3, 4)
KEPT = [token for token in range(SEEN) if token not in EVICTED]


def evicted_table(mode: PositionMode) -> SlotTable:
    slots = SlotTable(mode)
    slots.append(SEEN)
    slots.keep(torch.tensor(KEPT))
    return slots


def by_token(values: list[str]) -> str:
    """Cells of the kept tokens, under their token index."""
    cells = dict(zip(KEPT, values, strict=True))
    return "".join(f"{cells.get(token, ''):<5}" for token in range(SEEN))


def line(label: str, cells: str) -> str:
    return f"{label:<21}{cells}".rstrip()


def drawing() -> str:
    tokens = range(SEEN)
    evicted = ["x" if token in EVICTED else "" for token in tokens]
    lines = [
        line("token index", "".join(f"{token:<5}" for token in tokens) + "next"),
        line("evicted", "".join(f"{cell:<5}" for cell in evicted)),
    ]
    for mode in PositionMode:
        slots = evicted_table(mode)
        positions = slots.position.flatten().tolist()
        distances = [slots.next_position - position for position in positions]
        marked = [f"{value}*" if value <= 0 else str(value) for value in distances]
        placed = by_token([str(position) for position in positions])
        lines += [
            "",
            line(f"{mode.value:<10} position", f"{placed}{slots.next_position}"),
            line(f"{'':<10} distance", by_token(marked)),
        ]
    return "\n".join(lines)


def test_the_drawing_is_what_the_slot_table_does() -> None:
    [drawn] = re.findall(r"```text\n(.*?)\n```", PAGE, flags=re.DOTALL)
    assert drawn == drawing()
