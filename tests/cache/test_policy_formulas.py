"""Policies evict from a model's cache by the formula of their paper, which is written out here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from kvfidelity.cache.hooks import cache_argument
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.policies import build_policy
from kvfidelity.cache.rotary import rotate
from kvfidelity.cache.slots import as_grid
from tests.cache.calibrated import TEXT
from tests.cache.policy_examples import (
    cache_of,
    evict,
)
from tests.cache.views import random_view


def window_weights(cache: ManagedCache, layer: int, window: int) -> torch.Tensor:
    """Attention of the last `window` queries, fp64 [H, window, n], written out."""
    assert cache.recent_queries is not None
    recent = cache.recent_queries.of_layer(layer)
    assert recent is not None
    n, ratio = cache.size, recent.shape[0] // cache.rotated_keys(layer).shape[0]
    cos, sin = cache.rotary.angles(torch.arange(n - window, n), recent.device)
    queries = rotate(recent[:, -window:], cos, sin).double()
    keys = cache.rotated_keys(layer).double().repeat_interleave(ratio, 0)
    logits = queries @ keys.transpose(1, 2) * cache.scaling
    later = torch.arange(n) > torch.arange(n - window, n)[:, None]
    return logits.masked_fill(later, -torch.inf).softmax(-1)


def by_group(per_head: torch.Tensor) -> torch.Tensor:
    """[6, n] of query heads as the mean [2, n] over each kv head's three."""
    return per_head.view(2, 3, -1).mean(1)


def snapkv_rank(cache: ManagedCache, layer: int) -> torch.Tensor:
    votes = window_weights(cache, layer, 8).mean(1)
    votes[:, -8:] = 0
    padded = torch.nn.functional.pad(votes, (2, 2))
    rank = by_group(padded.unfold(-1, 5, 1).mean(-1))
    rank[:, -8:] = torch.inf
    return rank


def tova_rank(cache: ManagedCache, layer: int) -> torch.Tensor:
    return window_weights(cache, layer, 1)[:, 0].mean(0)


def expected_attention_rank(cache: ManagedCache, layer: int) -> torch.Tensor:
    assert cache.recent_queries is not None
    recent = cache.recent_queries.of_layer(layer)
    assert recent is not None and recent.shape == (6, 16 + 7, 8)
    recent = recent[:, -16:]
    cos, sin = cache.rotary.angles(torch.arange(60, 60 + 32), recent.device)
    # Row i of the rotated identity is where basis vector i goes.
    turns = torch.stack([rotate(torch.eye(8), c, s).T for c, s in zip(cos, sin, strict=True)])
    turn = turns.double().mean(0)
    keys = cache.rotated_keys(layer)[:, 4:].double().repeat_interleave(3, 0)
    weights = []
    for head in range(6):
        queries = recent[head].double()
        mean = turn @ queries.mean(0)
        covariance = turn @ torch.cov(queries.T, correction=0) @ turn.T
        spread = torch.tensor([float(key @ covariance @ key) for key in keys[head]])
        logits = keys[head] @ mean * cache.scaling + spread * cache.scaling**2 / 2
        weights.append(logits.softmax(0))
    values = cache.layers[layer].live_values.double().norm(dim=-1)
    rank = by_group(torch.stack(weights)) * values[:, 4:]
    return torch.cat([torch.full((2, 4), torch.inf), rank], dim=1)


def unit_filters(queries: torch.Tensor) -> torch.Tensor:
    """fp64 [H, d]: the main eigenvector of each head's queries, on their mean's side."""
    main = torch.linalg.eigh(queries.transpose(1, 2) @ queries).eigenvectors[..., -1]
    return main * (main * queries.mean(1)).sum(-1, keepdim=True).sign()


def finch_rank(cache: ManagedCache, layer: int) -> torch.Tensor:
    before = torch.arange(52, 60)
    rank = by_group((window_weights(cache, layer, 8) * before[:, None]).mean(1))
    rank[:, -8:] = torch.inf
    return rank


def qfilter_rank(cache: ManagedCache, layer: int) -> torch.Tensor:
    """Filters of the queries of the text on which `cache_of` calibrates."""
    other = ManagedCache(cache.rotary, len(cache.layers), query_window=len(TEXT))
    decoder: Any = cache.rotary.decoder
    with torch.inference_mode():
        decoder(torch.tensor([list(TEXT)]), **{cache_argument(decoder): other})
    assert other.recent_queries is not None
    queries = other.recent_queries.of_layer(layer)
    assert queries is not None
    cos, sin = cache.rotary.angles(torch.arange(len(TEXT)), queries.device)
    filters = unit_filters(rotate(queries, cos, sin).double()).view(2, 3, 8).mean(1)
    return (cache.rotated_keys(layer).double() * filters[:, None]).sum(-1)


def lagkv_rank(cache: ManagedCache, layer: int) -> torch.Tensor:
    """Partitions of 8 after 4 sinks: 4..12, ..., 52..60."""
    rank = torch.full((2, 60), torch.inf, dtype=torch.float64)
    for head in range(2):
        for start in range(4, 52, 8):
            total = torch.zeros(8, dtype=torch.float64)
            for tensor in (cache.rotated_keys(layer), cache.layers[layer].live_values):
                own, following = tensor[head].double()[start : start + 16].split(8)
                low, high = following.min(0).values, following.max(0).values
                total += ((own - low) / (high - low)).std(-1).softmax(-1)
            for slot in range(8):
                rank[head, start + slot] = (total < total[slot]).sum() / 8
    return rank - 1e-3 * torch.arange(60) / 60  # the earlier of two equals


def cur_rank(cache: ManagedCache, layer: int) -> torch.Tensor:
    rank = torch.empty(2, 60, dtype=torch.float64)
    keys, values = cache.layers[layer].live_keys, cache.layers[layer].live_values
    for slot in range(60):
        block = slice(slot - slot % 16, min(slot - slot % 16 + 16, 60))
        rank[:, slot] = 1.0
        for tensor in (keys, values):
            squares = tensor.double().pow(2).sum(-1)
            rank[:, slot] *= squares[:, slot] / squares[:, block].sum(-1)
    rank[:, :4] = torch.inf
    return rank


def leverage_rank(cache: ManagedCache, layer: int) -> torch.Tensor:
    """One sketch is drawn for each layer in turn, from the generator of seed 0 and eviction 0."""
    drawn = np.random.default_rng((0, 0)).standard_normal((3, 2, 8, 48))[layer]
    rows = cache.layers[layer].live_keys.double()
    sketched = (rows - rows.mean(1, keepdim=True)) @ torch.from_numpy(drawn) / 48**0.5
    inverse = torch.linalg.inv(sketched.mT @ sketched + 0.01 * torch.eye(48))
    return (sketched @ inverse @ sketched.mT).diagonal(dim1=1, dim2=2)


def criticalkv_rank(cache: ManagedCache, layer: int) -> torch.Tensor:
    scores = snapkv_rank(cache, layer)
    weights = cache.rotary.output_projection(layer, 8).double()
    values = cache.layers[layer].live_values.double().repeat_interleave(3, 0)
    norms = torch.stack([(values[h] @ weights[h]).abs().sum(-1) for h in range(6)])
    rank = (scores.clamp(max=1) + 1e-4) * by_group(norms)
    for head in range(2):
        rank[head, scores[head].topk(12).indices] = torch.inf
    return rank


def chunkkv_rank(cache: ManagedCache, layer: int) -> torch.Tensor:
    """Chunks of 7 by the mean of minus the keys' norm, the last one of 4."""
    norms = -cache.layers[layer].live_keys.double().norm(dim=-1).sum(0)
    rank = torch.cat([chunk.mean().expand(chunk.numel()) for chunk in norms.split(7)])
    return (rank - 1e-6 * torch.arange(60)).expand(2, 60)  # the earlier of two equals


@pytest.mark.parametrize(
    ("kind", "parameters", "rank_of_layer"),
    [
        ("snapkv", {"window": 8}, snapkv_rank),
        ("tova", {}, tova_rank),
        ("expected_attention", {"window": 16, "horizon": 32}, expected_attention_rank),
        ("finch", {"window": 8}, finch_rank),
        ("qfilter", {}, qfilter_rank),
        ("lagkv", {"lag": 8}, lagkv_rank),
        ("cur", {}, cur_rank),
        ("leverage_score", {}, leverage_rank),
        ("criticalkv", {"policy": {"kind": "snapkv", "window": 8}}, criticalkv_rank),
        ("chunkkv", {"policy": "knorm", "chunk": 7}, chunkkv_rank),
    ],
)
def test_policies_evict_by_the_formula_of_their_paper(
    kind: str,
    parameters: dict[str, Any],
    rank_of_layer: Callable[[ManagedCache, int], torch.Tensor],
    llama: Any,
) -> None:
    """Each layer keeps the 24 slots that the paper's formula, written out here, ranks highest."""
    policy = build_policy(kind, parameters)
    cache = cache_of(llama, policy)
    rank = torch.stack([rank_of_layer(cache, layer) for layer in range(3)])
    expected = as_grid(rank.topk(24).indices.sort(-1).values)
    [eviction] = evict(cache, policy)
    assert torch.equal(eviction.kept.expand_as(expected), expected)
    newest = torch.arange(36, 60).expand_as(eviction.kept)
    assert not torch.equal(eviction.kept, newest), "the ranking decided, not the age"


def test_finch_asks_with_the_prompt_that_is_protected() -> None:
    """Of 32 queries that are kept, the prompt's last 6 ask; the prompt survives."""
    policy, short = (build_policy("finch", {"window": window}) for window in (32, 6))
    view = random_view(50, 12, protected=((44, 50),))
    assert torch.equal(policy.keep(view), short.keep(random_view(50, 12)))
    assert not torch.equal(policy.keep(view), policy.keep(random_view(50, 12)))
