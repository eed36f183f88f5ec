"""The same results on a GPU: fp32 logits, keep sets and scores of every policy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kvfidelity.cache.attach import new_cache
from kvfidelity.cache.evictor import EvictionSchedule, Evictor, Trigger
from kvfidelity.cache.hooks import cache_argument
from kvfidelity.cache.policies import build_policy, known_policies
from kvfidelity.cache.positions import PositionMode
from kvfidelity.cache.ragged import RaggedKeepSet
from kvfidelity.cache.transcript import Transcript
from tests.cache.calibrated import calibrated
from tests.cache.conftest import tiny
from tests.cache.policy_examples import REQUIRED

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here"),
]
EVICTING = [kind for kind, policy in known_policies().items() if policy.evicts]


def same(one: Tensor | RaggedKeepSet, other: Tensor | RaggedKeepSet) -> bool:
    if isinstance(one, RaggedKeepSet) and isinstance(other, RaggedKeepSet):
        return torch.equal(one.slots, other.slots) and torch.equal(one.counts, other.counts)
    return torch.equal(one, other)


def run(model: Any, kind: str, mode: str) -> tuple[Tensor, list[Any]]:
    """Logits of three feeds with an eviction before each of the last two, and the keep sets."""
    policy = build_policy(kind, REQUIRED.get(kind, {}))
    cache = new_cache(
        calibrated(model, policy),
        mode,
        collect_scores=True,
        query_window=policy.query_window,
        transcript=Transcript(),
    )
    evictor = Evictor(policy, EvictionSchedule(Trigger.TURN, 40, 24))
    ids = torch.randint(3, 97, (1, 120), generator=torch.Generator().manual_seed(0))
    logits = []
    with torch.inference_mode():
        for part in ids.split((50, 30, 40), dim=1):
            evictor.before_turn(cache)
            out = model(part.to(model.device), **{cache_argument(model): cache})
            logits.append(out.logits[0].cpu())
    return torch.cat(logits), [eviction.kept for eviction in evictor.log]


@pytest.mark.parametrize("mode", list(PositionMode))
@pytest.mark.parametrize("kind", EVICTING)
def test_a_gpu_gives_the_results_of_a_cpu(kind: str, mode: str) -> None:
    expected, kept = run(tiny("llama"), kind, mode)
    found, kept_there = run(tiny("llama").cuda(), kind, mode)
    assert all(same(a, b) for a, b in zip(kept, kept_there, strict=True))
    assert len(kept) == 2
    assert (found - expected).abs().max() < 1e-3


@pytest.mark.parametrize("mode", list(PositionMode))
def test_the_slot_table_follows_keep_sets_of_heads_onto_the_gpu(mode: str) -> None:
    """Evict per head, then shared (on the CPU), then per layer, with tokens between."""
    model = tiny("llama")
    ids = torch.randint(3, 97, (1, 60), generator=torch.Generator().manual_seed(0))
    draws = np.random.default_rng(0)

    def some(rows: tuple[int, ...], slots: int, size: int) -> torch.Tensor:
        sets = [np.sort(draws.permutation(slots)[:size]) for _ in range(math.prod(rows))]
        return torch.from_numpy(np.stack(sets).reshape(*rows, size))

    keeps = [some((3, 2), 60, 40), some((), 100, 70), some((3,), 130, 50)]
    found = []
    for device in ("cpu", "cuda"):
        model = model.to(device)
        cache = new_cache(model, mode)
        with torch.inference_mode():
            for kept in keeps:
                model(ids.to(device), **{cache_argument(model): cache})
                cache.keep(kept.to(device) if kept.dim() > 1 else kept)
        for wrong in (torch.tensor([[3, 2]] * 3), torch.tensor([[0, 50]] * 3)):
            with pytest.raises(ValueError, match="keep set"):
                cache.keep(wrong.to(device))
        assert cache.slot_table.position.device.type == device
        found.append((cache.slot_table.position.cpu(), cache.slot_table.token_index.cpu()))
        found[-1] += (torch.stack([cache.rotated_keys(layer) for layer in range(3)]).cpu(),)
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert torch.allclose(found[0][2], found[1][2], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode", list(PositionMode))
def test_bf16_error_is_at_most_that_of_hugging_face(mode: str) -> None:
    """Both against fp32: the model rounds, the cache adds nothing."""
    ids = torch.randint(3, 97, (1, 120), generator=torch.Generator().manual_seed(0)).cuda()
    with torch.inference_mode():
        exact = tiny("llama").cuda()(ids).logits[0]
        model = tiny("llama").to(torch.bfloat16).cuda()
        own = model(ids).logits[0].float()
        argument = {cache_argument(model): new_cache(model, mode)}
        parts = [model(part, **argument).logits[0] for part in ids.split((50, 30, 40), dim=1)]
    error = (torch.cat(parts).float() - exact).norm()
    assert error < 1.25 * (own - exact).norm()


def test_rerotation_in_bf16_does_not_drift() -> None:
    """128 evictions of one slot leave the same keys as one eviction of 128, bit for bit."""
    model = tiny("llama").to(torch.bfloat16).cuda()
    ids = torch.randint(3, 97, (1, 200), generator=torch.Generator().manual_seed(0)).cuda()
    with torch.inference_mode():
        caches = [new_cache(model, "rerotated") for _ in range(2)]
        for cache in caches:
            model(ids, **{cache_argument(model): cache})
    for _ in range(128):
        caches[0].keep(torch.arange(1, caches[0].size))
    caches[1].keep(torch.arange(128, 200))
    for layer in range(3):
        assert torch.equal(caches[0].rotated_keys(layer), caches[1].rotated_keys(layer))
