"""The baseline that a run starts from and is compared with: computed once, shared by all cells."""

from __future__ import annotations

import hashlib
import json

from kvfidelity.cache.evictor import EvictionSchedule, Evictor, Trigger
from kvfidelity.cache.policies import build_policy
from kvfidelity.cache.positions import PositionMode
from kvfidelity.decoding.engine import Engine
from kvfidelity.generation.baseline_run import BaselineRun, Checkpoint
from kvfidelity.generation.known_turns import feed_known_turns, known_turns
from kvfidelity.generation.out_of_memory import ran_out_of_memory
from kvfidelity.generation.plan import MAX_QUERY_WINDOW, RunPlan
from kvfidelity.generation.timed_turn import Progress, run_timed_turn


def compute_baseline(engine: Engine, plan: RunPlan, progress: Progress) -> BaselineRun:
    """Run the dialogue with nothing evicted, with a checkpoint at each turn's start."""
    cache = engine.new_cache(
        PositionMode.ORIGINAL,
        collect_scores=plan.scored,
        query_window=MAX_QUERY_WINDOW if _keeps_queries(engine, plan) else 0,
    )
    baseline = BaselineRun(cache)
    evictor = Evictor(
        build_policy("baseline", {}), EvictionSchedule(Trigger.TURN, None), plan.spec.seed
    )
    one_by_one = False
    baseline.starts.append(Checkpoint.of(cache, 0))
    while (turn := len(baseline.outcomes)) < len(plan.segments):
        if not one_by_one and (many := known_turns(engine, plan, turn, cache)):
            try:
                fed = feed_known_turns(engine, plan, many, cache, evictor, progress)
            except RuntimeError as error:
                if not ran_out_of_memory(engine, error):
                    raise
                one_by_one = True  # to find the turn that memory does not suffice for
                continue
            baseline.prompts += [outcome.slots_after_prompt for outcome in fed.outcomes]
            baseline.starts += fed.ends
            baseline.outcomes += fed.outcomes
            continue
        outcome = run_timed_turn(
            engine,
            plan,
            turn,
            cache,
            evictor,
            progress,
            on_prompt=baseline.prompts.append,
        )
        if outcome is None:
            baseline.out_of_memory = True
            return baseline
        baseline.outcomes.append(outcome)
        baseline.starts.append(Checkpoint.of(cache, evictor.step))
    baseline.end = baseline.starts.pop()
    return baseline


def _keeps_queries(engine: Engine, plan: RunPlan) -> bool:
    """Whether the baseline keeps the latest queries at each checkpoint, for policies that rank by
    them. On a GPU always: one baseline then serves all policies, and there is memory for it."""
    return plan.query_window > 0 or engine.device.type == "cuda"


def baseline_key(engine: Engine, plan: RunPlan) -> str:
    """A digest of everything in a plan that its baseline depends on; equal for equal baselines."""
    spec = plan.spec
    content = [
        [(part.prompt_ids, part.reply_ids, part.opening_ids) for part in plan.segments],
        spec.replies,
        spec.max_new_tokens,
        spec.own_reply_turns,
        spec.feed_end_of_turn,
        spec.temperature,
        spec.top_p,
        spec.seed,
        plan.scored,
        _keeps_queries(engine, plan),
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def shared_turns(plan: RunPlan, baseline: BaselineRun) -> int:
    """Number of turns that a run takes over from the baseline: those before its first eviction."""
    evictor, outcomes = plan.evictor, baseline.outcomes
    if not evictor.policy.evicts:
        return len(outcomes)
    if not plan.spec.share_prefix:
        return 0
    evicting = (
        turn
        for turn, outcome in enumerate(outcomes)
        if evictor.may_evict_in_turn(outcome.slots_start, outcome.slots_peak)
    )
    return next(evicting, len(outcomes))
