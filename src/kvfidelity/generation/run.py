"""One cell of the grid on one dialogue: from a specification to tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import polars as pl

from kvfidelity.cache.healing import FedMessages
from kvfidelity.cache.positions import PositionMode
from kvfidelity.decoding.engine import Engine
from kvfidelity.dialogues.pool import Dialogue
from kvfidelity.generation.baseline import baseline_key, compute_baseline, shared_turns
from kvfidelity.generation.baseline_run import BaselineRun, BaselineStore
from kvfidelity.generation.comparison import BaselineComparer, compare_shared_turn
from kvfidelity.generation.known_text import known_text
from kvfidelity.generation.out_of_memory import ran_out_of_memory
from kvfidelity.generation.plan import RunPlan, plan_run
from kvfidelity.generation.recall_prober import RecallProber
from kvfidelity.generation.spec import RunSpec
from kvfidelity.generation.timed_turn import Progress, run_timed_turn
from kvfidelity.generation.turn_row import failed_row, turn_row
from kvfidelity.generation.turns import TurnOutcome
from kvfidelity.records.frames import evictions_frame, turns_frame
from kvfidelity.records.questions import questions


class Records(NamedTuple):
    """A run's tables, with the schemas of `records.columns`."""

    turns: pl.DataFrame
    evictions: pl.DataFrame

    @property
    def recall(self) -> pl.DataFrame:
        """The recall questions of the turns, with the columns of `records.columns.RECALL`."""
        return questions(self.turns.lazy()).collect()


def run_dialogue(
    engine: Engine,
    dialogue: Dialogue,
    spec: RunSpec,
    prefix_cache: BaselineStore | None = None,
    progress: Progress = lambda event: None,
) -> Records:
    """Run one dialogue under one policy.

    Args:
        prefix_cache: keeps the baseline between calls; without it the baseline is computed here.
        progress: gets {"event": "turn", "turn", "turns", "slots", "tokens_per_s", "concurrency",
            "batch_tokens_per_s"} after each turn.

    Raises:
        UserError: a specification or dialogue that cannot be run; the message names it.
    """
    plan = plan_run(engine, dialogue, spec)
    try:
        return _run_plan(engine, plan, prefix_cache, progress)
    except RuntimeError as error:  # outside of a turn's own work, for example in a copied cache
        ran_out_of_memory(engine, error)
        raise


def _run_plan(
    engine: Engine, plan: RunPlan, prefix_cache: BaselineStore | None, progress: Progress
) -> Records:
    def compute() -> BaselineRun:
        return compute_baseline(engine, plan, progress)

    baseline = (
        prefix_cache.get(baseline_key(engine, plan), compute, engine.scheduler)
        if prefix_cache is not None
        else compute()
    )
    first = shared_turns(plan, baseline)
    prober = RecallProber(engine, plan.recall, plan.questions, plan.turns)
    rows = _shared_turns(engine, plan, baseline, first, prober)
    if first < len(baseline.outcomes):
        rows += _evicting_turns(engine, plan, baseline, first, prober, progress)
    return Records(
        turns_frame(rows, prober.rows),
        evictions_frame(plan.evictor.log, PositionMode(plan.spec.positions)),
    )


def _shared_turns(
    engine: Engine, plan: RunPlan, baseline: BaselineRun, turns: int, prober: RecallProber
) -> list[dict[str, Any]]:
    """Rows of the turns before the first eviction, taken over from the baseline."""
    evictor, shared = plan.evictor, plan.evictor.policy.evicts
    rows = []
    for turn in range(turns):
        outcome = baseline.outcomes[turn]
        comparison = compare_shared_turn(plan, outcome)
        rows.append(turn_row(engine, plan, turn, outcome, comparison, [], shared=shared))
        prober.note_turn(outcome)
        if prober.is_due_after(turn):
            end = baseline.end_of_turn(turn)
            evictor.step, evictor.turn = end.step, turn
            evictor.messages = messages_of_turns(engine, baseline.outcomes[: turn + 1])
            cache = baseline.fork(end, plan.spec.positions, plan.query_window)
            cache.transcript = known_text(engine, plan, baseline, turn + 1)
            prober.ask_all(cache, evictor)
    if baseline.out_of_memory and turns == len(baseline.outcomes):
        rows.append(failed_row(plan, turns, shared=shared))
    return rows


def messages_of_turns(engine: Engine, outcomes: Sequence[TurnOutcome]) -> FedMessages:
    """The messages of the turns so far, which evicted nothing."""
    messages = FedMessages(engine.feed)
    for outcome in outcomes:
        messages.add_turn(outcome.tokens_seen_start, len(outcome.prompt))
    return messages


def _evicting_turns(
    engine: Engine,
    plan: RunPlan,
    baseline: BaselineRun,
    first: int,
    prober: RecallProber,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Rows of the turns from the first that may evict, on a fork of the baseline's cache."""
    evictor, start = plan.evictor, baseline.starts[first]
    evictor.step = start.step
    cache = baseline.fork(start, plan.spec.positions, plan.query_window)
    evictor.messages = messages_of_turns(engine, baseline.outcomes[:first])
    cache.transcript = known_text(engine, plan, baseline, first)
    comparer = BaselineComparer(engine, plan, baseline, first)
    if not plan.scored:
        cache.scores = None
    outcomes, logged, failed = [], [], False
    for turn in range(first, len(plan.segments)):
        evictor.turn = turn
        outcome = run_timed_turn(
            engine, plan, turn, cache, evictor, progress, baseline=comparer.predicted(turn)
        )
        if outcome is None:
            failed = True
            break
        prober.note_turn(outcome)
        if prober.is_due_after(turn):
            prober.ask_all(cache, evictor)
        outcomes.append(outcome)
        logged.append(len(evictor.log))
    del cache  # its memory is free for what the comparison feeds
    rows = [
        turn_row(engine, plan, turn, outcome, comparison, evictor.log[:evictions], shared=False)
        for turn, (outcome, comparison, evictions) in enumerate(
            zip(outcomes, comparer.compare(outcomes), logged, strict=True), start=first
        )
    ]
    if failed:
        rows.append(failed_row(plan, first + len(outcomes), shared=False))
    return rows
