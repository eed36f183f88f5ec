"""Law: one forward in an evicted state equals the managed cache's forwards with evictions."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from kvfidelity import new_cache
from kvfidelity.cache.attach import attach
from kvfidelity.cache.hooks import cache_argument, output_logits
from kvfidelity.cache.positions import PositionMode
from kvfidelity.finetuning.draws import FAMILIES, draw_evictions, draw_skips, keep_set
from kvfidelity.finetuning.evicted_states import (
    Eviction,
    Skip,
    Stretch,
    evicted,
    skipped,
)
from kvfidelity.finetuning.forward import hidden_states
from tests.cache.conftest import CONFIGS, tiny

TOKENS, BOUNDARIES = 61, (11, 12, 30, 47)
IDS = torch.randint(3, 97, (TOKENS,), generator=torch.Generator().manual_seed(1))
TOLERANCE = 1e-4


def several_evictions(seed: int) -> list[Eviction]:
    """The first draw of this seed and later ones that has at least two evictions."""
    rng = Random(seed)
    while len(found := draw_evictions(rng, BOUNDARIES, (0.25, 0.99))) < 2:
        pass
    return found


def through_cache(model: Any, evictions: list[Eviction], mode: PositionMode) -> Tensor:
    """Logits [n, vocabulary] of a managed cache that is fed stretch by stretch."""
    cache, parts, start = new_cache(model, positions=mode), [], 0
    for eviction in [*evictions, None]:
        stop = eviction.at if eviction else TOKENS
        fed = {cache_argument(model): cache, "use_cache": True}
        parts.append(model(IDS[None, start:stop], **fed).logits[0])
        if eviction:
            cache.keep(eviction.kept)
        start = stop
    return torch.cat(parts)


def one_forward(model: Any, stretches: list[Stretch]) -> Tensor:
    return output_logits(model, hidden_states(model, IDS, stretches))


def plain_forward(name: str, stretches: list[Stretch]) -> Tensor:
    """Hugging Face's own forward, with position ids and an attention mask; nothing of ours."""
    mask = torch.zeros(TOKENS, TOKENS, dtype=torch.bool)
    for stretch in stretches:
        rows = slice(stretch.start, stretch.stop)
        mask[rows, stretch.earlier] = True
        mask[rows, rows] = torch.ones(stretch.stop - stretch.start, stretch.stop - stretch.start)
    mask = mask.tril()
    positions = torch.cat([stretch.positions for stretch in stretches])
    model = tiny(name)
    return model(IDS[None], position_ids=positions[None], attention_mask=mask[None, None]).logits[0]


def worst(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


@torch.no_grad()
@pytest.mark.parametrize("mode", PositionMode)
def test_one_forward_equals_the_managed_caches(architecture: str, mode: PositionMode) -> None:
    model = attach(tiny(architecture))
    for seed in range(4):
        evictions = several_evictions(seed)
        found = one_forward(model, evicted(TOKENS, evictions, mode))
        assert worst(found, through_cache(model, evictions, mode)) < TOLERANCE, evictions


@torch.no_grad()
@pytest.mark.parametrize("mode", [PositionMode.STALE, PositionMode.ORIGINAL])
def test_position_ids_and_a_mask_suffice_where_no_key_is_moved(
    architecture: str, mode: PositionMode
) -> None:
    stretches = evicted(TOKENS, several_evictions(7), mode)
    found = one_forward(attach(tiny(architecture)), stretches)
    assert worst(found, plain_forward(architecture, stretches)) < TOLERANCE


@torch.no_grad()
def test_with_nothing_evicted_it_is_the_full_forward(architecture: str) -> None:
    full = tiny(architecture)(IDS[None]).logits[0]
    for mode in PositionMode:
        assert worst(one_forward(attach(tiny(architecture)), evicted(TOKENS, [], mode)), full) < (
            TOLERANCE
        )


@torch.no_grad()
def test_skips_equal_a_plain_forward_with_their_position_ids(architecture: str) -> None:
    stretches = skipped(TOKENS, [Skip(12, 40), Skip(30, -25)])
    found = one_forward(attach(tiny(architecture)), stretches)
    assert worst(found, plain_forward(architecture, stretches)) < TOLERANCE


@torch.no_grad()
def test_the_modes_differ() -> None:
    """Otherwise the law above would hold of anything."""
    model, evictions = attach(tiny("llama")), several_evictions(3)
    stale, original, rerotated = (
        one_forward(model, evicted(TOKENS, evictions, mode)) for mode in PositionMode
    )
    assert min(worst(stale, original), worst(stale, rerotated), worst(original, rerotated)) > 0.1


def test_gradients_are_those_of_a_plain_forward() -> None:
    stretches = evicted(TOKENS, several_evictions(5), "stale")
    weights = []
    for attached in (True, False):
        model = tiny("llama")
        layer = model.model.layers[0].self_attn.k_proj.weight
        if attached:
            logits = one_forward(attach(model), stretches)
        else:
            positions = torch.cat([stretch.positions for stretch in stretches])
            mask = torch.zeros(TOKENS, TOKENS, dtype=torch.bool)
            for stretch in stretches:
                mask[stretch.start : stretch.stop, stretch.earlier] = True
                mask[stretch.start : stretch.stop, stretch.start : stretch.stop] = True
            logits = model(
                IDS[None], position_ids=positions[None], attention_mask=mask.tril()[None, None]
            ).logits[0]
        logits.log_softmax(-1)[:, 5].sum().backward()
        weights.append(layer.grad)
    assert worst(weights[0], weights[1]) < 1e-3 * float(weights[1].abs().max())


def test_draws_stay_inside_what_they_promise() -> None:
    families = set()
    for seed in range(200):
        rng = Random(seed)
        evictions = draw_evictions(rng, BOUNDARIES, (0.25, 0.99))
        assert 1 <= len(evictions) <= 3
        slots = before = 0
        for eviction in evictions:
            assert eviction.at in BOUNDARIES
            slots += eviction.at - before
            kept = len(eviction.kept)
            assert 0 < kept < slots and 0.25 - 0.5 / slots <= kept / slots <= 0.99
            slots, before = kept, eviction.at
        stretches = evicted(TOKENS, evictions, "stale")
        families.add(len(stretches))
        jumps = draw_skips(rng, evictions, TOKENS, 256)
        assert all(stretch.positions.min() >= 0 for stretch in skipped(TOKENS, jumps))
        assert max(int(stretch.positions.max()) for stretch in skipped(TOKENS, jumps)) < 256
    assert families == {2, 3, 4}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_keep_set_has_its_size_and_is_sorted(family: str) -> None:
    for seed, (slots, size) in enumerate([(2, 1), (9, 3), (300, 250), (300, 299)]):
        kept = keep_set(Random(seed), family, slots, size).tolist()
        assert kept == sorted(set(kept)) and len(kept) == size and max(kept) < slots


def test_evictions_out_of_order_are_refused() -> None:
    one = torch.tensor([0])
    with pytest.raises(ValueError, match="not ascending"):
        evicted(TOKENS, [Eviction(30, one), Eviction(12, one)], "stale")
    with pytest.raises(ValueError, match="below position 0"):
        skipped(TOKENS, [Skip(5, -6)])
    assert len(CONFIGS) >= 4


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here")
@pytest.mark.parametrize("mode", PositionMode)
def test_logits_and_gradients_on_a_gpu_are_those_on_a_cpu(
    architecture: str, mode: PositionMode
) -> None:
    stretches, found = evicted(TOKENS, several_evictions(2), mode), []
    for device in ("cpu", "cuda"):
        model = attach(tiny(architecture)).to(device)
        weight = next(model.get_decoder().layers[0].parameters())
        hidden = hidden_states(model, IDS.to(device), stretches)
        logits = output_logits(model, hidden)
        logits.log_softmax(-1)[:, 5].sum().backward()
        found.append((logits.detach().cpu(), weight.grad.cpu()))
    assert worst(found[0][0], found[1][0]) < 1e-3
    assert worst(found[0][1], found[1][1]) < 1e-3 * float(found[0][1].abs().max())
