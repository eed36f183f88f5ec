"""Connects a Hugging Face model with managed caches, through its public extension points only."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from kvfidelity.cache.interface import AttentionCache
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.rotary import IdentityRotary

NAME = "kvfidelity"


def hook(model: Any) -> Any:
    """`attach.attach` without its proof; only `attach` and the proof call this.

    Raises:
        AttributeError: the model lacks the modules that are hooked.
    """
    decoder = model.get_decoder()
    AttentionInterface.register(NAME, managed_attention)
    AttentionMaskInterface.register(NAME, no_mask)
    model.set_attn_implementation(NAME)
    projections = [getattr(layer.self_attn, "o_proj", None) for layer in decoder.layers]
    decoder.rotary_emb = IdentityRotary(decoder.rotary_emb, projections, decoder)
    for layer in decoder.layers:
        layer.self_attn.register_forward_pre_hook(_pass_cache, with_kwargs=True)
    decoder.register_forward_pre_hook(_check_positions, with_kwargs=True)
    decoder.register_forward_pre_hook(_note_tokens, with_kwargs=True)
    return model


def output_logits(model: Any, hidden: Tensor) -> Tensor:
    """Logits [..., vocabulary] of the decoder's hidden states [..., hidden], as the model's own
    forward computes them: Granite divides them by a constant."""
    logits: Tensor = model.get_output_embeddings()(hidden)
    scaling = getattr(model.config, "logits_scaling", None)
    return logits if scaling in (None, 1) else logits / scaling


def cache_argument(model: Any) -> str:
    """The name of the cache argument of `model.forward`.

    It is `cache` since transformers 5.2x, and `past_key_values` before.
    """
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
    """The attention function: [B, H, q, d] queries in, [B, q, H, d] out.

    Causality follows from the order of the slots, so the attention mask is not used.

    Raises:
        RuntimeError: the model was called without a managed cache.
    """
    if not isinstance(managed, AttentionCache):
        raise RuntimeError(
            "this model is attached to managed caches: pass cache=new_cache(model), or load the "
            "model again to use it without one"
        )
    return managed.attend(module, query, key, value, scaling).contiguous(), None


def no_mask(*args: object, attention_mask: Tensor | None = None, **_: object) -> None:
    """The mask function: makes no mask, because slots decide causality, and refuses padding.

    Raises:
        ValueError: the attention mask hides a token.
    """
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ValueError(
            "a managed cache holds one sequence without padding: drop the padding, or pass an "
            "attention mask of ones if the text itself contains pad tokens"
        )


def _pass_cache(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    cache = kwargs.get("cache")
    kwargs["managed"] = kwargs.get("past_key_values") if cache is None else cache
    return args, kwargs


def _check_positions(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positions are the cache's; `generate` passes the running number of each token, no other."""
    cache = kwargs.get("cache", kwargs.get("past_key_values"))
    given = kwargs.get("position_ids")
    if given is not None and isinstance(cache, ManagedCache):
        seen, count = cache.slot_table.tokens_seen, given.shape[-1]
        expected = torch.arange(seen, seen + count, device=given.device)
        if not bool((given == expected).all()):
            raise ValueError(
                f"position_ids differ from the next ones, {seen} to {seen + count - 1}: a managed "
                "cache sets positions itself, by its mode; leave position_ids out"
            )
    return args, kwargs


def _note_tokens(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    cache = kwargs.get("cache", kwargs.get("past_key_values"))
    ids = kwargs.get("input_ids", args[0] if args else None)
    if isinstance(cache, AttentionCache) and ids is not None:
        cache.note_tokens(ids.flatten().tolist)
    return args, kwargs
