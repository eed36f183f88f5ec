"""Disruption of attention by an eviction, against attention written out as in Hugging Face."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

from kvfidelity import new_cache
from kvfidelity.cache.evictor import EvictionSchedule, Evictor, Trigger
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.policies import build_policy
from kvfidelity.cache.ragged import RaggedKeepSet
from kvfidelity.metrics import disruption as module
from kvfidelity.metrics.disruption import DisruptionMeter, disruption
from kvfidelity.records.frames import disruption_values, evictions_frame
from tests.cache.conftest import CONFIGS, tiny

WINDOW = 5


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny("llama")


def cache_of(model: Any, mode: str, tokens: int = 24, **options: Any) -> ManagedCache:
    cache = new_cache(model, positions=mode, query_window=WINDOW, **options)
    feed(model, cache, tokens)
    return cache


def feed(model: Any, cache: ManagedCache, tokens: int) -> None:
    first = 3 + cache.slot_table.tokens_seen
    with torch.inference_mode():
        model(input_ids=torch.arange(first, first + tokens)[None] % 90, past_key_values=cache)


def plain_output(
    cache: ManagedCache, layer: int, head: int, slots: list[int], position: Tensor, query_at: Tensor
) -> Tensor:
    """One query head's outputs [w, d] over slots at these positions, seen by token index."""
    recent = cache.recent_queries
    assert recent is not None
    queries = recent.of_layer(layer)
    assert queries is not None
    width, own = queries.shape[1], cache.layers[layer]
    groups = own.live_keys.shape[0]
    keys = repeat_kv(own.live_keys[None], queries.shape[0] // groups)[0, head, slots]
    values = repeat_kv(own.live_values[None], queries.shape[0] // groups)[0, head, slots]
    rotary = cache.rotary.rotary
    (query, _), (_, key) = (
        apply_rotary_pos_emb(x[None, None], x[None, None], *rotary(x, at[None]))
        for x, at in ((queries[head], query_at), (keys, position))
    )
    logits = query[0, 0] @ key[0, 0].T * cache.scaling
    seen = cache.slot_table.tokens_seen
    table = cache.slot_table.token_index
    token = table[min(layer, table.shape[0] - 1), min(head, table.shape[1] - 1)][slots]
    logits = logits.masked_fill(token > torch.arange(seen - width, seen)[:, None], -torch.inf)
    return torch.softmax(logits, -1).nan_to_num() @ values


def brute_force(cache: ManagedCache, kept: Tensor, layer: int, head: int) -> list[float]:
    """Disruption of one query head by a shared keep set: by tokens, and by positions."""
    seen = cache.slot_table.tokens_seen
    after = cache.slot_table.fork()
    after.keep(kept)
    everything = list(range(cache.size))
    token = cache.slot_table.token_index[0, 0]
    true = torch.arange(seen - WINDOW, seen)
    whole = plain_output(cache, layer, head, everything, token, true)
    survivors = plain_output(cache, layer, head, kept.tolist(), token[kept], true)
    moved = plain_output(
        cache, layer, head, kept.tolist(), after.position[0, 0], true - seen + after.next_position
    )
    sees_none = (token[kept].min() > true)[:, None]
    whole = whole.masked_fill(sees_none, 0)
    norm = whole.norm()
    return [float((survivors - whole).norm() / norm), float((moved - survivors).norm() / norm)]


@settings(max_examples=25)
@given(
    mode=st.sampled_from(["stale", "original", "rerotated", "shifted+7", "shifted-16"]),
    first=st.sets(st.integers(0, 23), min_size=1, max_size=24),
    second=st.sets(st.integers(0, 8), min_size=1, max_size=9),
    at_once=st.sampled_from([3, 2048]),
)
def test_disruption_equals_attention_written_out(
    model: Any, mode: str, first: set[int], second: set[int], at_once: int
) -> None:
    """At a first eviction and at a second, in parts of three slots and in one."""
    cache = cache_of(model, mode)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SLOTS_AT_ONCE", at_once)
        check(cache, torch.tensor(sorted(first)))
        cache.keep(torch.tensor(sorted(first)))
        feed(model, cache, 8)
        check(cache, torch.tensor(sorted(slot for slot in second if slot < cache.size)))


def check(cache: ManagedCache, kept: Tensor) -> None:
    found = disruption(cache, kept, WINDOW)
    assert found is not None
    layers, heads = found.tokens.shape
    assert (layers, heads) == (len(cache.layers), CONFIGS["llama"].num_attention_heads)
    for layer in range(layers):
        for head in range(heads):
            one = [float(found.tokens[layer, head]), float(found.positions[layer, head])]
            assert one == pytest.approx(brute_force(cache, kept, layer, head), rel=2e-3, abs=2e-5)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_true_positions_disrupt_nothing_and_all_slots_lose_nothing(name: str) -> None:
    model = tiny(name)
    for mode in ("original", "shifted+0"):
        cache = cache_of(model, mode)
        found = disruption(cache, torch.tensor([0, 1, 2, 9, 17, 22, 23]), WINDOW)
        assert found is not None
        assert not found.positions.any() and not found.future.any()
        assert (found.tokens > 0).all()
    for mode in ("stale", "rerotated"):
        everything = disruption(cache_of(model, mode), torch.arange(24), WINDOW)
        assert everything is not None
        assert not everything.positions.any() and everything.tokens.max() < 1e-6


def test_a_suffix_is_in_its_true_place_under_rerotated_and_in_the_future_under_stale(
    model: Any,
) -> None:
    kept = torch.arange(12, 24)
    found = {
        mode: disruption(cache_of(model, mode), kept, WINDOW) for mode in ("rerotated", "stale")
    }
    rerotated, stale = found["rerotated"], found["stale"]
    assert rerotated is not None and stale is not None
    assert not rerotated.positions.any() and not rerotated.future.any()
    assert torch.equal(rerotated.tokens, stale.tokens), "tokens do not depend on positions"
    assert stale.positions.min() > 0.01
    # The next position is 12, and the survivors have 12 to 23.
    assert stale.future.min() == pytest.approx(1)


def test_the_whole_error_is_at_most_the_sum_of_its_parts(model: Any) -> None:
    cache = cache_of(model, "stale")
    kept = torch.tensor([0, 1, 2, 3, 20, 21, 22, 23])
    found = disruption(cache, kept, WINDOW)
    assert found is not None
    seen, at = cache.slot_table.tokens_seen, torch.arange(24)
    after = cache.slot_table.fork()
    after.keep(kept)
    true = torch.arange(seen - WINDOW, seen)
    for layer in range(found.tokens.shape[0]):
        for head in range(found.tokens.shape[1]):
            whole = plain_output(cache, layer, head, at.tolist(), at, true)
            stale_at = true - seen + after.next_position
            moved = plain_output(cache, layer, head, kept.tolist(), after.position[0, 0], stale_at)
            error = (moved - whole).norm() / whole.norm()
            assert error <= found.tokens[layer, head] + found.positions[layer, head] + 1e-5


def test_keep_sets_per_layer_per_head_and_ragged_agree_where_they_are_the_same(model: Any) -> None:
    config = CONFIGS["llama"]
    layers, groups = config.num_hidden_layers, config.num_key_value_heads
    kept = torch.tensor([0, 1, 7, 8, 20, 23])
    for mode in ("stale", "rerotated", "original"):
        cache = cache_of(model, mode)
        shared = disruption(cache, kept, WINDOW)
        rows = kept.expand(layers, groups, -1)
        for other in (rows[:, 0], rows, RaggedKeepSet.of_rows([list(row) for row in rows])):
            same = disruption(cache, other, WINDOW)
            assert shared is not None and same is not None
            for name in ("tokens", "positions", "future"):
                torch.testing.assert_close(getattr(same, name), getattr(shared, name))


def test_heads_with_different_numbers_of_slots_are_measured_one_by_one(model: Any) -> None:
    """A second eviction, of a cache that is ragged already: head by head as of a shared one."""
    config = CONFIGS["llama"]
    layers, groups = config.num_hidden_layers, config.num_key_value_heads
    cache = cache_of(model, "stale")
    sizes = [10 + (1 if head % 2 else -1) for head in range(groups)]
    cache.keep(RaggedKeepSet.of_rows([[torch.arange(n) * 2 for n in sizes]] * layers))
    feed(model, cache, 6)
    counts = cache.slot_table.counts
    again = [
        [
            torch.arange(int(counts[layer, head]) - 8, int(counts[layer, head]))
            for head in range(groups)
        ]
        for layer in range(layers)
    ]
    found = disruption(cache, RaggedKeepSet.of_rows(again), WINDOW)
    assert found is not None and found.tokens.shape == (layers, config.num_attention_heads)
    assert found.tokens.isfinite().all() and found.positions.isfinite().all()
    assert (found.tokens > 0).all()


def test_without_queries_nothing_is_measured(model: Any) -> None:
    kept = torch.tensor([0, 1])
    cache = new_cache(model, positions="stale")
    feed(model, cache, 4)
    assert disruption(cache, kept, WINDOW) is None
    assert disruption(new_cache(model, query_window=4), kept, WINDOW) is None
    assert set(disruption_values(None).values()) == {None}


@pytest.mark.parametrize("kind", ["streaming_llm", "tova", "snapkv"])
def test_an_evictor_measures_before_it_evicts_and_the_log_has_it(model: Any, kind: str) -> None:
    """For a keep set of all, of each layer and of each head; measuring changes no keep set."""
    policy = build_policy(kind, {"window": 4} if kind == "snapkv" else {})
    schedule = EvictionSchedule(Trigger.TURN, 20, 12)
    evictor = Evictor(policy, schedule, measure=DisruptionMeter(WINDOW))
    cache, blind = (cache_of(model, "stale") for _ in range(2))
    eviction, plain = evictor.before_turn(cache), Evictor(policy, schedule).before_turn(blind)
    assert eviction is not None and plain is not None and plain.disruption is None
    assert torch.equal(eviction.kept, plain.kept)
    expected = disruption(cache_of(model, "stale"), eviction.kept, WINDOW)
    assert expected is not None and eviction.disruption is not None
    assert torch.equal(eviction.disruption.positions, expected.positions)
    frame = evictions_frame(evictor.log, cache.slot_table.mode)
    by_head = torch.tensor(
        [row for rows in frame["disruption_positions_by_head"].to_list() for row in rows]
    )
    assert by_head.flatten().tolist() == pytest.approx(expected.positions.flatten().tolist())
    means = dict(zip(("tokens", "positions", "future"), expected.means(), strict=True))
    assert frame["disruption_tokens"].mean() == pytest.approx(means["tokens"])
    assert frame["future_attention_share"].mean() == pytest.approx(means["future"])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here")
def test_a_gpu_measures_what_a_cpu_does(model: Any) -> None:
    kept = torch.tensor([0, 1, 7, 8, 20, 23])
    on_cpu = disruption(cache_of(model, "stale"), kept, WINDOW)
    moved = tiny("llama").cuda()
    cache = new_cache(moved, positions="stale", query_window=WINDOW)
    with torch.inference_mode():
        moved(input_ids=torch.arange(3, 27, device="cuda")[None], past_key_values=cache)
    on_gpu = disruption(cache, kept, WINDOW)
    assert on_cpu is not None and on_gpu is not None
    torch.testing.assert_close(on_gpu.positions, on_cpu.positions, rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(on_gpu.tokens, on_cpu.tokens, rtol=1e-2, atol=1e-4)
