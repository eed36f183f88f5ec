"""Sections of one forward give the scores and queries of feeding them one after another."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.scores import ScoreHistory
from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.feeding import Feed, feed_together
from tests.cache.conftest import tiny

#: fp32: a matrix product over more rows may be summed in another order.
EXACT = {"rtol": 1e-4, "atol": 1e-5}
FIRST, SECTIONS = 5, (3, 1, 12, 2, 9)


def assert_same_state(one: ManagedCache, other: ManagedCache) -> None:
    assert one.size == other.size
    assert (one.scores is None) == (other.scores is None)
    if one.scores is not None and other.scores is not None:
        for history in ScoreHistory:
            found = one.scores.rows(history)
            torch.testing.assert_close(found, other.scores.rows(history), **EXACT)
    assert (one.recent_queries is None) == (other.recent_queries is None)
    if one.recent_queries is not None and other.recent_queries is not None:
        torch.testing.assert_close(
            one.recent_queries.latest(), other.recent_queries.latest(), **EXACT
        )


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, NO_GPU])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("window", [0, 4, 64])
def test_sections_equal_feeding_one_after_another(
    architecture: str, scored: bool, window: int, device: str
) -> None:
    engine = Engine.from_parts(tiny(architecture).to(device), segmenter=None, tokenizer=None)
    total = FIRST + sum(SECTIONS) + 6
    ids = torch.randint(3, 97, (total,), generator=torch.Generator().manual_seed(1)).tolist()
    together, alone = (
        engine.new_cache("original", collect_scores=scored, query_window=window) for _ in range(2)
    )
    for cache in (together, alone):
        engine.feed(cache, ids[:FIRST])
    sections, start, hidden, states = [], FIRST, [], []
    for count in SECTIONS:
        sections.append(ids[start : start + count])
        hidden.append(engine.feed(alone, sections[-1], latest_is_last=True))
        states.append(alone.fork())
        start += count
    fed = engine.feed_sections(together, sections)
    torch.testing.assert_close(fed.hidden, torch.cat(hidden), **EXACT)
    for end, state in zip(fed.ends, states, strict=True):
        assert_same_state(end, state)
    assert_same_state(together, alone)
    kept = torch.arange(0, together.size, 2)
    for cache in (together, alone):
        cache.keep(kept)
    rest = [engine.feed(cache, ids[start:]) for cache in (together, alone)]
    torch.testing.assert_close(rest[0], rest[1], **EXACT)
    assert_same_state(together, alone)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("caches", "chunk"), [(1, 8192), (3, 8192), (1, 19), (1, 7)])
def test_the_latest_scores_of_a_long_feed_can_be_those_of_its_last_token(
    architecture: str, caches: int, chunk: int, device: str
) -> None:
    """Also where the last of several chunks is a single token."""
    engine = Engine.from_parts(tiny(architecture).to(device), segmenter=None, tokenizer=None)
    engine = dataclasses.replace(engine, chunk=chunk)
    ids = torch.randint(3, 97, (20,), generator=torch.Generator().manual_seed(2)).tolist()
    at_once = [engine.new_cache("original", collect_scores=True) for _ in range(caches)]
    alone = engine.new_cache("original", collect_scores=True)
    feed_together(engine, [Feed(cache, ids, latest_is_last=True) for cache in at_once])
    engine.feed(alone, ids[:-1])
    engine.feed(alone, ids[-1:])
    for cache in at_once:
        assert_same_state(cache, alone)
