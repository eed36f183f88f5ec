"""Documented rules by which engines choose keep sets themselves, played with the core's scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d, pad

from kvfidelity.cache.positions import PositionMode
from kvfidelity.cache.scores import ScoreHistory
from kvfidelity.engine_check.bookkeeping import ranges_of
from kvfidelity.engine_check.probes import Eviction
from kvfidelity.errors import UserError

if TYPE_CHECKING:
    from kvfidelity.decoding.engine import Engine

#: Keys of the rule `attention_blocks`.
KEYS = ("prompt", "after", "block", "start", "recent", "most", "pool")


def attention_blocks(engine: Engine, tokens: tuple[int, ...], rule: Mapping[str, Any]) -> Eviction:
    """The first eviction of OpenVINO GenAI's `CacheEvictionConfig`, with `AggregationMode.SUM` and
    `snapkv_window_size=0`.

    In each layer, of the blocks between the start area and the recent area, those with the largest
    sums of attention stay, over all heads and queries. Each forward's sums are first replaced by
    the largest of the `pool` tokens from a token on.

    Args:
        rule: in tokens: prompt (fed in one forward), after (fed before the eviction, the others
            one by one), block, start, recent, most (`max_cache_size`), pool.

    Raises:
        UserError: a key is missing, or its value is no number of tokens that fits the others.
    """
    if missing := [key for key in KEYS if key not in rule]:
        raise UserError(f"rule attention_blocks lacks {', '.join(missing)}")
    if wrong := [key for key in KEYS if not isinstance(rule[key], int) or rule[key] < 1]:
        raise UserError(f"rule attention_blocks: {', '.join(wrong)} must be a whole number above 0")
    after, block, start = rule["after"], rule["block"], rule["start"]
    if not start < rule["prompt"] <= after < len(tokens) or start % block:
        raise UserError(
            f"rule attention_blocks: start {start} must be whole blocks of {block} and lie in the "
            f"prompt of {rule['prompt']}, which ends before the eviction after {after} of "
            f"{len(tokens)} tokens"
        )
    cache = engine.new_cache(PositionMode.ORIGINAL, collect_scores=True)
    assert cache.scores is not None
    total = torch.zeros(0)
    for count in (rule["prompt"], *[1] * (after - rule["prompt"])):
        seen = cache.size
        engine.feed(cache, tokens[seen : seen + count])
        latest = cache.scores.rows(ScoreHistory.LATEST).sum(1)[:, start:]
        pooled = _largest_from(latest, rule["pool"])
        grown = pad(total, (0, pooled.shape[1] - total.shape[-1])) if len(total) else 0.0
        total = pooled + grown
    end = after // block - rule["recent"] // block
    blocks = total[:, : end * block - start].reshape(len(total), -1, block).sum(-1)
    room = (rule["most"] - start - rule["recent"]) // block
    if not 0 <= room <= blocks.shape[-1]:
        raise UserError(
            f"rule attention_blocks: {rule['most']} tokens have room for {room} blocks between the "
            f"start and the recent area, of {blocks.shape[-1]} that are cached"
        )
    keep = []
    for best in blocks.topk(room, dim=-1).indices.sort(dim=-1).values.tolist():
        middle = [start + block * index + i for index in best for i in range(block)]
        ranges = ranges_of([*range(start), *middle, *range(end * block, after)])
        keep.append(tuple((first, last) for first, last in ranges))
    return Eviction(after, tuple(keep), by_layer=True)


def _largest_from(scores: Tensor, width: int) -> Tensor:
    """The largest of `width` values from each one on, along the last axis of [L, n]."""
    padded = pad(scores, (0, width - 1), value=float("-inf"))
    return max_pool1d(padded[:, None], width, stride=1)[:, 0]


RULES = {"attention_blocks": attention_blocks}
