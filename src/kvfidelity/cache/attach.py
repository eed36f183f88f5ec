"""Makes a Hugging Face model use managed caches, if the exactness laws hold for it."""

from __future__ import annotations

from typing import Any

from kvfidelity.cache.evictor import Evictor
from kvfidelity.cache.hooks import hook
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.positions import PositionMode
from kvfidelity.cache.proof import prove
from kvfidelity.cache.rotary import IdentityRotary
from kvfidelity.cache.transcript import Transcript


def attach(model: Any) -> Any:
    """Make `model` (a causal language model) compute with managed caches; idempotent.

    Three changes: the attention function is the one registered under "kvfidelity"; the rotary
    module is replaced, so that queries and keys stay un-rotated; each attention module passes its
    cache to the attention function. An attached model refuses any other cache.

    The laws run on a replica first (`cache.proof`), once per process and structure.

    Raises:
        UserError: the exactness laws do not hold for this architecture, which is named.
    """
    if isinstance(getattr(model.get_decoder(), "rotary_emb", None), IdentityRotary):
        return model
    prove(model.config.to_dict())
    return hook(model)


def new_cache(
    model: Any,
    positions: PositionMode | str = PositionMode.REROTATED,
    *,
    evictor: Evictor | None = None,
    **options: Any,
) -> ManagedCache:
    """An empty managed cache for `model`, a causal language model; attaches the model if needed.

    Args:
        positions: a PositionMode or its value.
        evictor: evicts from this cache inside `model.generate`, where the triggers `step` and
            `paper` act; for the others call its `before_turn` or `after_prompt`. The cache collects
            the scores and queries that the evictor's policy needs.
        options: further arguments of ManagedCache, such as `collect_scores`.

    Raises:
        UserError: the model's architecture is not supported.
        ValueError: an unknown position mode.
    """
    decoder = attach(model).get_decoder()
    if evictor is not None:
        needs = evictor.policy
        options["collect_scores"] = options.get("collect_scores", False) or needs.needs_scores
        window = max(needs.query_window, evictor.healing.query_window)
        options["query_window"] = max(options.get("query_window", 0), window)
        options.setdefault("before_forward", evictor.before_step)
        if needs.needs_extra_forward or evictor.healing.needs_text:
            options.setdefault("transcript", Transcript())
    return ManagedCache(decoder.rotary_emb, len(decoder.layers), positions, **options)
