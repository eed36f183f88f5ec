"""One turn's outcome as a row of the turns table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from kvfidelity.cache.eviction_log import Eviction
from kvfidelity.decoding.engine import Engine
from kvfidelity.generation.comparison import Comparison
from kvfidelity.generation.plan import RunPlan
from kvfidelity.generation.turns import TurnOutcome
from kvfidelity.records.columns import TURN
from kvfidelity.records.declaration import schema
from kvfidelity.records.frames import disruption_values, integrity_values


def turn_row(
    engine: Engine,
    plan: RunPlan,
    turn: int,
    outcome: TurnOutcome,
    comparison: Comparison,
    log: Sequence[Eviction],
    *,
    shared: bool,
) -> dict[str, Any]:
    """A row with every column of `records.columns.TURNS` but `recall`.

    Args:
        log: the run's evictions so far, this turn's included.
        shared: whether the turn was computed once for all cells.
    """
    row = _unmeasured(plan, turn, shared=shared)
    row |= _sizes(engine, outcome) | _timings(outcome) | _quality(engine, outcome)
    row |= comparison._asdict() | integrity_values(outcome.integrity, log, outcome.integrity_at_end)
    row |= disruption_values(log[-1].disruption if log else None)
    return row | {
        "peak_device_bytes": outcome.peak_bytes,
        "trained_window": engine.window,
        "device": _device_name(engine),
        "dtype": str(engine.model.dtype).removeprefix("torch."),
    }


def failed_row(plan: RunPlan, turn: int, *, shared: bool) -> dict[str, Any]:
    """A turn for which memory ran out: a result, with everything unmeasured missing."""
    return _unmeasured(plan, turn, shared=shared) | {"finish_reason": "out_of_memory"}


def identity_columns(plan: RunPlan, turn: int, *, shared: bool) -> dict[str, Any]:
    """The columns that say which run and turn a row belongs to."""
    spec, schedule = plan.spec, plan.evictor.schedule
    return {
        "model": spec.model,
        "model_revision": spec.model_revision,
        "dataset": spec.dataset,
        "dialogue": plan.dialogue.ordinal,
        "dialogue_id": plan.dialogue.dialogue_id,
        "policy": spec.policy,
        "kind": spec.kind,
        "parameters": json.dumps(spec.parameters, sort_keys=True),
        "positions": spec.positions,
        "threshold": spec.threshold,
        "trigger": spec.trigger,
        "threshold_tokens": schedule.threshold,
        "target_tokens": schedule.target,
        "seed": spec.seed,
        "replies": spec.replies,
        "turn": turn,
        "turns_total": len(plan.segments),
        "shared_prefix": shared,
        "scores_collected": plan.scored,
    }


def _unmeasured(plan: RunPlan, turn: int, *, shared: bool) -> dict[str, Any]:
    text = plan.turns[turn]
    row = dict.fromkeys(schema(*TURN)) | identity_columns(plan, turn, shared=shared)
    own = plan.dialogue.turns[turn].user
    texts = {"prompt": text.user, "message": None if own == text.user else own}
    return row | texts | {"reference": text.assistant}


def _sizes(engine: Engine, outcome: TurnOutcome) -> dict[str, Any]:
    slots = {
        "start": outcome.slots_start,
        "after_prefill": outcome.slots_after_prompt,
        "after_eviction": outcome.slots_after_eviction,
        "end": outcome.slots_end,
        "peak": outcome.slots_peak,
    }
    row: dict[str, Any] = {}
    for moment, count in slots.items():
        row[f"slots_{moment}"] = count
        row[f"cache_bytes_{moment}"] = None if count is None else count * engine.token_bytes
    evicted = sum(eviction.tokens_evicted for eviction in outcome.evictions)
    fed = outcome.tokens_seen_end - outcome.tokens_seen_start
    return row | {
        "token_bytes": engine.token_bytes,
        "prompt_tokens": fed - len(outcome.fed) - outcome.healing_tokens,
        "reply_tokens": len(outcome.fed),
        "tokens_seen_start": outcome.tokens_seen_start,
        "tokens_seen_end": outcome.tokens_seen_end,
        "next_position": outcome.next_position,
        "evictions": len(outcome.evictions),
        "evicted_tokens": evicted,
    }


def _timings(outcome: TurnOutcome) -> dict[str, Any]:
    reply = outcome.reply
    step = reply.step_s if reply else None
    first_token_s = None
    if reply is not None and outcome.prompt_s is not None:
        first_token_s = outcome.prompt_s + reply.first_s
    return {
        "eviction_s": sum(e.eviction_s for e in outcome.evictions),
        "scoring_s": sum(e.scoring_s for e in outcome.evictions),
        "prefill_s": outcome.prefill_s,
        "ttft_s": first_token_s,
        "tpot_s": step,
        "decode_tokens_per_s": 1 / step if step else None,
        "concurrency": outcome.concurrency,
        "batch_tokens_per_s": reply.batch_tokens_per_s if reply else None,
    }


def _quality(engine: Engine, outcome: TurnOutcome) -> dict[str, Any]:
    reply, nll = outcome.reply, outcome.reference_nll
    text = None
    if reply is not None:
        text = engine.tokenizer.decode(list(reply.ids), skip_special_tokens=True)
    return {
        "reply": text,
        "finish_reason": reply.finish if reply else "not_generated",
        "reply_token_count": len(reply.ids) if reply else None,
        "reply_nll": sum(reply.nll) / len(reply.nll) if reply and reply.nll else None,
        "reference_nll": None if nll is None else float(nll.double().mean()),
        "reference_tokens": None if nll is None else nll.numel(),
        "reference_token_nll": None if nll is None else nll.tolist(),
    }


def _device_name(engine: Engine) -> str:
    if engine.device.type == "cuda":
        return torch.cuda.get_device_name(engine.device)
    return engine.device.type
