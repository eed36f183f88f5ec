"""What no dialogue can be: bounds of a `select` entry that exclude each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def select_faults(where: str, select: Mapping[str, Any]) -> Iterator[str]:
    """Least bounds above their largest, one line each.

    Args:
        where: the entry's path in the configuration, such as `datasets.own.select`.
    """
    for unit in ("turns", "tokens"):
        least, most = select.get(f"min_{unit}"), select.get(f"max_{unit}")
        if least is not None and most is not None and least > most:
            yield (
                f"{where}.min_{unit}: {least} is more than max_{unit} {most}, so no dialogue fits; "
                "lower one or raise the other"
            )
