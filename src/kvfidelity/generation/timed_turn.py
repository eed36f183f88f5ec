"""One turn of a plan, with a progress event; running out of memory is a result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from kvfidelity.cache.evictor import Evictor
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.decoding.engine import Engine
from kvfidelity.errors import ModelOverflowError
from kvfidelity.generation.out_of_memory import ran_out_of_memory
from kvfidelity.generation.plan import RunPlan
from kvfidelity.generation.turns import TurnOutcome, run_turn

Progress = Callable[[dict[str, Any]], None]


def run_timed_turn(
    engine: Engine,
    plan: RunPlan,
    turn: int,
    cache: ManagedCache,
    evictor: Evictor,
    progress: Progress,
    on_prompt: Callable[[int], None] = lambda slots: None,
    baseline: Tensor | None = None,
) -> TurnOutcome | None:
    """Run a turn and send {"event": "turn", ...}; None if memory ran out.

    Args:
        on_prompt, baseline: see `run_turn`.

    Raises:
        ModelOverflowError: the model computed NaN or infinity; dialogue and turn are named.
    """
    if engine.scheduler:
        engine.scheduler.restart_count()
    start_s = engine.now()
    try:
        outcome = run_turn(
            engine,
            cache,
            evictor,
            plan.segments[turn],
            plan.turn_setting(turn),
            on_prompt,
            baseline,
        )
    except ModelOverflowError as error:
        where = f"dialogue {plan.dialogue.dialogue_id}, turn {turn + 1} of {len(plan.segments)}"
        raise ModelOverflowError(f"{where}: {error}") from None
    except RuntimeError as error:
        if not ran_out_of_memory(engine, error):
            raise
        return None
    seconds = engine.now() - start_s
    fed = outcome.tokens_seen_end - outcome.tokens_seen_start
    reply = outcome.reply
    progress(
        {
            "event": "turn",
            "turn": turn + 1,
            "turns": len(plan.segments),
            "slots": cache.size,
            "tokens_per_s": round(fed / seconds, 1),
            "concurrency": outcome.concurrency,
            "batch_tokens_per_s": round((reply.batch_tokens_per_s if reply else None) or 0, 1),
        }
    )
    return outcome
