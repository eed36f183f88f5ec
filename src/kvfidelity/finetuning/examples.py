"""Training dialogues as token ids, from the half of a data set that no result is reported on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import polars as pl

from kvfidelity.dialogues.extract import extract
from kvfidelity.dialogues.parts import DEVELOPMENT, TEST
from kvfidelity.dialogues.pool import Turn
from kvfidelity.dialogues.segments import ChatSegmenter
from kvfidelity.errors import UserError


@dataclass(frozen=True)
class Example:
    """One dialogue.

    ids: all tokens. boundaries: token indices at which a turn starts, without 0. replies: half-open
    spans of the replies' tokens, with the tokens that end a turn.
    """

    ids: tuple[int, ...]
    boundaries: tuple[int, ...]
    replies: tuple[tuple[int, int], ...]


def training_examples(
    data: Path, entry: Mapping[str, Any], segmenter: ChatSegmenter
) -> tuple[list[Example], dict[str, Any]]:
    """The training dialogues of a fetched data set, in rank order.

    Args:
        data: its folder.
        entry: `format` with `format_files` if it needs them, `select` and `dialogues`, their
            number; whatever `select` says of a split, dialogues are of the development half, and
            share not even a first message with one of the test half.

    Returns:
        The examples, and the manifest of the extraction.

    Raises:
        UserError: unusable data, or no dialogue left.
    """
    select = {**entry["select"], "split": DEVELOPMENT, "pool": entry["dialogues"]}
    chosen = {**entry, "select": select, "apart_from": TEST}
    pool, manifest = extract(data, chosen, segmenter)
    return [_example(turns, segmenter) for turns in _turns(pool)], manifest


def check_examples(
    examples: Sequence[Example], dropped: Mapping[str, int], asked: int, window: int
) -> None:
    """Refuse fewer dialogues than the recipe says, and dialogues beyond the trained window.

    Args:
        dropped: number of dialogues left out, by reason.
        asked: `dialogues` of the recipe.
        window: the base model's trained one, in tokens.

    Raises:
        UserError: either is so.
    """
    if len(examples) < asked:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in dropped.items())
        raise UserError(
            f"adapter.dialogues is {asked}, but only {len(examples)} dialogues of the development "
            f"half pass adapter.select ({reasons}): lower `dialogues` to that, or relax `select`"
        )
    longest = max(len(example.ids) for example in examples)
    if longest > window:
        raise UserError(
            f"a training dialogue has {longest} tokens, more than the base model's trained window "
            f"of {window}, beyond which even its full cache is no target: set "
            f"adapter.select.max_tokens to {window} at most"
        )


def examples_digest(examples: Sequence[Example]) -> str:
    """SHA-256 in hex of all tokens and spans."""
    text = json.dumps([asdict(example) for example in examples])
    return hashlib.sha256(text.encode()).hexdigest()


def _turns(pool: pl.DataFrame) -> list[list[Turn]]:
    return [[Turn(**turn) for turn in turns] for turns in pool["turns"].to_list()]


def _example(turns: Sequence[Turn], segmenter: ChatSegmenter) -> Example:
    segments = segmenter.segments(turns)
    parts = [part for segment in segments for part in (segment.prompt_ids, segment.reply_ids)]
    ends = list(accumulate(map(len, parts)))
    return Example(
        ids=tuple(token for part in parts for token in part),
        boundaries=tuple(ends[1:-1:2]),
        replies=tuple(zip(ends[::2], ends[1::2], strict=True)),
    )
