"""Slots and positions over long random histories."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from kvfidelity.cache.attach import attach, new_cache
from kvfidelity.cache.eviction_log import Eviction, groups, replay, spans
from kvfidelity.cache.hooks import cache_argument
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.policies import build_policy
from kvfidelity.cache.positions import PositionMode
from kvfidelity.cache.rotary import rotate
from kvfidelity.cache.slots import SlotTable, as_grid
from kvfidelity.cache.view import view_of
from tests.repeated import TIMES

MODES = list(PositionMode)
HISTORIES = 600 * TIMES


def test_positions_of_a_worked_example() -> None:
    """Six tokens, 2 and 3 evicted, two more fed."""
    expected = {
        "stale": ([0, 1, 4, 5, 4, 5], 6),
        "original": ([0, 1, 4, 5, 6, 7], 8),
        "rerotated": ([0, 1, 2, 3, 4, 5], 6),
    }
    for mode, (positions, replayed) in expected.items():
        slot_table = SlotTable(PositionMode(mode))
        slot_table.append(6)
        slot_table.keep(torch.tensor([0, 1, 4, 5]))
        slot_table.append(2)
        assert slot_table.position[0, 0].tolist() == positions
        assert slot_table.token_index[0, 0].tolist() == [0, 1, 4, 5, 6, 7]
        assert slot_table.next_position == replayed


@pytest.mark.parametrize("bad", [[3, 1], [1, 1], [0, 9], [-1, 2]])
def test_unsorted_repeated_or_unknown_slots_are_refused(bad: list[int]) -> None:
    slot_table = SlotTable(PositionMode.STALE)
    slot_table.append(6)
    with pytest.raises(ValueError, match="keep set"):
        slot_table.keep(torch.tensor(bad))


def random_keep(slots: int, draws: torch.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    size = int(torch.randint(1, slots + 1, (), generator=draws))
    return torch.rand(*shape, slots, generator=draws).argsort(-1)[..., :size].sort(-1).values


@pytest.mark.parametrize("mode", MODES)
def test_random_histories_keep_every_invariant(mode: PositionMode) -> None:
    """3 x 600 histories: sorted slots, exact sizes, replayable, positions by their definition."""
    draws = torch.Generator().manual_seed(MODES.index(mode))
    for history in range(HISTORIES):
        shape: tuple[int, ...] = [(), (3,), (3, 2)][history % 3]
        slot_table, log = SlotTable(mode, capacity=4), []
        for _ in range(int(torch.randint(1, 6, (), generator=draws))):
            slot_table.append(int(torch.randint(1, 40, (), generator=draws)))
            kept = random_keep(len(slot_table), draws, shape)
            log.append(Eviction(0, 0, slot_table.tokens_seen, len(slot_table), kept, 0.0, 0.0))
            slot_table.keep(kept)
            assert len(slot_table) == kept.shape[-1]
        slot_table.append(2)
        token, position = slot_table.token_index, slot_table.position
        assert (token.diff(dim=-1) > 0).all()
        if mode is PositionMode.ORIGINAL:
            assert torch.equal(token, position)
        if mode is PositionMode.REROTATED:
            assert (position == torch.arange(len(slot_table))).all()
        again = replay(log, mode, slot_table.tokens_seen)
        assert torch.equal(again.token_index, token) and torch.equal(again.position, position)


@pytest.mark.parametrize("mode", MODES)
def test_keys_do_not_drift_over_many_evictions(llama: Any, mode: PositionMode) -> None:
    """After 200 evictions every key is the un-rotated key rotated once in fp32, bit for bit."""
    draws = torch.Generator().manual_seed(0)
    cache = new_cache(llama, mode)
    with torch.inference_mode():
        for _ in range(200):
            count = int(torch.randint(1, 9, (), generator=draws))
            ids = torch.randint(3, 97, (1, count), generator=draws)
            llama(ids, **{cache_argument(llama): cache})
            size = max(1, cache.size - int(torch.randint(0, 9, (), generator=draws)))
            kept = torch.randperm(cache.size, generator=draws)[:size].sort().values
            cache.keep(kept)
            position = cache.slot_table.position[0, 0]
            cos, sin = cache.rotary.angles(position, torch.device("cpu"))
            for layer in cache.layers:
                assert layer.slots == cache.size
                assert torch.equal(layer.rotated_keys, rotate(layer.live_keys, cos, sin))


@pytest.mark.parametrize("mode", MODES)
def test_random_evictions_keep_sizes_bytes_and_protected_slots(
    llama: Any, mode: PositionMode
) -> None:
    """3 x 600 caches of random keys under random policies, budgets and protected spans."""
    rotary = attach(llama).get_decoder().rotary_emb
    kinds: dict[str, Any] = {"random": {"keep_ratio": 0.5}, "streaming_llm": {}, "knorm": {}}
    policies = [build_policy(kind, parameters) for kind, parameters in kinds.items()]
    numbers = torch.Generator().manual_seed(MODES.index(mode))
    draws = random.Random(MODES.index(mode))
    for history in range(HISTORIES):
        cache = ManagedCache(rotary, 1, mode)
        for _ in range(draws.randint(1, 4)):
            new = torch.randn(2, 1, 2, draws.randint(1, 30), 8, generator=numbers)
            cache.update(new[0], new[1], 0)
            span = sorted(draws.choices(range(cache.size + 1), k=2))
            protected = ((span[0], span[1]),) if span[0] < span[1] else ()
            view = view_of(cache, draws.randint(1, cache.size), history, protected)
            kept = draws.choice(policies).keep(view)
            for start, stop in protected:
                assert (((kept >= start) & (kept < stop)).sum(-1) == stop - start).all()
            cache.keep(kept)
            token = cache.slot_table.token_index
            assert cache.size == view.budget == kept.shape[-1]
            assert (token.diff(dim=-1) > 0).all()
            assert cache.nbytes == cache.size * 2 * 2 * 8 * 4
            layer = cache.layers[0]
            angles = rotary.angles(cache.slot_table.position[0], torch.device("cpu"))
            assert torch.equal(layer.rotated_keys, rotate(layer.live_keys, *angles))


def from_spans(pairs: Iterable[tuple[int, int]]) -> Tensor:
    """The inverse of `spans`."""
    parts = [torch.arange(start, stop) for start, stop in pairs]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)


def from_groups(parts: dict[str, Tensor]) -> Tensor:
    """The inverse of `groups`: int64 [L', G', k]."""
    if "shared" in parts:
        return as_grid(parts["shared"])
    indices = [tuple(int(part) for part in name.split(":")[1:]) for name in parts]
    size = next(iter(parts.values())).shape[0]
    layers = 1 + max(index[0] for index in indices)
    heads = 1 + max((index[1] for index in indices if len(index) > 1), default=0)
    kept = torch.empty(layers, heads, size, dtype=torch.int64)
    for index, numbers in zip(indices, parts.values(), strict=True):
        kept[index[0], index[1] if len(index) > 1 else 0] = numbers
    return kept


def test_spans_and_groups_are_reversible() -> None:
    draws = torch.Generator().manual_seed(0)
    assert spans(torch.tensor([3, 4, 5, 9])) == [(3, 6), (9, 10)]
    for shape in [(), (4,), (4, 3)]:
        kept = random_keep(50, draws, shape)
        parts = {name: from_spans(spans(numbers)) for name, numbers in groups(kept)}
        assert torch.equal(from_groups(parts).reshape(kept.shape), kept)


def test_after_an_eviction_no_earlier_moment_can_be_forked() -> None:
    slot_table = SlotTable(PositionMode.STALE)
    slot_table.append(9)
    past = slot_table.fork(5)
    assert (len(past), past.tokens_seen, len(slot_table)) == (5, 5, 9)
    slot_table.keep(torch.arange(7))
    with pytest.raises(ValueError, match="after an eviction"):
        slot_table.fork(5)


@pytest.mark.parametrize("mode", list(PositionMode))
def test_a_table_that_evicted_in_inference_mode_appends_outside_of_it(mode: str) -> None:
    table = SlotTable(PositionMode(mode))
    table.append(40)
    before = table.token_index
    with torch.inference_mode():
        table.keep(torch.arange(1, 40))
    table.append(1)
    assert table.token_index.tolist() == [[[*range(1, 41)]]]
    assert before.tolist() == [[[*range(40)]]], "a view of the slots before stays as it was"
