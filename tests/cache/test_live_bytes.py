"""Bytes of the tensors that a computation holds at once, and those of a policy's ranking."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kvfidelity.cache.attach import new_cache
from kvfidelity.cache.evictor import EvictionSchedule, Evictor
from kvfidelity.cache.hooks import cache_argument
from kvfidelity.cache.live_bytes import LiveBytes
from kvfidelity.cache.policies import build_policy, known_policies
from kvfidelity.cache.ragged import RaggedKeepSet
from tests.cache.calibrated import calibrated
from tests.cache.policy_examples import EVICTING, example, rows_of


@pytest.mark.parametrize("inference", [False, True])
def test_views_and_freed_tensors_do_not_count(inference: bool) -> None:
    before = torch.zeros(1000)
    with torch.inference_mode(inference), LiveBytes() as memory:
        view = before.view(10, 100)[3:]
        assert memory.peak == 0
        made = torch.zeros(500)
        part = made[10:20]
        del made
        assert memory.now == 2000, "a view keeps its storage"
        del part
        assert memory.now == 0
        kept = [torch.ones(250) for _ in range(3)]
        view.add_(1)
        assert memory.now == 3000
    assert memory.peak == 3000 and len(kept) == 3


def logged(model: Any, kind: str, *, measures_memory: bool) -> list[Any]:
    policy = example(kind)
    schedule = EvictionSchedule("turn", 40, 24)
    evictor = Evictor(policy, schedule, seed=3, measures_memory=measures_memory)
    cache = new_cache(calibrated(model, policy), evictor=evictor, before_forward=None)
    ids = torch.randint(3, 97, (2, 1, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for part in ids:
            model(part, **{cache_argument(model): cache})
            evictor.before_turn(cache)
    return evictor.log


@pytest.mark.parametrize("kind", EVICTING)
def test_measuring_memory_changes_no_keep_set(kind: str, llama: Any) -> None:
    """Above all of policies that draw: the ranking that is used draws the same numbers."""
    measured, plain = (logged(llama, kind, measures_memory=each) for each in (True, False))
    for one, other in zip(measured, plain, strict=True):
        assert all(map(torch.equal, rows_of(one.kept), rows_of(other.kept)))
    assert [eviction.ranking_bytes is None for eviction in measured] == [False, True]
    assert plain[0].ranking_bytes is None
    assert measured[0].ranking_bytes >= 40 * 4, "at least a number for each slot"


def test_what_is_held_is_what_a_policy_declares(llama: Any) -> None:
    def held(kind: str) -> int:
        found: int = logged(llama, kind, measures_memory=False)[0].held_bytes
        return found

    assert held("knorm") == held("streaming_llm") == held("kvzip") == 0
    queries = build_policy("snapkv", {}).query_window
    assert held("snapkv") == 3 * 6 * queries * 8 * 4
    assert held("duo_attention") == held("qfilter") == 3 * 2 * (8 + 1) * 4
    assert held("h2o") >= 2 * 3 * 6 * 40 * 4, "two histories of scores"


@pytest.mark.parametrize("mode", ["stale", "original", "rerotated"])
def test_any_two_policies_differ_by_less_than_a_slot_per_head(mode: str, llama: Any) -> None:
    """Equal budgets are equal bytes: of ragged policies too, after one eviction and after two."""
    sizes: dict[str, list[int]] = {}
    for kind in EVICTING:
        policy = example(kind)
        evictor = Evictor(policy, EvictionSchedule("turn", 40, 24))
        cache = new_cache(calibrated(llama, policy), mode, evictor=evictor, before_forward=None)
        ids = torch.randint(3, 97, (2, 1, 40), generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            for part in ids:
                llama(part, **{cache_argument(llama): cache})
                evictor.before_turn(cache)
                live = sum(each.live_keys.nbytes + each.live_values.nbytes for each in cache.layers)
                assert cache.nbytes == live
                sizes.setdefault(kind, []).append(cache.nbytes)
        assert isinstance(evictor.log[-1].kept, RaggedKeepSet) == policy.ragged
    slot_of_a_head = 2 * 8 * 4
    for moment in zip(*sizes.values(), strict=True):
        assert max(moment) - min(moment) < slot_of_a_head
    assert sum(known_policies()[kind].ragged for kind in sizes) >= 6
