"""Laws 6, 7 and 10 on a GPU for caches whose kv heads hold different numbers of slots."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from kvfidelity.cache.evictor import EvictionSchedule, Evictor, Trigger
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.policies import build_policy
from kvfidelity.cache.positions import PositionMode
from kvfidelity.cache.ragged import RaggedKeepSet
from kvfidelity.cache.scores import ScoreHistory
from kvfidelity.cache.tree import TokenTree
from kvfidelity.decoding import compiled
from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.feeding import Feed, feed_together
from kvfidelity.decoding.generate import generate
from kvfidelity.decoding.sampling import Sampling, uniform_draws
from kvfidelity.decoding.sequence import SequenceState
from tests.cache.conftest import CONFIGS, tiny
from tests.cache.ragged_sets import random_ragged
from tests.decoding.test_feeding import ids, keep_set, new_caches
from tests.models.tiny import tiny_tokenizer

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here"),
]
MODES = list(PositionMode)
CLOSE = {"rtol": 1e-3, "atol": 1e-4}


class Segmenter:
    stop_ids: frozenset[int] = frozenset()
    end_of_turn_ids = (5,)


def engines(name: str) -> tuple[Engine, Engine]:
    """The same model on the CPU and on the GPU."""
    one, other = (
        Engine.from_parts(tiny(name).to(device), Segmenter(), tiny_tokenizer())
        for device in ("cpu", "cuda")
    )
    return one, other


def ragged(cache: ManagedCache, seed: int) -> RaggedKeepSet:
    """About two thirds of the slots of a cache on a CPU."""
    shape = (len(cache.layers), cache.layers[0].live_keys.shape[0])
    counts = torch.full(shape, cache.size)
    if cache.slot_table.is_ragged:
        counts = cache.slot_table.counts
    return random_ragged(counts, max(1, 2 * cache.size // 3), seed)


def assert_same(one: ManagedCache, other: ManagedCache) -> None:
    """Slots, positions, scores, recent queries, keys and values; and bytes, to the last one."""
    assert (one.size, one.nbytes) == (other.size, other.nbytes)
    for name in ("token_index", "position"):
        mine, theirs = (getattr(each.slot_table, name) for each in (one, other))
        assert torch.equal(mine, theirs.cpu())
    pairs = [
        (getattr(mine, name), getattr(theirs, name))
        for mine, theirs in zip(one.layers, other.layers, strict=True)
        for name in ("live_keys", "live_values")
    ]
    if one.scores is not None and other.scores is not None:
        pairs += [(one.scores.rows(each), other.scores.rows(each)) for each in ScoreHistory]
    if one.recent_queries is not None and other.recent_queries is not None:
        pairs.append((one.recent_queries.latest(), other.recent_queries.latest()))
    if one.ragged is not None:
        pairs += [
            tuple(each.rotated_head_keys(layer, group) for each in (one, other))
            for layer, row in enumerate(one.slot_table.counts)
            for group in range(len(row))
        ]
    for mine, theirs in pairs:
        torch.testing.assert_close(theirs.cpu(), mine, **CLOSE)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_fed_together_on_a_gpu_equals_fed_alone_on_a_cpu(name: str) -> None:
    """Six caches of which some are ragged, over three rounds; then a tree, sections, a copy."""
    here, there = engines(name)
    alone, together = new_caches(here, 6), new_caches(there, 6)
    for turn in range(3):
        lengths = [1 + (5 * turn + 7 * number) % 19 for number in range(6)]
        parts = [ids(length, 100 * turn + n) for n, length in enumerate(lengths)]
        last = [(n + turn) % 2 == 0 for n in range(6)]
        feeds = [
            Feed(cache, part, latest_is_last=at_end)
            for cache, part, at_end in zip(together, parts, last, strict=True)
        ]
        found = feed_together(there, feeds[:5])
        found.append(there.feed(together[5], parts[5], latest_is_last=last[5]))
        for number, (one, other) in enumerate(zip(alone, together, strict=True)):
            expected = here.feed(one, parts[number], latest_is_last=last[number])
            torch.testing.assert_close(found[number].cpu(), expected, **CLOSE)
            assert_same(one, other)
            seed = number + turn
            kept = ragged(one, seed) if number in (1, 3, 4, 5) else keep_set(one, seed)
            shares = [cache.attention_share_outside(kept) for cache in (one, other)]
            assert shares[0] == (None if shares[1] is None else pytest.approx(shares[1], abs=1e-4))
            for cache in (one, other):
                cache.keep(kept)
            assert_same(one, other)
    tree = TokenTree()
    trunk = tree.extend(ids(5, 2))
    tree.extend(ids(3, 3), trunk[1])
    sections = [ids(3, 4), ids(1, 5), ids(300, 6)]  # more than there is room for
    results = []
    for engine, cache in ((here, alone[1]), (there, together[1])):
        copy = cache.fork()
        branch = engine.feed_tree(cache, tree)
        with cache.rollback_after():
            engine.feed(cache, ids(9, 7))
        fed = engine.feed_sections(cache, sections)
        again = torch.cat([engine.feed(copy, part, latest_is_last=True) for part in sections])
        torch.testing.assert_close(fed.hidden, again, **CLOSE)
        results.append([branch.cpu(), fed.hidden.cpu()])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(theirs, mine, **CLOSE)
    assert_same(alone[1], together[1])


@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_compiled_layers_feed_ragged_caches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over rounds of other batches and lengths, all from one compilation."""
    here, there = engines(name)
    monkeypatch.setattr(compiled, "FORWARDS_BEFORE_COMPILING", 0)
    counters.clear()
    alone, together = new_caches(here, 5), new_caches(there, 5)
    for turn, batch in enumerate([5, 5, 3, 2]):
        parts = [ids(2 + (5 * turn + 7 * n) % 19, 100 * turn + n) for n in range(batch)]
        if not turn:  # caches that were never fed are not compiled for
            feed_together(there, [Feed(cache, ids(5, 1)) for cache in together])
            for cache in alone:
                here.feed(cache, ids(5, 1))
            for pair in zip(alone[1:], together[1:], strict=True):
                kept = ragged(pair[0], 1)
                for cache in pair:
                    cache.keep(kept)
        feeds = [Feed(cache, part) for cache, part in zip(together, parts, strict=False)]
        found = feed_together(there, feeds)
        for number, (part, cache) in enumerate(zip(parts, alone, strict=False)):
            torch.testing.assert_close(found[number].cpu(), here.feed(cache, part), **CLOSE)
            assert_same(cache, together[number])
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("name", list(CONFIGS))
def test_graph_steps_of_ragged_caches(name: str) -> None:
    """60 tokens with evictions and scores: tokens, nats, scores, recent queries, positions."""
    mode = MODES[list(CONFIGS).index(name) % 3]
    found = []
    for engine in engines(name):
        cache = engine.new_cache(mode, collect_scores=True, query_window=8)
        one_head = engine.model.config.num_key_value_heads == 1  # then only layers can differ
        kind, more = ("pyramidkv", {"beta": 4}) if one_head else ("adakv", {})
        policy = build_policy(kind, {"policy": "h2o", **more})
        evictor = Evictor(policy, EvictionSchedule(Trigger.STEP, 70, 50))
        hidden = engine.feed(cache, list(range(3, 63)))[-1:]
        reply = generate(engine, cache, evictor, hidden, 60, Sampling(), 0)
        assert len(evictor.log) == 3
        assert all(eviction.kept.counts.unique().numel() > 1 for eviction in evictor.log)
        found.append((reply.ids, torch.tensor(reply.nll), cache))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[1][1], found[0][1], **CLOSE)
    assert_same(found[0][2], found[1][2])


def test_a_graph_of_ragged_caches_serves_every_cache_and_index() -> None:
    """Ragged and uniform caches in one batch, one of them released and its index used again."""
    from kvfidelity.decoding.steps_cudagraph import GraphSteps

    here, there = engines("llama")
    alone, together = new_caches(here, 4), new_caches(there, 4)
    for number, (one, other) in enumerate(zip(alone, together, strict=True)):
        for engine, cache in ((here, one), (there, other)):
            engine.feed(cache, ids(40 + 9 * number, number))
        kept = ragged(one, number) if number else torch.arange(5, 30)
        for cache in (one, other):
            cache.keep(kept)
    steps = GraphSteps(there, 3, sampled=False, max_new_tokens=64, ragged=True, compiled=False)
    baseline = Evictor(build_policy("baseline", {}), EvictionSchedule(Trigger.TURN, None))

    def play(number: int, index: int, count: int) -> None:
        state = SequenceState(
            together[number], baseline, Sampling(), 20, uniform_draws(20, 0), token=17
        )
        steps.admit(index, state)
        for _ in range(count):
            steps.step()

    play(0, 0, 2)
    play(1, 2, 3)
    play(2, 1, 1)
    for index, number in ((0, 0), (1, 2), (2, 1)):
        state = steps._sequences[index]
        fed, alive = steps.sync(index)
        assert alive and fed == (6, 1, 4)[index]
        chosen, _ = steps.chosen(index, fed)
        steps.release(index)
        for token, following in zip([state.token, *chosen[:-1]], chosen, strict=True):
            hidden = here.feed(alone[number], [token])
            assert int(here.logits(hidden).argmax()) == following
    play(3, 1, 5)
    fed, _ = steps.sync(1)
    for token in [17, *steps.chosen(1, fed)[0][:-1]]:
        here.feed(alone[3], [token])
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)
