"""Compiled layers that feed several caches give what layers give as they are."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from kvfidelity.decoding import compiled
from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.feeding import Feed, feed_together
from tests.cache.conftest import tiny
from tests.decoding.test_feeding import EXACT, assert_same_state, ids, keep_set, new_caches

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here")


def on_gpu(name: str) -> Engine:
    return Engine.from_parts(tiny(name).cuda(), segmenter=None, tokenizer=None)


@pytest.mark.cuda
@NO_GPU
def test_compiled_layers_feed_like_layers_as_they_are(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over rounds of other batches, lengths and keep sets, all from one compilation."""
    eager, engine = on_gpu(architecture), on_gpu(architecture)
    counters.clear()
    alone, together = new_caches(eager, 7), new_caches(engine, 7)
    for turn, batch in enumerate([7, 7, 3, 5, 2]):
        monkeypatch.setattr(compiled, "FORWARDS_BEFORE_COMPILING", 1)
        parts = [ids(1 + (5 * turn + 7 * n) % 19, 100 * turn + n) for n in range(batch)]
        feeds = [Feed(cache, part) for cache, part in zip(together, parts, strict=False)]
        found = feed_together(engine, feeds)
        for number, (part, cache) in enumerate(zip(parts, alone, strict=False)):
            torch.testing.assert_close(found[number], eager.feed(cache, part), **EXACT)
            assert_same_state(cache, together[number])
            for each in (cache, together[number]):
                each.keep(keep_set(each, (number + turn) % 3))
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.cuda
@NO_GPU
def test_caches_that_were_never_fed_are_not_compiled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "FORWARDS_BEFORE_COMPILING", 0)
    engine, counted = on_gpu("llama"), dict(counters["stats"])
    feed_together(engine, [Feed(cache, ids(5, 1)) for cache in new_caches(engine, 3)])
    assert dict(counters["stats"]) == counted
