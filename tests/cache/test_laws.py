"""The exactness laws: what holds under any policy, for every supported architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kvfidelity.cache.attach import attach, new_cache
from kvfidelity.cache.hooks import cache_argument
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.positions import PositionMode

MODES = list(PositionMode)
TURNS = (1, 23, 1, 40, 35)


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.inference_mode():
        yield


def tokens(count: int, seed: int = 0) -> Tensor:
    return torch.randint(3, 97, (1, count), generator=torch.Generator().manual_seed(seed))


def feed(model: Any, cache: ManagedCache, ids: Tensor) -> Tensor:
    return model(ids, use_cache=True, **{cache_argument(model): cache}).logits[0]


def grown(model: Any, mode: str, ids: Tensor, **options: Any) -> ManagedCache:
    cache = new_cache(model, mode, **options)
    feed(model, cache, ids)
    return cache


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scored", [False, True], ids=["plain", "scored"])
def test_without_eviction_every_mode_equals_the_full_forward(
    model: Any, mode: str, scored: bool
) -> None:
    """Law 1, logits."""
    ids = tokens(sum(TURNS))
    reference = model(ids).logits[0]
    cache = new_cache(model, mode, collect_scores=scored)
    logits = torch.cat([feed(model, cache, part) for part in ids.split(TURNS, dim=1)])
    assert (logits - reference).abs().max() < 1e-4


@pytest.mark.parametrize("mode", MODES)
def test_without_eviction_greedy_tokens_are_the_full_forwards(model: Any, mode: str) -> None:
    """Law 1, greedy tokens over three turns, through `generate` with Hugging Face's own cache."""
    expected = converse(model)
    attach(model)
    found = converse(model, **{cache_argument(model): new_cache(model, mode)})
    assert found.tolist() == expected.tolist()


def converse(model: Any, **cache: ManagedCache) -> Tensor:
    """Three prompts of 9 tokens, 12 greedy tokens after each."""
    text = torch.empty(1, 0, dtype=torch.int64)
    for seed in range(3):
        text = torch.cat([text, tokens(9, seed)], 1)
        ones = torch.ones_like(text)  # a generated pad token is not padding
        length = {"max_new_tokens": 12, "min_new_tokens": 12}
        text = model.generate(text, attention_mask=ones, do_sample=False, **length, **cache)
    return text


def test_padding_is_refused(llama: Any) -> None:
    attach(llama)
    mask = torch.ones(1, 9)
    mask[0, 0] = 0
    argument = {cache_argument(llama): new_cache(llama)}
    with pytest.raises(ValueError, match="without padding"):
        llama(tokens(9), attention_mask=mask, **argument)


def test_an_attached_model_refuses_another_cache(llama: Any) -> None:
    attach(llama)
    with pytest.raises(RuntimeError, match="new_cache"):
        llama(tokens(9))


def test_prefix_keep_set_equals_a_fresh_run(model: Any) -> None:
    """Law 2: stale == rerotated == a fresh run on the kept prefix and the new tokens."""
    ids, new = tokens(60), tokens(17, seed=1)
    fresh = model(torch.cat([ids[:, :25], new], 1)).logits[0, 25:]
    for mode in (PositionMode.STALE, PositionMode.REROTATED):
        cache = grown(model, mode, ids)
        cache.keep(torch.arange(25))
        assert (feed(model, cache, new) - fresh).abs().max() < 1e-4


def test_suffix_keep_set_makes_original_and_rerotated_equal(model: Any) -> None:
    """Law 3: keeping the last slots shifts all positions by one number, which RoPE cannot see."""
    ids, new = tokens(60), tokens(17, seed=1)
    results = []
    for mode in (PositionMode.ORIGINAL, PositionMode.REROTATED):
        cache = grown(model, mode, ids)
        cache.keep(torch.arange(30, 60))
        results.append(feed(model, cache, new))
    assert (results[0] - results[1]).abs().max() < 1e-4


def test_stale_positions_differ_where_the_laws_do_not_make_them_equal(model: Any) -> None:
    """So the laws above do not hold merely because the weights ignore positions."""
    ids, new = tokens(60), tokens(17, seed=1)
    results = []
    for mode in (PositionMode.STALE, PositionMode.REROTATED):
        cache = grown(model, mode, ids)
        cache.keep(torch.arange(30, 60))
        results.append(feed(model, cache, new))
    assert (results[0] - results[1]).abs().max() > 1e-2


def test_a_constant_added_to_every_position_changes_no_logit(model: Any) -> None:
    """Law 4."""
    ids, new = tokens(60), tokens(17, seed=1)
    cache = grown(model, "original", ids)
    plain = feed(model, cache.fork(), new)
    shifted = new_cache(model, "original")
    shifted.slot_table.append(777)
    shifted.slot_table.keep(torch.empty(0, dtype=torch.int64))
    feed(model, shifted, ids)
    assert shifted.slot_table.position.min() == 777
    assert (feed(model, shifted, new) - plain).abs().max() < 5e-4


@pytest.mark.parametrize("mode", MODES)
def test_evictions_in_sequence_equal_one_to_the_last_keep_set(model: Any, mode: str) -> None:
    """Law 5, bit for bit in what is stored, and in the logits."""
    ids, new = tokens(60), tokens(17, seed=1)
    once, stepwise = grown(model, mode, ids), grown(model, mode, ids)
    survivors = torch.arange(60)
    draws = torch.Generator().manual_seed(3)
    for size in (51, 50, 33, 12):
        kept = torch.randperm(survivors.numel(), generator=draws)[:size].sort().values
        stepwise.keep(kept)
        survivors = survivors[kept]
    once.keep(survivors)
    for one, other in zip(once.layers, stepwise.layers, strict=True):
        assert torch.equal(one.rotated_keys, other.rotated_keys)
        assert torch.equal(one.live_values, other.live_values)
    assert torch.equal(feed(model, once, new), feed(model, stepwise, new))


def test_a_keep_set_per_head_equals_attention_over_those_slots_alone(llama: Any) -> None:
    """Per-head eviction: each kv head attends exactly to what it kept, at its own positions."""
    ids, new = tokens(40), tokens(1, seed=1)
    draws = torch.Generator().manual_seed(5)
    shape = (3, 2)
    kept = torch.stack(
        [torch.randperm(40, generator=draws)[:15].sort().values for _ in range(6)]
    ).view(*shape, 15)
    cache = grown(llama, "original", ids)
    before = [(layer.live_keys.clone(), layer.live_values.clone()) for layer in cache.layers]
    cache.keep(kept)
    for layer, (keys, values) in enumerate(before):
        for head in range(2):
            chosen = kept[layer, head]
            assert torch.equal(cache.layers[layer].live_keys[head], keys[head, chosen])
            assert torch.equal(cache.layers[layer].live_values[head], values[head, chosen])
            assert torch.equal(cache.slot_table.position[layer, head], chosen)
    shared = grown(llama, "original", ids)
    shared.keep(torch.arange(15))
    same = grown(llama, "original", ids)
    same.keep(torch.arange(15).expand(*shape, 15))
    assert torch.equal(feed(llama, shared, new), feed(llama, same, new))


@pytest.mark.parametrize("mode", MODES)
def test_reported_bytes_are_those_of_the_live_tensors(llama: Any, mode: str) -> None:
    """Law 6, bytes."""
    cache = grown(llama, mode, tokens(60))
    for size in (60, 41, 7):
        cache.keep(torch.arange(size))
        live = [t for layer in cache.layers for t in (layer.live_keys, layer.live_values)]
        assert cache.nbytes == sum(t.numel() * t.element_size() for t in live)
        assert cache.nbytes == size * 3 * 2 * 2 * 8 * 4
