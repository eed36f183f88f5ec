"""Many turns of a baseline in one forward: their replies are known, and nothing is evicted.

What is recorded is what feeding turn by turn gives, without seconds: those belong to no turn.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kvfidelity.cache.evictor import Evictor
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.decoding.engine import Engine
from kvfidelity.dialogues.segments import Segment
from kvfidelity.errors import ModelOverflowError
from kvfidelity.generation.baseline_run import Checkpoint
from kvfidelity.generation.plan import RunPlan
from kvfidelity.generation.timed_turn import Progress, naming_turn, turn_event
from kvfidelity.generation.turns import TurnOutcome, measure_integrity
from kvfidelity.metrics.reply_positions import integrity_over_reply

#: Slots that all turns of a forward see together, most: each turn has its own copy of rotated keys.
MOST_SLOTS = 1 << 18


class KnownTurns(NamedTuple):
    """outcomes: one for each turn. ends: a checkpoint after each."""

    outcomes: list[TurnOutcome]
    ends: list[Checkpoint]


def known_turns(engine: Engine, plan: RunPlan, first: int, cache: ManagedCache) -> range:
    """The turns from `first` on that one forward can feed; empty if only one can, or none."""
    tokens, slots, stop = 0, 0, first
    if engine.scheduler is None or not cache.size:
        return range(first, first)
    for segment in plan.segments[first:]:
        setting = plan.turn_setting(stop)
        tokens += len(segment.prompt_ids) + len(segment.reply_ids)
        slots += cache.size + tokens
        generates = setting.replies != "reference" or setting.max_new_tokens
        if generates or not segment.reply_ids or tokens > engine.chunk or slots > MOST_SLOTS:
            break
        stop += 1
    return range(first, stop if stop > first + 1 else first)


@torch.inference_mode()
def feed_known_turns(
    engine: Engine,
    plan: RunPlan,
    turns: range,
    cache: ManagedCache,
    evictor: Evictor,
    progress: Progress,
) -> KnownTurns:
    """Feed turns that `known_turns` gave.

    Raises:
        ModelOverflowError: the model computed NaN or infinity; dialogue and turn are named.
    """
    assert engine.scheduler is not None
    engine.scheduler.restart_count()
    start_s = engine.now()
    segments, start = [plan.segments[turn] for turn in turns], cache.size
    fed = engine.feed_sections(cache, [(*one.prompt_ids, *one.reply_ids) for one in segments])
    each = list(zip(turns, segments, fed.ends, strict=True))
    starts = [start, *(end.size for end in fed.ends)]
    predicted = []
    for (turn, segment, end), first in zip(each, starts, strict=False):
        with naming_turn(plan, turn):
            engine.refuse_overflow(fed.hidden[first - start : end.size - start], end)
        # Row j predicts token j + 1; copied, or the rows of all prompts would stay in memory.
        row = first - start + len(segment.prompt_ids) - 1
        predicted.append(fed.hidden[row : row + len(segment.reply_ids)].clone())
    parts = nll_of_turns(engine, plan, turns, predicted)
    outcomes, ends = [], []
    for (_, segment, end), first, rows, nats in zip(each, starts, predicted, parts, strict=False):
        evictor.step += 1 + len(segment.reply_ids)
        ends.append(Checkpoint.of(end, evictor.step))
        outcomes.append(_outcome(engine, segment, end, first, rows, nats))
    tokens_per_s = (cache.size - start) / (engine.now() - start_s)
    for turn, outcome in zip(turns, outcomes, strict=True):
        progress(turn_event(plan, turn, outcome, tokens_per_s))
    return KnownTurns(outcomes, ends)


def nll_of_turns(
    engine: Engine, plan: RunPlan, turns: range, predicted: list[Tensor]
) -> list[Tensor]:
    """Nats of each turn's tokens, scored at once; one by one to name the turn that overflows."""
    replies = [plan.segments[turn].reply_ids for turn in turns]
    try:
        nll = engine.score(torch.cat(predicted), [token for ids in replies for token in ids]).nll
    except ModelOverflowError:
        for turn, rows, ids in zip(turns, predicted, replies, strict=True):
            with naming_turn(plan, turn):
                engine.score(rows, ids)
        raise
    return list(torch.split(nll, [len(ids) for ids in replies]))


def _outcome(
    engine: Engine,
    segment: Segment,
    end: ManagedCache,
    first: int,
    predicted: Tensor,
    nll: Tensor,
) -> TurnOutcome:
    """What a turn from slot `first` on did; `end`: see `decoding.engine.SectionsFed`."""
    assert engine.scheduler is not None
    after_prompt = first + len(segment.prompt_ids)
    before_reply = end.slot_table.fork(after_prompt)
    return TurnOutcome(
        prompt=segment.prompt_ids,
        fed=segment.reply_ids,
        predicted=predicted,
        reply=None,
        reference_nll=nll,
        kl_baseline=None,
        integrity=integrity_over_reply(
            before_reply, (), end.slot_table.tokens_seen, engine.frequencies, engine.window
        ),
        integrity_at_end=measure_integrity(engine, end),
        evictions=(),
        slots_start=first,
        slots_after_prompt=after_prompt,
        slots_after_eviction=None,
        slots_end=end.size,
        slots_peak=end.size,
        tokens_seen_start=first,
        tokens_seen_end=end.slot_table.tokens_seen,
        next_position=before_reply.next_position,
        prefill_s=None,
        prompt_s=None,
        peak_bytes=None,
        concurrency=engine.scheduler.concurrency(),
    )
