"""Runs one turn on a managed cache: prompt, evictions, reply, measurements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvfidelity.cache.eviction_log import Eviction
from kvfidelity.cache.evictor import Evictor
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.scores import ScoreHistory
from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.generate import generate
from kvfidelity.decoding.sampling import Sampling
from kvfidelity.decoding.sequence import Reply
from kvfidelity.dialogues.segments import Segment
from kvfidelity.metrics.positions import Integrity, integrity
from kvfidelity.metrics.reply_positions import integrity_over_reply


@dataclass(frozen=True)
class TurnSetting:
    """How replies are produced; see RunSpec."""

    replies: str
    max_new_tokens: int
    sampling: Sampling
    seed: int
    feed_end_of_turn: bool = True


@dataclass(frozen=True)
class TurnOutcome:
    """What a turn did to the cache, and its measurements.

    slots_*: cached slots at the turn's start, after the prompt, after the last eviction (None
    without one), at the end, and the most during the turn.
    predicted: hidden states [m, hidden] that predict the fed reply's tokens.
    reference_nll, kl_baseline: of these tokens, in nats, fp32 [m] on the CPU; None for own replies,
    and the second also where there is no baseline.
    prompt: the tokens of the prompt. fed: those of the reply, with the end of turn and, in front of
    an own reply, the segment's opening.
    integrity: what the tokens of the reply met; integrity_at_end: for the first token after it.
    prefill_s: seconds to feed the prompt; None if the reply was fed with it. prompt_s: the same
    with the evictions before and after it, without what measuring them took.
    peak_bytes: peak device memory since the run's start;
    None on a CPU, and where other runs share the memory. concurrency: most runs that were active at
    once during the turn, this one included; seconds describe the turn alone only if it is 1.
    """

    prompt: tuple[int, ...]
    fed: tuple[int, ...]
    predicted: Tensor
    reply: Reply | None
    reference_nll: Tensor | None
    kl_baseline: Tensor | None
    integrity: Integrity
    integrity_at_end: Integrity
    evictions: tuple[Eviction, ...]
    slots_start: int
    slots_after_prompt: int
    slots_after_eviction: int | None
    slots_end: int
    slots_peak: int
    tokens_seen_start: int
    tokens_seen_end: int
    next_position: int | None
    prefill_s: float | None
    prompt_s: float | None
    peak_bytes: int | None
    concurrency: int

    @property
    def healing_tokens(self) -> int:
        """Tokens that its evictions' healing fed, which are neither prompt nor reply."""
        return sum(eviction.healed.tokens for eviction in self.evictions)


@torch.inference_mode()
def run_turn(
    engine: Engine,
    cache: ManagedCache,
    evictor: Evictor,
    segment: Segment,
    setting: TurnSetting,
    on_prompt: Callable[[int], None] = lambda slots: None,
    baseline: Tensor | None = None,
    prompt_after_gap: Callable[[], tuple[int, ...]] | None = None,
) -> TurnOutcome:
    """Feed one turn's prompt, measure, generate or teacher-force the reply.

    Args:
        baseline: `predicted` of the baseline's same turn, for a reference reply.
        on_prompt: called with the number of slots after the prompt and its evictions.
        prompt_after_gap: the prompt's token ids if an eviction has just happened; by default they
            are the segment's.

    Raises:
        ModelOverflowError: the model computed NaN or infinity; nothing of the turn is a result.
    """
    evictions_before = len(evictor.log)
    start, seen = cache.size, cache.slot_table.tokens_seen
    start_s, measuring_s = engine.now(), evictor.measuring_s
    if evictor.before_turn(cache) is not None and prompt_after_gap is not None:
        segment = replace(segment, prompt_ids=prompt_after_gap())
    if evictor.messages is not None:  # evictions inside the turn see its messages
        evictor.messages.add_turn(cache.slot_table.tokens_seen, len(segment.prompt_ids))
    prefill_start_s = engine.now()
    prompt, together = len(segment.prompt_ids), _reply_is_fed_with_prompt(engine, evictor, setting)
    before_reply, after_prompt = cache.slot_table.fork(), cache.size + prompt
    ids = (*segment.prompt_ids, *(segment.reply_ids if together else ()))
    hidden = engine.feed(cache, ids, latest_is_last=len(ids) > prompt)
    prefill_s = None if together else engine.now() - prefill_start_s
    engine.refuse_overflow(hidden, cache)
    evictor.step += 1
    if together:
        before_reply.append(prompt)
    else:
        evictor.after_prompt(cache, (after_prompt - prompt, after_prompt))
        before_reply = cache.slot_table.fork()
    prompt_s = engine.now() - start_s - (evictor.measuring_s - measuring_s)
    last = hidden[prompt - 1 : prompt].clone()
    prompt_evictions, next_position = len(evictor.log), before_reply.common_next_position
    on_prompt(len(before_reply))

    reply, nll, kl, predicted = None, None, None, last
    if setting.replies == "own":
        reply = _generate_reply(engine, cache, evictor, last, segment, setting)
        end_of_turn = engine.segmenter.end_of_turn_ids if setting.feed_end_of_turn else ()
        fed = (*segment.opening_ids, *reply.ids, *end_of_turn)
        _feed_reply(engine, cache, evictor, end_of_turn)
    else:
        if setting.max_new_tokens:
            # On copies of cache and evictor: this reply is judged, but not part of the dialogue.
            copies = cache.fork(), evictor.copy(evictor.turn)
            reply = _generate_reply(engine, *copies, last, segment, setting)
        fed = segment.reply_ids
        if together:
            rest = hidden[prompt:]
            evictor.step += len(fed)
        else:
            rest = _feed_reply(engine, cache, evictor, fed)
        predicted = torch.cat([last, rest[:-1]])
        nll, kl = engine.score(predicted, fed, baseline)
    evictions = tuple(evictor.log[evictions_before:])
    lived = integrity_over_reply(
        before_reply,
        evictor.log[prompt_evictions:],
        cache.slot_table.tokens_seen,
        engine.frequencies,
        engine.window,
    )
    return TurnOutcome(
        prompt=segment.prompt_ids,
        fed=fed,
        predicted=predicted,
        reply=reply,
        reference_nll=nll,
        kl_baseline=kl,
        integrity=lived,
        integrity_at_end=measure_integrity(engine, cache),
        evictions=evictions,
        slots_start=start,
        slots_after_prompt=after_prompt,
        slots_after_eviction=evictions[-1].slots_after_healing if evictions else None,
        slots_end=cache.size,
        slots_peak=max([start, after_prompt, cache.size, *(e.slots_before for e in evictions)]),
        tokens_seen_start=seen,
        tokens_seen_end=cache.slot_table.tokens_seen,
        next_position=next_position,
        prefill_s=prefill_s,
        prompt_s=prompt_s,
        peak_bytes=_peak_bytes(engine),
        concurrency=engine.scheduler.concurrency() if engine.scheduler else 1,
    )


def measure_integrity(engine: Engine, cache: ManagedCache) -> Integrity:
    """Positional integrity of the cache for the next query."""
    weights = None
    if cache.scores is not None and cache.scores.available:
        scores = cache.scores.rows(ScoreHistory.LATEST).double()
        layers, heads, slots = scores.shape
        rows, groups, _ = cache.slot_table.token_index.shape
        if rows == 1:
            weights = scores.mean((0, 1))
        else:
            weights = scores.view(layers, groups, heads // groups, slots).mean(2)
    return integrity(cache.slot_table, engine.frequencies, engine.window, weights)


def _reply_is_fed_with_prompt(engine: Engine, evictor: Evictor, setting: TurnSetting) -> bool:
    """Whether a turn is one forward: the reply is known, nothing happens between prompt and reply,
    and the prompt's seconds are not the run's own, because other runs compute at the same time."""
    known = setting.replies == "reference" and not setting.max_new_tokens
    return known and evictor.evicts_between_turns_only and engine.scheduler is not None


def _peak_bytes(engine: Engine) -> int | None:
    if engine.device.type != "cuda" or engine.scheduler is not None:
        return None
    return torch.cuda.max_memory_allocated(engine.device)


def _generate_reply(
    engine: Engine,
    cache: ManagedCache,
    evictor: Evictor,
    last: Tensor,
    segment: Segment,
    setting: TurnSetting,
) -> Reply:
    if segment.opening_ids:
        last = _feed_reply(engine, cache, evictor, segment.opening_ids)[-1:].clone()
    return generate(
        engine, cache, evictor, last, setting.max_new_tokens, setting.sampling, setting.seed
    )


def _feed_reply(
    engine: Engine, cache: ManagedCache, evictor: Evictor, ids: Sequence[int]
) -> Tensor:
    """Feed a known reply; evictions happen as in token-by-token decoding.

    Returns:
        Hidden states [m, hidden].
    """
    parts: list[Tensor] = []
    start = 0
    while start < len(ids):
        evictor.before_step(cache)
        limit = evictor.steps_without_eviction(cache)
        stop = len(ids) if limit is None else min(len(ids), start + limit)
        # Whoever looks at the latest scores then sees those of one token, as after decoding.
        parts.append(engine.feed(cache, ids[start:stop], latest_is_last=True))
        evictor.step += stop - start
        start = stop
    return torch.cat(parts) if parts else torch.empty(0)
