"""One cell of the grid for one dialogue: from a specification to rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch

from kvfidelity.cache.eviction_log import Eviction
from kvfidelity.cache.evictor import EvictionSchedule, Evictor, Trigger
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.policies import build_policy
from kvfidelity.cache.positions import PositionMode
from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.sampling import Sampling
from kvfidelity.dialogues.pool import Dialogue, Turn
from kvfidelity.dialogues.segments import Segment
from kvfidelity.errors import UserError
from kvfidelity.generation.recall import Questions, RecallSetting, prepare_questions
from kvfidelity.generation.recall_prober import RecallProber
from kvfidelity.generation.spec import RunSpec
from kvfidelity.generation.turn_row import failed_row, turn_row
from kvfidelity.generation.turns import TurnOutcome, TurnSetting, run_turn
from kvfidelity.prefix.baseline_run import BaselineRun
from kvfidelity.prefix.cache import PrefixCache
from kvfidelity.records.frames import evictions_frame, recall_frame, turns_frame
from kvfidelity.sizes import size_in_tokens

Progress = Callable[[dict[str, Any]], None]
# Query tails that a shared run keeps at each mark: as long as any built-in policy looks back.
MAX_QUERY_WINDOW = 128


class Records(NamedTuple):
    """A run's tables, with the schemas of `records.columns`."""

    turns: pl.DataFrame
    evictions: pl.DataFrame
    recall: pl.DataFrame


def run_dialogue(
    engine: Engine,
    dialogue: Dialogue,
    spec: RunSpec,
    prefix_cache: PrefixCache | None = None,
    progress: Progress = lambda event: None,
) -> Records:
    """Run one dialogue under one policy.

    Args:
        bank: remembers the never evicted run between calls; without one it is computed here.
        progress: gets {"event": "turn", "turn", "turns", "slots", "tokens_per_s", "lanes",
            "batch_tokens_per_s"} after each turn.

    Raises:
        UserError: a specification or dialogue that cannot be run; the message names it.
    """
    run = _Run(engine, dialogue, spec, progress)
    return run.execute(prefix_cache or PrefixCache(0))


@dataclass(frozen=True)
class _Plan:
    turns: Sequence[Turn]
    segments: Sequence[Segment]
    setting: TurnSetting
    evictor: Evictor
    query_window: int
    scored: bool
    recall: RecallSetting
    questions: Questions


class _Run:
    def __init__(
        self, engine: Engine, dialogue: Dialogue, spec: RunSpec, progress: Progress
    ) -> None:
        self.engine, self.dialogue, self.spec, self.progress = engine, dialogue, spec, progress
        self.plan = _plan(engine, dialogue, spec)
        self.prober = RecallProber(
            engine,
            self.plan.recall,
            self.plan.questions,
            self.plan.turns,
            lambda turn: self._identity(turn, False),
        )

    def execute(self, prefix_cache: PrefixCache) -> Records:
        try:
            return self._records(prefix_cache)
        except RuntimeError as error:  # where it is no turn's result: in a copy of the cache, say
            self._ran_out_of_memory(error)
            raise

    def _records(self, prefix_cache: PrefixCache) -> Records:
        baseline = prefix_cache.get(self._prefix_key(), self._baseline_run, self.engine.scheduler)
        evictor = self.plan.evictor
        evicts = evictor.policy.evicts
        first = len(baseline.outcomes)
        if evicts:
            first = self._first_evicting_turn(baseline) if self.spec.share_prefix else 0
        rows = self._shared_rows(baseline, first, shared=evicts)
        self._probe_shared_turns(baseline, first)
        if evicts and not (first == len(baseline.outcomes) and baseline.out_of_memory):
            rows += self._evicting_turns(baseline, first)
        log = evictor.log if evicts else []
        mode = PositionMode(self.spec.positions)
        return Records(
            turns_frame(rows), evictions_frame(log, mode), recall_frame(self.prober.rows)
        )

    def _baseline_run(self) -> BaselineRun:
        cache = self.engine.new_cache(
            PositionMode.ORIGINAL,
            collect_scores=self.plan.scored,
            query_window=MAX_QUERY_WINDOW if self._keeps_queries() else 0,
        )
        baseline = BaselineRun(cache)
        evictor = Evictor(
            build_policy("baseline", {}), EvictionSchedule(Trigger.TURN, None), self.spec.seed
        )
        for turn in range(len(self.plan.segments)):
            baseline.starts.append(baseline.checkpoint(evictor.step))
            try:
                outcome = self._run_turn(
                    turn, cache, evictor, lambda cache: baseline.prompts.append(cache.size)
                )
            except RuntimeError as error:
                if not self._ran_out_of_memory(error):
                    raise
                baseline.out_of_memory = True
                break
            baseline.outcomes.append(outcome)
        if not baseline.out_of_memory:
            baseline.end = baseline.checkpoint(evictor.step)
        return baseline

    def _evicting_turns(self, baseline: BaselineRun, first: int) -> list[dict[str, Any]]:
        evictor = self.plan.evictor
        baseline_cache: ManagedCache | None = None
        if first < len(baseline.starts):
            start = baseline.starts[first]
            evictor.step = start.step
            cache = baseline.fork(start, self.spec.positions, self.plan.query_window)
            baseline_cache = baseline.fork_at(start.slots) if self.spec.replies == "own" else None
        else:
            return []
        if not self.plan.scored:
            cache.scores = None
        rows = []
        for turn in range(first, len(self.plan.segments)):
            evictor.turn = turn
            try:
                outcome = self._run_turn(turn, cache, evictor)
            except RuntimeError as error:
                if not self._ran_out_of_memory(error):
                    raise
                rows.append(failed_row(self._identity(turn, False), self._dialogue_turn(turn)))
                break
            reply_nll_baseline, kl = self._compare_with_baseline(
                baseline, baseline_cache, turn, outcome
            )
            self.prober.note_turn(outcome)
            if self.prober.is_due_after(turn):
                self.prober.ask_all(cache, evictor)
            rows.append(self._row(turn, outcome, evictor.log, False, reply_nll_baseline, kl))
        return rows

    def _run_turn(
        self,
        turn: int,
        cache: ManagedCache,
        evictor: Evictor,
        on_prompt: Callable[[ManagedCache], None] = lambda cache: None,
    ) -> TurnOutcome:
        setting = self.plan.setting
        if not self._replies_in(turn):
            setting = replace(setting, max_new_tokens=0)
        start_s = self.engine.now()
        outcome = run_turn(
            self.engine, cache, evictor, self.plan.segments[turn], setting, on_prompt
        )
        seconds = self.engine.now() - start_s
        fed = outcome.tokens_seen_end - outcome.tokens_seen_start
        reply = outcome.reply
        self.progress(
            {
                "event": "turn",
                "turn": turn + 1,
                "turns": len(self.plan.segments),
                "slots": cache.size,
                "tokens_per_s": round(fed / seconds, 1),
                "concurrency": reply.concurrency if reply else 1,
                "batch_tokens_per_s": round((reply.batch_tokens_per_s if reply else None) or 0, 1),
            }
        )
        return outcome

    def _compare_with_baseline(
        self,
        baseline: BaselineRun,
        baseline_cache: ManagedCache | None,
        turn: int,
        outcome: TurnOutcome,
    ) -> tuple[float | None, float | None]:
        """The own reply's nats per token under the full cache, and KL(full || managed)."""
        engine, reply = self.engine, outcome.reply
        if baseline_cache is not None:
            last = engine.feed(baseline_cache, self.plan.segments[turn].prompt_ids)[-1:]
            hidden = (
                torch.cat([last, engine.feed(baseline_cache, outcome.fed)]) if outcome.fed else last
            )
            return _mean_nll(engine, hidden, reply.ids if reply else ()), None
        if turn >= len(baseline.outcomes):
            return None, None
        baseline_hidden = baseline.outcomes[turn].predicted
        kl = float(engine.kl_divergence(baseline_hidden, outcome.predicted).double().mean())
        if reply is None or not reply.ids:
            return None, kl
        hidden = torch.cat(
            [baseline_hidden[:1], engine.feed(baseline.fork_at(baseline.prompts[turn]), reply.ids)]
        )
        return _mean_nll(engine, hidden, reply.ids), kl

    def _shared_rows(
        self, baseline: BaselineRun, turns: int, *, shared: bool
    ) -> list[dict[str, Any]]:
        rows = []
        for turn in range(turns):
            outcome = baseline.outcomes[turn]
            nll = outcome.reply.nll if outcome.reply else ()
            mean = sum(nll) / len(nll) if nll else None
            kl = 0.0 if self.spec.replies == "reference" else None
            rows.append(self._row(turn, outcome, [], shared, mean, kl))
        if baseline.out_of_memory and turns == len(baseline.outcomes):
            rows.append(failed_row(self._identity(turns, shared), self._dialogue_turn(turns)))
        return rows

    def _probe_shared_turns(self, baseline: BaselineRun, turns: int) -> None:
        """Ask after the turns that this run shares with the never evicted one."""
        evictor = self.plan.evictor
        for turn in range(turns):
            self.prober.note_turn(baseline.outcomes[turn])
            if self.prober.is_due_after(turn):
                end = baseline.end_of_turn(turn)
                evictor.step, evictor.turn = end.step, turn
                cache = baseline.fork(end, self.spec.positions, self.plan.query_window)
                self.prober.ask_all(cache, evictor)

    def _row(
        self,
        turn: int,
        outcome: TurnOutcome,
        log: Sequence[Eviction],
        shared: bool,
        reply_nll_baseline: float | None,
        kl: float | None,
    ) -> dict[str, Any]:
        identity = self._identity(turn, shared)
        values = {"reply_nll_baseline": reply_nll_baseline, "kl_baseline": kl}
        return turn_row(self.engine, identity, self._dialogue_turn(turn), outcome, log) | values

    def _identity(self, turn: int, shared: bool) -> dict[str, Any]:
        spec, schedule = self.spec, self.plan.evictor.schedule
        return {
            "model": spec.model,
            "model_revision": spec.model_revision,
            "dataset": spec.dataset,
            "dialogue": self.dialogue.ordinal,
            "dialogue_id": self.dialogue.dialogue_id,
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
            "turns_total": len(self.plan.segments),
            "shared_prefix": shared,
            "scores_collected": self.plan.scored,
        }

    def _dialogue_turn(self, turn: int) -> Turn:
        return self.plan.turns[turn]

    def _first_evicting_turn(self, baseline: BaselineRun) -> int:
        evictor = self.plan.evictor
        for turn, outcome in enumerate(baseline.outcomes):
            if evictor.may_evict_in_turn(outcome.slots_start, outcome.slots_peak):
                return turn
        return len(baseline.outcomes)

    def _ran_out_of_memory(self, error: RuntimeError) -> bool:
        """Whether that is what happened; among other runs it means nothing, see
        `decoding.scheduler`."""
        if _out_of_memory(error) and self.engine.scheduler is not None:
            self.engine.scheduler.on_out_of_memory()
        return _out_of_memory(error)

    def _replies_in(self, turn: int) -> bool:
        """Whether an own reply is generated in this turn."""
        last = self.spec.own_reply_turns
        if self.spec.replies == "own" or last is None:
            return True
        return turn >= len(self.plan.segments) - last

    def _keeps_queries(self) -> bool:
        return self.plan.query_window > 0

    def _prefix_key(self) -> str:
        spec, plan = self.spec, self.plan
        content = [
            [(segment.prompt_ids, segment.reply_ids) for segment in plan.segments],
            spec.replies,
            spec.max_new_tokens,
            spec.own_reply_turns,
            spec.feed_end_of_turn,
            spec.temperature,
            spec.top_p,
            spec.seed,
            plan.scored,
            self._keeps_queries(),
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _plan(engine: Engine, dialogue: Dialogue, spec: RunSpec) -> _Plan:
    if not dialogue.turns:
        raise UserError(f"dialogue {dialogue.dialogue_id} has no turn; drop it from the dataset")
    recall = RecallSetting.of(spec.recall)
    if recall.needles_per_depth and spec.max_first_prompt_tokens is not None:
        raise UserError(
            "session.recall.needles_per_depth and session.max_first_prompt_tokens exclude each "
            "other: what is planted could be cut away; set one of them to 0 or null"
        )
    questions = prepare_questions(
        dialogue,
        recall,
        spec.seed,
        max_turns=spec.max_turns,
        max_prompt_tokens=spec.max_prompt_tokens,
    )
    turns = questions.dialogue.turns[: spec.max_turns]
    policy = build_policy(spec.kind, spec.parameters, [Path(file) for file in spec.policy_files])
    if policy.query_window > MAX_QUERY_WINDOW:
        raise UserError(
            f"policy {spec.policy}: it looks back {policy.query_window} queries; at most "
            f"{MAX_QUERY_WINDOW} are kept"
        )
    sizes = [
        size_in_tokens(size, token_bytes=engine.token_bytes, window=engine.window)
        if size is not None
        else None
        for size in (spec.at, spec.target)
    ]
    return _Plan(
        turns=turns,
        segments=engine.segmenter.segments(
            turns,
            max_prompt_tokens=spec.max_prompt_tokens,
            max_first_prompt_tokens=spec.max_first_prompt_tokens,
        ),
        setting=TurnSetting(
            spec.replies,
            spec.max_new_tokens,
            Sampling(spec.temperature, spec.top_p),
            spec.seed,
            spec.feed_end_of_turn,
        ),
        evictor=Evictor(policy, EvictionSchedule(Trigger(spec.trigger), *sizes), spec.seed),
        query_window=policy.query_window,
        scored=policy.needs_scores or spec.score_every_run,
        recall=recall,
        questions=questions,
    )


def _out_of_memory(error: RuntimeError) -> bool:
    """On a GPU there is a class for it; PyTorch's CPU allocator and CUDA's libraries use words."""
    phrases = ("not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    message = str(error)
    return isinstance(error, torch.OutOfMemoryError) or any(phrase in message for phrase in phrases)


def _mean_nll(engine: Engine, hidden: torch.Tensor, ids: Sequence[int]) -> float | None:
    """Nats per token of `ids`; row j of `hidden` predicts token j, further rows are ignored."""
    if not ids:
        return None
    return float(engine.nll(hidden[: len(ids)], ids).double().mean())
