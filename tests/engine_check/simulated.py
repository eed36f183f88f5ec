"""Simulated engines: the core with a bookkeeping, at a precision, as `benchmarks/engine_check.py`
and the tests use them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.rotary import rotate
from kvfidelity.decoding.engine import Engine
from kvfidelity.engine_check.answers import Answer, AnswerKind
from kvfidelity.engine_check.bookkeeping import BY_NAME, Bookkeeping, known_for
from kvfidelity.engine_check.engine_table import evict
from kvfidelity.engine_check.expected import Evict, all_expected, rope_base
from kvfidelity.engine_check.probes import Eviction, Expected, Probe, ProbeSet

PRECISIONS = ("float32", "bfloat16", "float16", "int4")
GROUP = 32


def at_precision(engine: Engine, precision: str) -> Engine:
    """The engine with weights and arithmetic in a dtype, or with weights rounded to 4 bits in
    groups of 32, symmetric, all but the embedding."""
    model = copy.deepcopy(engine.model)
    if precision != "int4":
        for (
            parameter
        ) in model.parameters():  # not the rotary frequencies, which engines keep in fp32
            parameter.data = parameter.data.to(getattr(torch, precision))
        return replace(engine, model=model)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and name != "lm_head":
                groups = module.weight.view(module.weight.shape[0], -1, GROUP)
                scale = groups.abs().amax(-1, keepdim=True) / 7
                rounded = (groups / scale).round().clamp(-8, 7) * scale
                module.weight.copy_(rounded.view_as(module.weight))
    return replace(engine, model=model)


def in_place(dtype: torch.dtype) -> Evict:
    """Evicts and rotates the keys that are there, in `dtype`, instead of the un-rotated ones: the
    rounding of each eviction stays."""

    def evict_in_place(cache: ManagedCache, eviction: Eviction) -> None:
        table = cache.slot_table
        slots = table.slots_of(eviction)[0]  # type: ignore[attr-defined]
        moved = torch.arange(slots.shape[-1]) - table.position[0].expand(len(slots), -1).gather(
            -1, slots
        )
        held = [layer.rotated_keys.clone() for layer in cache.layers]
        evict(cache, eviction)
        cos, sin = cache.rotary.angles(moved, cache.device)
        cos, sin = cos.to(dtype), sin.to(dtype)
        for layer, before in zip(cache.layers, held, strict=True):
            heads = slots.expand(before.shape[0], -1)[..., None].expand(-1, -1, before.shape[-1])
            keys = before.gather(1, heads).to(dtype)
            layer.rotated_keys.copy_(rotate(keys, cos.float(), sin.float()).to(before.dtype))

    return evict_in_place


def other_tokens(probe: Probe) -> Probe:
    """The probe as an engine plays it whose kept ranges, but the first ones, start and stop one
    token too early."""
    evictions = []
    for eviction in probe.evictions:
        keep = tuple(
            tuple((a, b) if a < 8 else (a - 1, b - 1) for a, b in ranges)
            for ranges in eviction.keep
        )
        evictions.append(replace(eviction, keep=keep))
    return replace(probe, evictions=tuple(evictions))


def answers_of(
    engine: Engine,
    probe_set: ProbeSet,
    bookkeepings: Sequence[Bookkeeping] | None = None,
    evict: Evict = evict,
) -> Iterator[tuple[str, dict[str, Expected]]]:
    """For each bookkeeping, its name and what the simulated engine computes for each probe."""
    known = known_for(rope_base(engine)) if bookkeepings is None else bookkeepings
    played = list(all_expected(engine, probe_set.probes, lambda probe: known, evict))
    yield from by_bookkeeping(played, known)


def by_bookkeeping(
    played: Sequence[Probe], known: Sequence[Bookkeeping]
) -> Iterator[tuple[str, dict[str, Expected]]]:
    """For each bookkeeping, its name and its answer to each probe."""
    for each in known:
        yield each.name, {probe.name: probe.expected_of(each.name) for probe in played}


def as_answers(computed: dict[str, Expected], kind: AnswerKind) -> dict[str, Answer]:
    """The computed values as an engine's answers; a top list has the scored token only if it is
    the most likely."""
    if kind is AnswerKind.LOGPROB:
        return {name: Answer(kind, each.logprob) for name, each in computed.items()}
    if kind is AnswerKind.GREEDY:
        return {name: Answer(kind, each.greedy) for name, each in computed.items()}
    return {
        name: Answer(
            kind,
            [
                {int(token): float(logprob)}
                for token, logprob in zip(each.greedy, each.greedy_logprob, strict=True)
            ],
        )
        for name, each in computed.items()
    }


REROTATED = BY_NAME["rerotated"]
