"""How likely the model finds given replies with nothing evicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import polars as pl
import torch

from kvfidelity.cache.managed import ManagedCache
from kvfidelity.dialogues.pool import Turn
from kvfidelity.session.engine import Engine

SCHEMA: dict[str, Any] = {
    "item": pl.Int32,
    "kind": pl.String,
    "reply_nll_full": pl.Float64,
    "tokens": pl.Int32,
}


def likelihoods(engine: Engine, texts: pl.DataFrame) -> pl.DataFrame:
    """Nats per token of replies, one row each.

    Args:
        texts: `item`, `kind`, `history` (turns before), `prompt`, `reply`; rows of one item share
            history and prompt, which are read once.
    """
    rows = texts.sort("item", maintain_order=True).to_dicts()
    found = [
        measured
        for _, group in groupby(rows, key=lambda row: row["item"])
        for measured in _of_one_item(engine, list(group))
    ]
    return pl.DataFrame(found, SCHEMA)


@torch.inference_mode()
def _of_one_item(engine: Engine, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    history = [Turn(turn["user"], turn["assistant"]) for turn in rows[0]["history"]]
    cache = engine.new_cache("original")
    last: torch.Tensor | None = None
    known: dict[tuple[int, ...], torch.Tensor] = {}
    found = []
    for row in rows:
        *before, segment = engine.segmenter.segments([*history, Turn(row["prompt"], row["reply"])])
        if last is None:
            ids = [token for part in before for token in (*part.prompt_ids, *part.reply_ids)]
            last = engine.feed(cache, [*ids, *segment.prompt_ids])[-1:].clone()
        reply = segment.reply_ids[: -len(engine.segmenter.end_of_turn_ids)]
        nll = None
        if reply:
            # The beginning of a reply that was read is not read again.
            whole = next((ids for ids in known if ids[: len(reply)] == reply), reply)
            if whole not in known:
                known[whole] = _token_nll(engine, cache, last, whole)
            nll = float(known[whole][: len(reply)].double().mean())
        about = {"item": row["item"], "kind": row["kind"]}
        found.append(about | {"reply_nll_full": nll, "tokens": len(reply)})
    return found


def _token_nll(
    engine: Engine, cache: ManagedCache, last: torch.Tensor, reply: Sequence[int]
) -> torch.Tensor:
    """Nats of each token of a reply [m] after what `cache` holds; it is left as it was.

    Args:
        last: the hidden state [1, hidden] that predicts the first.
    """
    predicting = last
    if len(reply) > 1:
        with cache.aside():
            predicting = torch.cat([last, engine.feed(cache, reply[:-1])])
    return engine.nll(predicting, reply)
