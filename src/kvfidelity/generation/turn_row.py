"""One turn's outcome as a row of the turns table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from kvfidelity.cache.eviction_log import Eviction
from kvfidelity.decoding.engine import Engine
from kvfidelity.dialogues.pool import Turn
from kvfidelity.generation.turns import TurnOutcome
from kvfidelity.records.columns import TURNS
from kvfidelity.records.frames import integrity_values


def turn_row(
    engine: Engine,
    identity: Mapping[str, Any],
    turn: Turn,
    outcome: TurnOutcome,
    log: Sequence[Eviction],
) -> dict[str, Any]:
    """A row with every column but `reply_nll_baseline` and `kl_baseline`, which compare with
    another run.

    Args:
        identity: the columns that say which run and turn this is.
        log: the run's evictions so far, this turn's included.
    """
    row = dict.fromkeys(TURNS) | dict(identity) | {"prompt": turn.user, "reference": turn.assistant}
    row |= _sizes(engine, outcome) | _timings(outcome) | _quality(engine, outcome)
    row |= integrity_values(outcome.integrity, log)
    return row | {
        "peak_device_bytes": outcome.peak_bytes,
        "trained_window": engine.window,
        "device": _device_name(engine),
        "dtype": str(engine.model.dtype).removeprefix("torch."),
    }


def failed_row(identity: Mapping[str, Any], turn: Turn) -> dict[str, Any]:
    """A turn for which memory ran out: a result, with everything unmeasured missing."""
    return (
        dict.fromkeys(TURNS)
        | dict(identity)
        | {"prompt": turn.user, "reference": turn.assistant, "finish_reason": "out_of_memory"}
    )


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
    evicted = sum(e.slots_before - e.slots_after for e in outcome.evictions)
    fed = outcome.tokens_seen_end - outcome.tokens_seen_start
    return row | {
        "token_bytes": engine.token_bytes,
        "prompt_tokens": fed - len(outcome.fed),
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
    return {
        "eviction_s": sum(e.eviction_s for e in outcome.evictions),
        "scoring_s": sum(e.scoring_s for e in outcome.evictions),
        "prefill_s": outcome.prompt_s,
        "ttft_s": outcome.prompt_s + reply.first_s if reply else None,
        "tpot_s": step,
        "decode_tokens_per_s": 1 / step if step else None,
        "concurrency": reply.concurrency if reply else None,
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
