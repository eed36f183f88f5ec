"""Runs the exactness laws on a tiny replica of a model: what fails is refused.

The laws are those of docs/how-it-works.md, in short form, in fp32 on the CPU.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kvfidelity.cache.architectures import check_architecture
from kvfidelity.cache.hooks import cache_argument, hook, output_logits
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.positions import PositionMode
from kvfidelity.cache.replica import replica, replica_config
from kvfidelity.cache.scores import ScoreHistory
from kvfidelity.errors import UserError

#: Largest deviation of a logit, or of a slot's sum of attention, that is taken for rounding. The
#: replica's logits have a standard deviation of about 2; what is wrong deviates by 0.1 and more.
TOLERANCE = 1e-3
TURNS = (1, 23, 1, 15, 20)
NEW, KEPT, OFFSET = 17, 25, 100
LAWS = {
    "full_forward": "without an eviction logits equal the full-cache forward (law 1)",
    "output_layer": "logits of the decoder's hidden states equal the model's own",
    "prefix": "a kept prefix equals a fresh run on it (law 2)",
    "offset": "a constant added to every position changes no logit (law 4)",
    "sequence": "evictions in sequence equal one to the last keep set (law 5)",
    "scores": "collected scores equal the sums of the model's own attention (law 7)",
}


def prove(config: Mapping[str, Any]) -> dict[str, float]:
    """Run the laws on a replica with the structure of `config`; about 0.2 s, then cached.

    Args:
        config: the content of a model's config.json.

    Returns:
        The largest deviation by name of the law, see LAWS.

    Raises:
        UserError: names the architecture and what does not hold.
    """
    check_architecture(config)
    name = str(config.get("model_type"))
    try:
        small = json.dumps(replica_config(config), sort_keys=True, default=str)
        deviations = dict(_deviations(small))
    except Exception as error:  # noqa: BLE001 - whatever the architecture's own code raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"model type {name!r} is not supported: a tiny replica of it does not run with a "
            f"managed cache ({reason})"
        ) from None
    # Written so that NaN fails.
    failed = [law for law, deviation in deviations.items() if not deviation <= TOLERANCE]
    if failed:
        measured = "; ".join(f"{LAWS[law]}: off by {deviations[law]:.2g}" for law in failed)
        raise UserError(
            f"model type {name!r} is not supported: on a tiny replica of it the exactness laws do "
            f"not hold ({measured})"
        )
    return deviations


@lru_cache(maxsize=64)
def _deviations(config: str) -> tuple[tuple[str, float], ...]:
    with torch.inference_mode():
        return tuple(_measure(replica(json.loads(config))).items())


def _measure(model: Any) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, model.config.vocab_size, (1, sum(TURNS)), generator=generator)
    new = torch.randint(3, model.config.vocab_size, (1, NEW), generator=generator)
    full = model(ids, output_attentions=True)
    columns = torch.stack([attention[0].sum(1) for attention in full.attentions])
    fresh = model(torch.cat([ids[:, :KEPT], new], 1)).logits[0, KEPT:]
    hook(model)
    cache = _empty(model, PositionMode.REROTATED, collect_scores=True)
    logits = torch.cat([_feed(model, cache, part) for part in torch.split(ids, list(TURNS), dim=1)])
    assert cache.scores is not None
    found = {
        "full_forward": _worst(logits, full.logits[0]),
        "scores": _worst(cache.scores.rows(ScoreHistory.ACCUMULATED), columns),
        "output_layer": _worst(_through_decoder(model, ids), full.logits[0]),
    }
    cache.keep(torch.arange(KEPT))
    found["prefix"] = _worst(_feed(model, cache, new), fresh)
    found["offset"] = _offset(model, ids, new)
    found["sequence"] = max(_sequence(model, ids, new, mode) for mode in PositionMode)
    return found


def _through_decoder(model: Any, ids: Tensor) -> Tensor:
    decoder = model.get_decoder()
    cache = {cache_argument(decoder): _empty(model, PositionMode.ORIGINAL)}
    hidden = decoder(input_ids=ids, use_cache=True, **cache).last_hidden_state
    return output_logits(model, hidden)[0]


def _offset(model: Any, ids: Tensor, new: Tensor) -> float:
    plain, shifted = (_empty(model, PositionMode.ORIGINAL) for _ in range(2))
    shifted.slot_table.append(OFFSET)
    shifted.slot_table.keep(torch.empty(0, dtype=torch.int64))
    before = [_feed(model, cache, ids) for cache in (plain, shifted)]
    after = [_feed(model, cache, new) for cache in (plain, shifted)]
    return max(_worst(*before), _worst(*after))


def _sequence(model: Any, ids: Tensor, new: Tensor, mode: PositionMode) -> float:
    once, stepwise = _empty(model, mode), _empty(model, mode)
    for cache in (once, stepwise):
        _feed(model, cache, ids)
    survivors = torch.arange(ids.shape[1])
    generator = torch.Generator().manual_seed(3)
    for size in (51, 50, 12):
        kept = torch.randperm(survivors.numel(), generator=generator)[:size].sort().values
        stepwise.keep(kept)
        survivors = survivors[kept]
    once.keep(survivors)
    return _worst(_feed(model, once, new), _feed(model, stepwise, new))


def _empty(model: Any, mode: PositionMode, **options: Any) -> ManagedCache:
    decoder = model.get_decoder()
    return ManagedCache(decoder.rotary_emb, len(decoder.layers), mode, **options)


def _feed(model: Any, cache: ManagedCache, ids: Tensor) -> Tensor:
    logits: Tensor = model(ids, use_cache=True, **{cache_argument(model): cache}).logits[0]
    return logits


def _worst(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max())
