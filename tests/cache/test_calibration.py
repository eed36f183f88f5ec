"""What is measured of a model's heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kvfidelity.cache.attach import new_cache
from kvfidelity.cache.calibration import Calibration, calibrate
from kvfidelity.cache.evictor import EvictionSchedule, Evictor
from kvfidelity.cache.hooks import cache_argument
from kvfidelity.cache.policies import build_policy
from kvfidelity.cache.ragged import RaggedKeepSet
from kvfidelity.errors import UserError
from tests.cache.conftest import tiny
from tests.cache.views import ragged_view, random_view

TEXT = torch.randint(3, 97, (25,), generator=torch.Generator().manual_seed(2))


def calibration_of(model: Any) -> Calibration:
    found = model.get_decoder().rotary_emb.calibration
    assert isinstance(found, Calibration)
    return found


def test_retrieval_is_what_repeated_tokens_look_at_in_eager_attention() -> None:
    """The weights of token j of the second copy on tokens j and j + 1 of the first."""
    eager = tiny("llama")
    eager.set_attn_implementation("eager")
    twice = torch.cat([TEXT, TEXT])[None]
    with torch.inference_mode():
        attentions = eager(twice, output_attentions=True).attentions
    calibrate(tiny_model := tiny("llama"), TEXT.tolist(), {"text": "a test's"})
    found = calibration_of(tiny_model)
    expected = torch.zeros(3, 2)
    for layer, weights in enumerate(attentions):
        looked = torch.stack(
            [weights[0, :, 25 + j, j] + weights[0, :, 25 + j, j + 1] for j in range(25)]
        )
        expected[layer] = looked.mean(0).view(2, 3).amax(1)
    assert torch.allclose(found.retrieval, expected, atol=1e-5)
    assert found.provenance == {"text": "a test's"}


def test_filters_have_a_direction_per_kv_head(architecture: str) -> None:
    model = tiny(architecture)
    calibrate(model, TEXT.tolist())
    found, config = calibration_of(model), model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert found.filters.shape == (3, config.num_key_value_heads, size)
    assert found.retrieval.shape == (3, config.num_key_value_heads)
    assert bool(found.filters.isfinite().all()) and bool((found.retrieval > 0).all())
    assert bool((found.filters.norm(dim=-1) <= 1 + 1e-5).all()), "means of unit vectors"


def test_a_model_that_was_not_calibrated_is_refused_before_an_eviction_is_due(llama: Any) -> None:
    for kind in ("qfilter", "duo_attention"):
        evictor = Evictor(build_policy(kind, {}), EvictionSchedule("turn", 400, 24))
        cache = new_cache(llama, evictor=evictor)
        with pytest.raises(UserError, match=rf"^policy {kind} ranks by a calibration.*calibrate\("):
            evictor.before_turn(cache)
    with pytest.raises(ValueError, match="at least two tokens, and got 1"):
        calibrate(llama, [4])


@pytest.mark.parametrize("budget", [8, 20, 40, 55])
def test_heads_that_retrieve_keep_all_as_far_as_the_budget_goes(budget: int) -> None:
    view = random_view(60, budget)
    few = min(2 + 6, budget // 2)
    policy = build_policy("duo_attention", {"sinks": 2, "recent": 6})
    kept = policy.keep(view)
    assert isinstance(kept, RaggedKeepSet)
    order = view.calibration.retrieval.flatten().argsort(descending=True)
    counts = kept.counts.flatten()[order]
    assert (counts.diff() <= 0).all(), "who retrieves more keeps no less"
    between = (counts != 60) & (counts != few)
    assert between.sum() <= 1, "all, or sinks and recent; one head at the margin"
    for row in (row for layer in kept.rows() for row in layer):
        sinks = min(2, row.numel())
        assert row[:sinks].tolist() == list(range(sinks))
        recent = row.numel() - sinks
        assert row[sinks:].tolist() == list(range(60 - recent, 60)), "the oldest go first"


def test_a_head_that_streams_stays_one_that_streams() -> None:
    """Whoever retrieves more keeps what it holds, of which a streaming head has little."""
    counts = torch.tensor([[60, 12], [12, 36]])
    view = ragged_view(counts, 20)
    kept = build_policy("duo_attention", {"sinks": 2, "recent": 4}).keep(view)
    assert isinstance(kept, RaggedKeepSet)
    assert int(kept.counts.sum()) == 80 and bool((kept.counts <= counts).all())
    order = view.calibration.retrieval.flatten().argsort(descending=True)
    left, whole = 80, True
    for index in order.tolist():
        own, held = int(kept.counts.flatten()[index]), int(counts.flatten()[index])
        assert own == held or own == 6 or whole, "at most one head at the margin"
        whole = whole and own == held
        left -= own
    assert left == 0


def test_a_calibration_is_the_same_again(llama: Any) -> None:
    calibrate(llama, TEXT.tolist())
    first = calibration_of(llama)
    with torch.inference_mode():  # what else the model computes changes nothing
        llama(TEXT[None], **{cache_argument(llama): new_cache(llama)})
    calibrate(llama, TEXT.tolist())
    assert torch.equal(first.filters, calibration_of(llama).filters)
    assert torch.equal(first.retrieval, calibration_of(llama).retrieval)
