"""Sequences fed together equal each fed alone; a token tree equals its branches fed on copies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.positions import PositionMode
from kvfidelity.cache.ragged import RaggedKeepSet
from kvfidelity.cache.scores import ScoreHistory
from kvfidelity.cache.tree import TokenTree
from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.feeding import Feed, feed_together, plan_forwards
from tests.cache.conftest import tiny
from tests.cache.ragged_sets import random_ragged

#: fp32: a matrix product over more rows may be summed in another order.
EXACT = {"rtol": 1e-4, "atol": 1e-5}
MODES = list(PositionMode)


def engine_of(name: str, chunk: int = 8192) -> Engine:
    engine = Engine.from_parts(tiny(name), segmenter=None, tokenizer=None)
    return Engine(**{**vars(engine), "chunk": chunk, "graphs": {}})


def ids(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 97, (count,), generator=generator).tolist()


def keep_set(cache: ManagedCache, number: int) -> torch.Tensor | RaggedKeepSet:
    """Shared, per-layer, per-head and ragged keep sets in turn: about two thirds of the slots."""
    size = max(1, 2 * cache.size // 3)
    if cache.slot_table.is_ragged:
        return random_ragged(cache.slot_table.counts, size, number)
    layers, heads = len(cache.layers), cache.layers[0].live_keys.shape[0]
    if number % 4 == 3:
        return random_ragged(torch.full((layers, heads), cache.size), size, number)
    shape = [(), (layers,), (layers, heads)][number % 4]
    generator = torch.Generator().manual_seed(number)
    ranks = torch.rand(*shape, cache.size, generator=generator)
    return ranks.topk(size, dim=-1).indices.sort(-1).values


def new_caches(engine: Engine, count: int) -> list[ManagedCache]:
    """All position modes; with scores, without, with recent queries."""
    return [
        engine.new_cache(
            MODES[number % 3], collect_scores=number % 2 == 0, query_window=4 * (number % 3 == 1)
        )
        for number in range(count)
    ]


def assert_same_state(one: ManagedCache, other: ManagedCache) -> None:
    assert torch.equal(one.slot_table.token_index, other.slot_table.token_index)
    assert torch.equal(one.slot_table.position, other.slot_table.position)
    for mine, theirs in zip(one.layers, other.layers, strict=True):
        torch.testing.assert_close(mine.live_keys, theirs.live_keys, **EXACT)
        torch.testing.assert_close(mine.live_values, theirs.live_values, **EXACT)
    if one.scores is not None and other.scores is not None:
        for history in ScoreHistory:
            mine, theirs = one.scores.rows(history), other.scores.rows(history)
            torch.testing.assert_close(mine, theirs, **EXACT)
    assert (one.recent_queries is None) == (other.recent_queries is None)
    if one.recent_queries is not None and other.recent_queries is not None:
        mine, theirs = one.recent_queries.latest(), other.recent_queries.latest()
        torch.testing.assert_close(mine, theirs, **EXACT)


@pytest.mark.parametrize("batch", [1, 2, 7, 16])
@pytest.mark.parametrize("chunk", [8192, 11])
def test_fed_together_equals_fed_alone(architecture: str, batch: int, chunk: int) -> None:
    """Over three rounds of ragged lengths with evictions between; 11: several forwards a round."""
    engine = engine_of(architecture, chunk)
    alone, together = new_caches(engine, batch), new_caches(engine, batch)
    for turn in range(3):
        lengths = [1 + (5 * turn + 7 * number) % 19 for number in range(batch)]
        parts = [ids(length, 100 * turn + n) for n, length in enumerate(lengths)]
        expected = [engine.feed(cache, part) for cache, part in zip(alone, parts, strict=True)]
        feeds = [Feed(cache, part) for cache, part in zip(together, parts, strict=True)]
        for found, wanted in zip(feed_together(engine, feeds), expected, strict=True):
            torch.testing.assert_close(found, wanted, **EXACT)
        for number, (one, other) in enumerate(zip(alone, together, strict=True)):
            assert_same_state(one, other)
            for cache in (one, other):
                cache.keep(keep_set(cache, number + turn))


@pytest.mark.parametrize("kept", [2, 3], ids=["per_head", "ragged"])
@pytest.mark.parametrize("mode", MODES)
def test_a_tree_equals_feeding_each_branch_on_a_copy(
    architecture: str, mode: PositionMode, kept: int
) -> None:
    engine = engine_of(architecture)
    cache = engine.new_cache(mode, collect_scores=True)
    engine.feed(cache, ids(40, 1))
    cache.keep(keep_set(cache, kept))
    before = cache.fork()
    tree = TokenTree()
    trunk = tree.extend(ids(6, 2))
    twigs = [tree.extend(ids(3, 3), trunk[-1]), tree.extend(ids(4, 4), trunk[2])]
    other = tree.extend(ids(5, 5))
    branches = [[*trunk, *twigs[0]], [*trunk[:3], *twigs[1]], other]
    found = engine.feed_tree(cache, tree)
    for branch in branches:
        wanted = engine.feed(cache.fork(), [tree.ids[index] for index in branch])
        torch.testing.assert_close(found[branch], wanted, **EXACT)
    assert_same_state(cache, before)


def test_trees_and_sequences_share_a_forward() -> None:
    engine = engine_of("qwen2")
    caches = new_caches(engine, 4)
    for number, cache in enumerate(caches):
        engine.feed(cache, ids(20 + number, number))
    tree = TokenTree()
    for seed in range(3):
        tree.extend(ids(4, seed))
    feeds = [Feed(caches[0], ids(7, 50)), Feed(caches[1], tree.ids, tree)]
    feeds += [Feed(caches[2], ids(1, 51)), Feed(caches[3], tree.ids, tree)]
    copies = [Feed(feed.cache.fork(), feed.ids, feed.tree) for feed in feeds]
    for found, copy in zip(feed_together(engine, feeds), copies, strict=True):
        torch.testing.assert_close(found, feed_together(engine, [copy])[0], **EXACT)


def test_a_tree_knows_its_ancestors() -> None:
    tree = TokenTree()
    trunk = tree.extend([7, 8])
    tree.extend([9], trunk[-1])
    tree.extend([10])
    assert tree.depths().tolist() == [0, 1, 2, 0]
    assert tree.sees().int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1]]


SIZES = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4), min_size=1, max_size=9)


@given(SIZES, st.integers(1, 40))
def test_every_chunk_is_in_one_forward_in_order_and_within_the_limit(
    sizes: list[list[int]], limit: int
) -> None:
    forwards = list(plan_forwards(sizes, limit))
    seen: list[list[int]] = [[] for _ in sizes]
    for forward in forwards:
        assert len(forward) == 1 or sum(count for _, count in forward) <= limit
        indices = [index for index, _ in forward]
        assert len(set(indices)) == len(indices), "a chunk follows the earlier ones of its feed"
        for index, count in forward:
            seen[index].append(count)
    assert seen == sizes
    assert len(forwards) <= sum(map(len, sizes))


def test_feeding_through_the_scheduler_shares_forwards(engine: Engine) -> None:
    from kvfidelity.decoding.scheduler import run_batch

    forwards: list[int] = []
    model = engine.model.get_decoder()
    hook = model.register_forward_hook(
        lambda module, args, kwargs, out: forwards.append(kwargs["input_ids"].shape[1]),
        with_kwargs=True,
    )

    def feed(at: Engine, seed: int) -> Any:
        cache = at.new_cache("original")
        return [at.feed(cache, ids(5 + seed, seed + turn)) for turn in range(3)]

    try:
        run_batch(engine, [lambda at, seed=seed: feed(at, seed) for seed in range(4)], 4)
    finally:
        hook.remove()
    assert forwards == [5 + 6 + 7 + 8] * 3
