"""Whether dialogues are long enough for the thresholds, as extraction says it.

None of this changes which dialogues are extracted, so none of it is among extraction's parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvfidelity.errors import UserError
from kvfidelity.models.geometry import Geometry
from kvfidelity.records.grid import NO_THRESHOLD, cells
from kvfidelity.sizes import size_in_tokens

if TYPE_CHECKING:
    import polars as pl

    from kvfidelity.dialogues.segments import ChatSegmenter

#: More than any planted sentence has.
TOKENS_OF_A_NEEDLE = 64
DEPTHS = 3


def reach_settings(settings: Mapping[str, Any], model: str, dataset: str) -> dict[str, Any]:
    """What the runs of a model and a dataset ask of the dialogues."""
    grid = [cell for cell in cells(settings) if (cell.model, cell.dataset) == (model, dataset)]
    names = sorted({cell.threshold for cell in grid} - {NO_THRESHOLD})
    session = settings["session"]
    own = session["replies"] == "own"
    return {
        "dataset": dataset,
        "count": settings["datasets"][dataset]["count"],
        "dtype": settings["models"][model]["dtype"],
        "max_turns": session["max_turns"],
        "tokens_per_turn": session["max_new_tokens"] if own else 0,
        "tokens_per_dialogue": session["recall"]["needles_per_depth"] * DEPTHS * TOKENS_OF_A_NEEDLE,
        "thresholds": {name: settings["thresholds"][name]["at"] for name in names},
    }


def refuse_too_few(wanted: Mapping[str, Any], kept: int) -> None:
    """Stop where fewer dialogues pass the selection than are to be run.

    Raises:
        UserError: both numbers, and the remedy.
    """
    if kept < wanted["count"]:
        raise UserError(
            f"datasets.{wanted['dataset']}.count is {wanted['count']}, but only {kept} dialogues "
            "pass `select`: lower `count`, or relax `select`"
        )


def longest_of(pool: pl.DataFrame, wanted: Mapping[str, Any], segmenter: ChatSegmenter) -> int:
    """Most tokens that a run can have in its cache, were nothing evicted.

    Prompts may still be cut to fewer, and own replies end earlier.
    """
    from kvfidelity.dialogues.pool import Turn

    longest = 0
    for row in pool.head(wanted["count"]).iter_rows(named=True):
        turns = [Turn(**turn) for turn in row["turns"][: wanted["max_turns"]]]
        more = wanted["tokens_per_turn"] * len(turns) + wanted["tokens_per_dialogue"]
        longest = max(longest, segmenter.count(turns) + more)
    return longest


def not_reached(wanted: Mapping[str, Any], longest: int, model: Path) -> list[dict[str, Any]]:
    """Thresholds that no dialogue that is run can reach.

    Args:
        wanted: what `reach_settings` returns.
        longest: most tokens that a run can have in its cache.
        model: a folder with the model's config.json.

    Returns:
        One entry per threshold: its name, its tokens, and `longest`.
    """
    geometry = Geometry.of(model)
    token_bytes = geometry.token_bytes(wanted["dtype"])
    found = []
    for name, size in wanted["thresholds"].items():
        tokens = size_in_tokens(size, token_bytes=token_bytes, window=geometry.window)
        if longest <= tokens:
            found.append({"threshold": name, "tokens": tokens, "longest": longest})
    return found


def sentence(entry: Mapping[str, Any]) -> str:
    """What the log says of a threshold that is not reached."""
    return (
        f"threshold {entry['threshold']}: nothing will be evicted: the longest dialogue has at "
        f"most {entry['longest']:,} tokens, the threshold is {entry['tokens']:,}"
    )
