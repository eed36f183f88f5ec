"""One turn of a plan, with a progress event; running out of memory is a result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
        with naming_turn(plan, turn):
            outcome = run_turn(
                engine,
                cache,
                evictor,
                plan.segments[turn],
                plan.turn_setting(turn),
                on_prompt,
                baseline,
                lambda: plan.prompt_after_gap(engine, turn),
            )
    except RuntimeError as error:
        if not ran_out_of_memory(engine, error):
            raise
        return None
    fed = outcome.tokens_seen_end - outcome.tokens_seen_start
    progress(turn_event(plan, turn, outcome, fed / (engine.now() - start_s)))
    return outcome


def turn_event(
    plan: RunPlan, turn: int, outcome: TurnOutcome, tokens_per_s: float
) -> dict[str, Any]:
    """The progress event of a turn that has ended."""
    reply = outcome.reply
    return {
        "event": "turn",
        "turn": turn + 1,
        "turns": len(plan.segments),
        "slots": outcome.slots_end,
        "tokens_per_s": round(tokens_per_s, 1),
        "concurrency": outcome.concurrency,
        "batch_tokens_per_s": round((reply.batch_tokens_per_s if reply else None) or 0, 1),
    }


@contextmanager
def naming_turn(plan: RunPlan, turn: int) -> Iterator[None]:
    """Inside, an overflow of the model's numbers is an error that names dialogue and turn."""
    try:
        yield
    except ModelOverflowError as error:
        where = f"dialogue {plan.dialogue.dialogue_id}, turn {turn + 1} of {len(plan.segments)}"
        raise ModelOverflowError(f"{where}: {error}") from None
