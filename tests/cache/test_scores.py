"""Law 7: score sums are an eager implementation's column sums."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kvfidelity.cache.attention import attend, attend_with_scores, window_scores


def eager(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention output and weights [H, q, n] with the whole matrix in memory, in fp64."""
    heads, new, _ = query.shape
    ratio, slots = heads // key.shape[0], key.shape[1]
    key = key.double().repeat_interleave(ratio, 0)
    value = value.double().repeat_interleave(ratio, 0)
    logits = query.double() @ key.transpose(1, 2) * scaling
    future = torch.ones(new, slots, dtype=torch.bool, device=query.device).triu(slots - new + 1)
    weights = logits.masked_fill(future, -torch.inf).softmax(-1)
    return weights @ value, weights


def tensors(heads: int, groups: int, new: int, slots: int) -> Any:
    draws = torch.Generator().manual_seed(heads * 1000 + new)
    return (
        2 * torch.randn(heads, new, 16, generator=draws),
        2 * torch.randn(groups, slots, 16, generator=draws),
        torch.randn(groups, slots, 16, generator=draws),
    )


@pytest.mark.parametrize("ratio", [1, 3, 4, 7])
@pytest.mark.parametrize(("new", "slots"), [(1, 1), (1, 333), (5, 5), (40, 333), (700, 700)])
def test_sums_and_output_equal_eager_attention(ratio: int, new: int, slots: int) -> None:
    query, key, value = tensors(2 * ratio, 2, new, slots)
    expected, weights = eager(query, key, value, 0.25)
    out, sums = attend_with_scores(query, key, value, 0.25)
    columns = weights.sum(1)
    assert ((sums - columns).abs() <= 1e-4 * columns.clamp_min(1e-3)).all()
    assert torch.allclose(out.double(), expected, atol=1e-5)
    assert torch.allclose(attend(query, key, value, 0.25).double(), expected, atol=1e-5)


def test_many_tiles_give_the_sums_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = tensors(6, 2, 300, 500)
    _, whole = attend_with_scores(query, key, value, 0.25)
    monkeypatch.setattr("kvfidelity.cache.attention.TILE_ELEMENTS", 1)
    _, tiled = attend_with_scores(query, key, value, 0.25)
    assert torch.allclose(whole, tiled, rtol=1e-5)


def test_attention_of_every_query_sums_to_one() -> None:
    query, key, value = tensors(6, 2, 300, 500)
    _, sums = attend_with_scores(query, key, value, 0.25)
    assert torch.allclose(sums.sum(-1), torch.full((6,), 300.0), rtol=1e-4)


def test_window_scores_are_the_last_rows_of_eager_attention() -> None:
    query, key, value = tensors(6, 2, 40, 200)
    _, weights = eager(query, key, value, 0.25)
    assert torch.allclose(window_scores(query, key, 0.25).double(), weights, atol=1e-6)


def test_scores_equal_the_eager_attention_of_the_model(model: Any) -> None:
    """Law 7 against Hugging Face: the same model with eager attention, every layer and head."""
    from kvfidelity.cache.attach import new_cache
    from kvfidelity.cache.hooks import cache_argument

    ids = torch.randint(3, 97, (1, 60), generator=torch.Generator().manual_seed(0))
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        weights = torch.stack(model(ids, output_attentions=True).attentions)[:, 0]
        cache = new_cache(model, collect_scores=True)
        for part in ids.split((40, 1, 19), dim=1):
            model(part, **{cache_argument(model): cache})
    assert cache.scores is not None
    whole, latest = weights.sum(2), weights[:, :, 41:].sum(2)
    assert torch.allclose(cache.scores.rows("accumulated"), whole, rtol=1e-4, atol=1e-6)
    assert torch.allclose(cache.scores.rows("latest"), latest, rtol=1e-4, atol=1e-6)
