"""What the core answers to a probe, in fp32 on a CPU, under every bookkeeping."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.positions import PositionMode
from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.feeding import Feed, feed_together
from kvfidelity.engine_check.bookkeeping import FULL, Bookkeeping
from kvfidelity.engine_check.engine_table import EngineTable, evict
from kvfidelity.engine_check.probes import Eviction, Expected, Probe

#: Caches of longer conversations are computed one after another: several would fill the memory.
TOGETHER = 2048


@dataclass(frozen=True, eq=False)
class Conversation:
    """A conversation fed without an eviction.

    cache: all its tokens. hidden: states before the output layer [tokens, hidden].
    """

    tokens: tuple[int, ...]
    cache: ManagedCache
    hidden: Tensor

    @classmethod
    def feed(cls, engine: Engine, tokens: Sequence[int]) -> Conversation:
        """Feed all tokens."""
        cache = engine.new_cache(PositionMode.ORIGINAL)
        return cls(tuple(tokens), cache, engine.feed(cache, tokens))


def rope_base(engine: Engine) -> float | None:
    """The model's RoPE base; None if its rotary embedding is scaled or has none."""
    rope = getattr(engine.model.config, "rope_parameters", None) or {}
    return rope.get("rope_theta") if rope.get("rope_type", "default") == "default" else None


#: Evicts from a cache whose slot table is an EngineTable.
Evict = Callable[[ManagedCache, Eviction], None]


def all_expected(
    engine: Engine,
    probes: Iterable[Probe],
    known: Callable[[Probe], Sequence[Bookkeeping]],
    evict: Evict = evict,
) -> Iterator[Probe]:
    """The probes with what bookkeepings answer; each conversation is fed once.

    Args:
        engine: a model on a CPU.
        known: the bookkeepings of a probe.
        evict: how the simulated engine evicts.
    """
    for _, of_conversation in groupby(probes, key=lambda probe: probe.conversation):
        parts = list(of_conversation)
        longest = max((probe.tokens for probe in parts), key=len)
        conversation = Conversation.feed(engine, longest)
        for probe in parts:
            yield with_expected(engine, conversation, probe, known(probe), evict)


def with_expected(
    engine: Engine,
    conversation: Conversation,
    probe: Probe,
    bookkeepings: Sequence[Bookkeeping],
    evict: Evict = evict,
) -> Probe:
    """The probe with what each bookkeeping answers.

    Args:
        conversation: of the probe's tokens, or longer.
        evict: how the simulated engine evicts.
    """
    start, stop = probe.scored
    full = _expected(engine, (FULL,), conversation.hidden[start - 1 : stop - 1], probe)
    if not probe.evictions:
        names = tuple(each.name for each in bookkeepings)
        return replace(probe, expected=(replace(full, names=names),))
    groups = _groups(probe, bookkeepings)
    found = [full] if any(not each.evicts for each in bookkeepings) else []
    together = len(groups) if len(probe.tokens) <= TOGETHER else 1
    for first in range(0, len(groups), together):
        part = groups[first : first + together]
        states = _replay(engine, conversation, probe, [group[0] for group in part], evict)
        for group, hidden in zip(part, states, strict=True):
            names = tuple(each.name for each in group)
            found.append(_expected(engine, names, hidden, probe))
    return replace(probe, expected=tuple(found))


def _groups(probe: Probe, bookkeepings: Iterable[Bookkeeping]) -> list[list[Bookkeeping]]:
    """Bookkeepings that evict, those together that cannot differ on this probe."""
    groups: dict[bytes, list[Bookkeeping]] = {}
    for each in bookkeepings:
        if each.evicts:
            groups.setdefault(_signature(probe, each), []).append(each)
    return list(groups.values())


def _signature(probe: Probe, bookkeeping: Bookkeeping) -> bytes:
    """Tokens and positions of all slots at each forward, relative to the next position: only
    differences of positions matter."""
    first = probe.evictions[0].after
    table = EngineTable(bookkeeping, first)
    parts = [str(bookkeeping.shift_base).encode()]
    for eviction, count in _steps(probe):
        table.keep(table.slots_of(eviction))
        for rows in (table.token_index, table.position - table.next_position):
            parts.append(_without_repeats(rows).numpy().tobytes())
        table.append(count)
    return b"".join(parts)


def _without_repeats(rows: Tensor) -> Tensor:
    """[L', G', n] with one layer, or one head, where all are the same."""
    rows = rows if bool((rows != rows[:1]).any()) else rows[:1]
    return rows if bool((rows != rows[:, :1]).any()) else rows[:, :1]


def _steps(probe: Probe) -> list[tuple[Eviction, int]]:
    """Each eviction, and how many tokens are fed after it."""
    times = [each.after for each in probe.evictions]
    ends = [*times[1:], probe.scored[1] - 1]
    return [(each, end - each.after) for each, end in zip(probe.evictions, ends, strict=True)]


@torch.inference_mode()
def _replay(
    engine: Engine,
    conversation: Conversation,
    probe: Probe,
    bookkeepings: Sequence[Bookkeeping],
    evict: Evict,
) -> list[Tensor]:
    """Hidden states [m, hidden] that predict the scored tokens, for each bookkeeping."""
    first = probe.evictions[0].after
    caches = []
    for each in bookkeepings:
        cache = conversation.cache.fork(first)
        cache.slot_table = EngineTable(each, first)
        caches.append(cache)
    parts: list[list[Tensor]] = [[] for _ in caches]
    for eviction, count in _steps(probe):
        ids = conversation.tokens[eviction.after : eviction.after + count]
        for cache in caches:
            evict(cache, eviction)
        if count:
            fed = feed_together(engine, [Feed(cache, ids) for cache in caches])
            for part, hidden in zip(parts, fed, strict=True):
                part.append(hidden)
    skipped = probe.scored[0] - 1 - first
    return [torch.cat(part)[skipped:] for part in parts]


def _expected(engine: Engine, names: tuple[str, ...], hidden: Tensor, probe: Probe) -> Expected:
    targets = torch.tensor(probe.tokens[slice(*probe.scored)])
    logprobs = engine.logits(hidden).float().log_softmax(-1)
    best = logprobs.max(-1)
    return Expected(
        names,
        logprobs.gather(-1, targets[:, None])[:, 0].numpy().astype(np.float64),
        best.indices.numpy(),
        best.values.numpy().astype(np.float64),
    )
