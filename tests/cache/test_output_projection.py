"""Who sees a layer's output projection, and what it is by head."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kvfidelity.cache.attach import new_cache
from kvfidelity.cache.evictor import EvictionSchedule, Evictor
from kvfidelity.cache.policies import build_policy
from kvfidelity.errors import UserError
from tests.cache.views import random_view


def test_a_policy_that_does_not_declare_the_output_projection_does_not_see_it() -> None:
    view = random_view(30, 9)
    assert view.layers[0].output_projection.shape == (6, 8, 5)
    with pytest.raises(LookupError, match="needs_output_projection = True"):
        _ = view.limited_to(scores=True, query_window=9).layers[0].output_projection


def test_the_output_projection_by_head_is_the_layers_own(model: Any) -> None:
    """A layer's output is the sum over heads of each head's output times its part."""
    cache = new_cache(model)
    attention = model.get_decoder().layers[1].self_attn
    heads, size = model.config.num_attention_heads, attention.head_dim
    outputs = torch.randn(5, heads, size, generator=torch.Generator().manual_seed(0))
    parts = torch.einsum("thd,hdo->to", outputs, cache.rotary.output_projection(1, size))
    assert torch.allclose(parts, attention.o_proj(outputs.flatten(1)), atol=1e-4)


def test_a_model_without_output_projections_is_refused_before_an_eviction_is_due(
    llama: Any,
) -> None:
    cache = new_cache(llama, query_window=32)
    cache.rotary._output_projections = (None, None, None)
    evictor = Evictor(build_policy("criticalkv", {}), EvictionSchedule("turn", 400, 24))
    with pytest.raises(UserError, match=r"^policy criticalkv ranks by .*`o_proj`"):
        evictor.before_turn(cache)
