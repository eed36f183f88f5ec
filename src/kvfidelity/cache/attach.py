"""Hooks a Hugging Face model up to managed caches, through its public extension points only."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from kvfidelity.cache.architectures import check_architecture
from kvfidelity.cache.interface import AttentionCache
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.positions import PositionMode
from kvfidelity.cache.rotary import IdentityRotary

NAME = "kvfidelity"


def attach(model: Any) -> Any:
    """Make `model` (a causal language model) compute with managed caches; idempotent.

    Its attention function is registered under "kvfidelity", its rotary module is wrapped so that
    queries and keys stay un-rotated, and each attention module hands its cache to the attention
    function. An attached model refuses any other cache.

    Raises:
        UserError: an architecture for which the exactness laws do not hold, by name.
    """
    decoder = model.get_decoder()
    if isinstance(decoder.rotary_emb, IdentityRotary):
        return model
    check_architecture(model.config.to_dict())
    AttentionInterface.register(NAME, managed_attention)
    AttentionMaskInterface.register(NAME, no_mask)
    model.set_attn_implementation(NAME)
    decoder.rotary_emb = IdentityRotary(decoder.rotary_emb)
    for layer in decoder.layers:
        layer.self_attn.register_forward_pre_hook(_pass_cache, with_kwargs=True)
    return model


def new_cache(
    model: Any, positions: PositionMode | str = PositionMode.REROTATED, **options: Any
) -> ManagedCache:
    """An empty managed cache for `model`, which is attached if it was not; see ManagedCache."""
    decoder = attach(model).get_decoder()
    return ManagedCache(decoder.rotary_emb, len(decoder.layers), positions, **options)


def cache_argument(model: Any) -> str:
    """What `model.forward` calls its cache: `cache` since transformers 5.2x, before it
    `past_key_values`."""
    parameters = inspect.signature(model.forward).parameters
    return "cache" if "cache" in parameters else "past_key_values"


def managed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    managed: object = None,
    **_: object,
) -> tuple[Tensor, None]:
    """The attention function: [B, H, q, d] queries in, [B, q, H, d] out; slots decide causality."""
    if not isinstance(managed, AttentionCache):
        raise RuntimeError(
            "this model is attached to managed caches: pass cache=new_cache(model), or load the "
            "model anew to use it without one"
        )
    return managed.attend(module, query, key, value, scaling).contiguous(), None


def no_mask(*args: object, attention_mask: Tensor | None = None, **_: object) -> None:
    """The mask function: none is made, for slots decide causality; padding is refused.

    Raises:
        ValueError: the attention mask hides a token.
    """
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ValueError(
            "a managed cache holds one sequence without padding: drop the padding, or pass an "
            "attention mask of ones if the text has pad tokens of its own"
        )


def _pass_cache(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    cache = kwargs.get("cache")
    kwargs["managed"] = kwargs.get("past_key_values") if cache is None else cache
    return args, kwargs
