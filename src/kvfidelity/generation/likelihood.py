"""The likelihood of given replies, with nothing evicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import polars as pl
import torch

from kvfidelity.cache.positions import PositionMode
from kvfidelity.decoding.engine import Engine
from kvfidelity.dialogues.pool import Turn

SCHEMA: dict[str, Any] = {
    "item": pl.Int32,
    "kind": pl.String,
    "reply_nll_baseline": pl.Float64,
    "tokens": pl.Int32,
}


def score_replies(engine: Engine, texts: pl.DataFrame) -> pl.DataFrame:
    """Nats per token of replies, one row for each.

    Args:
        texts: `item`, `kind`, `history` (turns before), `prompt`, `reply`; rows of one item share
            history and prompt, which are fed once.
    """
    rows = texts.sort("item", maintain_order=True).to_dicts()
    scored = [
        row
        for _, group in groupby(rows, key=lambda row: row["item"])
        for row in _score_item(engine, list(group))
    ]
    return pl.DataFrame(scored, SCHEMA)


@torch.inference_mode()
def _score_item(engine: Engine, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Feed the first reply with its history; of the other replies, only what differs from it."""
    history = [Turn(turn["user"], turn["assistant"]) for turn in rows[0]["history"]]
    segments = [
        engine.segmenter.segments([*history, Turn(row["prompt"], row["reply"])]) for row in rows
    ]
    replies = [parts[-1].text_ids for parts in segments]
    *before, last = segments[0]
    prompt = [token for part in before for token in (*part.prompt_ids, *part.reply_ids)]
    prompt += last.prompt_ids
    cache = engine.new_cache(PositionMode.ORIGINAL)
    # Row j [hidden] predicts the first reply's token j; the last row predicts the token after it.
    first = engine.feed(cache, [*prompt, *replies[0]])[len(prompt) - 1 :].clone()
    known = engine.nll(first[:-1], replies[0]) if replies[0] else torch.empty(0)
    found = []
    for row, reply in zip(rows, replies, strict=True):
        shared = _shared_tokens(replies[0], reply)
        nll = known[:shared]
        if shared < len(reply):
            predicting = first[shared : shared + 1]
            if rest := reply[shared:-1]:
                fork = cache.fork(len(prompt) + shared)
                predicting = torch.cat([predicting, engine.feed(fork, rest)])
            nll = torch.cat([nll, engine.nll(predicting, reply[shared:])])
        mean = float(nll.double().mean()) if reply else None
        about = {"item": row["item"], "kind": row["kind"]}
        found.append(about | {"reply_nll_baseline": mean, "tokens": len(reply)})
    return found


def _shared_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of first tokens that two replies share."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))
