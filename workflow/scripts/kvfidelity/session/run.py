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

from kvfidelity.cache.ledger import PositionMode
from kvfidelity.cache.log import Eviction
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.policies import build
from kvfidelity.cache.triggers import Evictor, Regime, Trigger
from kvfidelity.dialogues.pool import Dialogue, Turn
from kvfidelity.dialogues.segments import Segment
from kvfidelity.errors import UserError
from kvfidelity.session.engine import Engine
from kvfidelity.session.interview import Interview
from kvfidelity.session.prefix.bank import PrefixBank
from kvfidelity.session.prefix.full import FullRun
from kvfidelity.session.recall import Questions, RecallSetting, prepare
from kvfidelity.session.rows import evictions_frame, recall_frame, turns_frame
from kvfidelity.session.sampling import Sampling
from kvfidelity.session.spec import RunSpec
from kvfidelity.session.turnrow import failed_row, turn_row
from kvfidelity.session.turns import TurnOutcome, TurnSetting, play_turn
from kvfidelity.sizes import size_in_tokens

Progress = Callable[[dict[str, Any]], None]
# Query tails that a shared run keeps at each mark: as long as any built-in policy looks back.
SHARED_TAIL = 128


class Records(NamedTuple):
    """A run's tables, with the schemas of `session.rows`."""

    turns: pl.DataFrame
    evictions: pl.DataFrame
    recall: pl.DataFrame


def run_dialogue(
    engine: Engine,
    dialogue: Dialogue,
    spec: RunSpec,
    bank: PrefixBank | None = None,
    progress: Progress = lambda event: None,
) -> Records:
    """Run one dialogue under one policy.

    Args:
        bank: remembers the never evicted run between calls; without one it is computed here.
        progress: gets {"event": "turn", "turn", "turns", "slots", "tokens_per_s", "lanes",
            "lanes_tokens_per_s"} after each turn.

    Raises:
        UserError: a specification or dialogue that cannot be run; the message names it.
    """
    run = _Run(engine, dialogue, spec, progress)
    return run.play(bank or PrefixBank(0))


@dataclass(frozen=True)
class _Plan:
    turns: Sequence[Turn]
    segments: Sequence[Segment]
    setting: TurnSetting
    evictor: Evictor
    query_tail: int
    scored: bool
    recall: RecallSetting
    questions: Questions


class _Run:
    def __init__(
        self, engine: Engine, dialogue: Dialogue, spec: RunSpec, progress: Progress
    ) -> None:
        self.engine, self.dialogue, self.spec, self.progress = engine, dialogue, spec, progress
        self.plan = _plan(engine, dialogue, spec)
        self.interview = Interview(
            engine,
            self.plan.recall,
            self.plan.questions,
            self.plan.turns,
            lambda turn: self._identity(turn, False),
        )

    def play(self, bank: PrefixBank) -> Records:
        try:
            return self._records(bank)
        except RuntimeError as error:  # where it is no turn's result: in a copy of the cache, say
            self._ran_out_of_memory(error)
            raise

    def _records(self, bank: PrefixBank) -> Records:
        full = bank.get(self._key(), self._full_run, self.engine.hub)
        evictor = self.plan.evictor
        evicts = evictor.policy.evicts
        first = len(full.outcomes)
        if evicts:
            first = self._first_evicting_turn(full) if self.spec.share_prefix else 0
        rows = self._rows_of(full, first, shared=evicts)
        self._ask_of(full, first)
        if evicts and not (first == len(full.outcomes) and full.out_of_memory):
            rows += self._managed_turns(full, first)
        log = evictor.log if evicts else []
        mode = PositionMode(self.spec.positions)
        return Records(
            turns_frame(rows), evictions_frame(log, mode), recall_frame(self.interview.rows)
        )

    def _full_run(self) -> FullRun:
        cache = self.engine.new_cache(
            PositionMode.ORIGINAL,
            collect_scores=self.plan.scored,
            query_tail=SHARED_TAIL if self._shares_tails() else 0,
        )
        full = FullRun(cache)
        baseline = Evictor(build("baseline", {}), Regime(Trigger.TURN, None), self.spec.seed)
        for turn in range(len(self.plan.segments)):
            full.starts.append(full.mark(baseline.step))
            try:
                outcome = self._play_turn(
                    turn, cache, baseline, lambda at: full.prompts.append(at.size)
                )
            except RuntimeError as error:
                if not self._ran_out_of_memory(error):
                    raise
                full.out_of_memory = True
                break
            full.outcomes.append(outcome)
        if not full.out_of_memory:
            full.end = full.mark(baseline.step)
        return full

    def _managed_turns(self, full: FullRun, first: int) -> list[dict[str, Any]]:
        evictor = self.plan.evictor
        shadow: ManagedCache | None = None
        if first < len(full.starts):
            start = full.starts[first]
            evictor.step = start.step
            cache = full.fork(start, self.spec.positions, self.plan.query_tail)
            shadow = full.fork_at(start.slots) if self.spec.replies == "own" else None
        else:
            return []
        if not self.plan.scored:
            cache.scores = None
        rows = []
        for turn in range(first, len(self.plan.segments)):
            evictor.turn = turn
            try:
                outcome = self._play_turn(turn, cache, evictor)
            except RuntimeError as error:
                if not self._ran_out_of_memory(error):
                    raise
                rows.append(failed_row(self._identity(turn, False), self._turn(turn)))
                break
            full_nll, kl = self._compare(full, shadow, turn, outcome)
            self.interview.listen(outcome)
            if self.interview.comes_after(turn):
                self.interview.hold(cache, evictor)
            rows.append(self._row(turn, outcome, evictor.log, False, full_nll, kl))
        return rows

    def _play_turn(
        self,
        turn: int,
        cache: ManagedCache,
        evictor: Evictor,
        on_prompt: Callable[[ManagedCache], None] = lambda cache: None,
    ) -> TurnOutcome:
        setting = self.plan.setting
        if not self._replies_in(turn):
            setting = replace(setting, max_new_tokens=0)
        began = self.engine.now()
        outcome = play_turn(
            self.engine, cache, evictor, self.plan.segments[turn], setting, on_prompt
        )
        spent = self.engine.now() - began
        fed = outcome.tokens_seen_end - outcome.tokens_seen_start
        reply = outcome.reply
        self.progress(
            {
                "event": "turn",
                "turn": turn + 1,
                "turns": len(self.plan.segments),
                "slots": cache.size,
                "tokens_per_s": round(fed / spent, 1),
                "lanes": reply.lanes if reply else 1,
                "lanes_tokens_per_s": round((reply.lanes_per_s if reply else None) or 0, 1),
            }
        )
        return outcome

    def _compare(
        self, full: FullRun, shadow: ManagedCache | None, turn: int, outcome: TurnOutcome
    ) -> tuple[float | None, float | None]:
        """The own reply's nats per token under the full cache, and KL(full || managed)."""
        engine, reply = self.engine, outcome.reply
        if shadow is not None:
            last = engine.feed(shadow, self.plan.segments[turn].prompt_ids)[-1:]
            hidden = torch.cat([last, engine.feed(shadow, outcome.fed)]) if outcome.fed else last
            return _mean_nll(engine, hidden, reply.ids if reply else ()), None
        if turn >= len(full.outcomes):
            return None, None
        theirs = full.outcomes[turn].predicted
        kl = float(engine.divergence(theirs, outcome.predicted).double().mean())
        if reply is None or not reply.ids:
            return None, kl
        hidden = torch.cat([theirs[:1], engine.feed(full.fork_at(full.prompts[turn]), reply.ids)])
        return _mean_nll(engine, hidden, reply.ids), kl

    def _rows_of(self, full: FullRun, turns: int, *, shared: bool) -> list[dict[str, Any]]:
        rows = []
        for turn in range(turns):
            outcome = full.outcomes[turn]
            nll = outcome.reply.nll if outcome.reply else ()
            mean = sum(nll) / len(nll) if nll else None
            kl = 0.0 if self.spec.replies == "reference" else None
            rows.append(self._row(turn, outcome, [], shared, mean, kl))
        if full.out_of_memory and turns == len(full.outcomes):
            rows.append(failed_row(self._identity(turns, shared), self._turn(turns)))
        return rows

    def _ask_of(self, full: FullRun, turns: int) -> None:
        """Ask after the turns that this run shares with the never evicted one."""
        evictor = self.plan.evictor
        for turn in range(turns):
            self.interview.listen(full.outcomes[turn])
            if self.interview.comes_after(turn):
                end = full.after(turn)
                evictor.step, evictor.turn = end.step, turn
                cache = full.fork(end, self.spec.positions, self.plan.query_tail)
                self.interview.hold(cache, evictor)

    def _row(
        self,
        turn: int,
        outcome: TurnOutcome,
        log: Sequence[Eviction],
        shared: bool,
        full_nll: float | None,
        kl: float | None,
    ) -> dict[str, Any]:
        identity = self._identity(turn, shared)
        values = {"reply_nll_full": full_nll, "kl_full": kl}
        return turn_row(self.engine, identity, self._turn(turn), outcome, log) | values

    def _identity(self, turn: int, shared: bool) -> dict[str, Any]:
        spec, regime = self.spec, self.plan.evictor.regime
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
            "threshold_tokens": regime.threshold,
            "target_tokens": regime.target,
            "seed": spec.seed,
            "replies": spec.replies,
            "turn": turn,
            "turns_total": len(self.plan.segments),
            "shared_prefix": shared,
            "scores_collected": self.plan.scored,
        }

    def _turn(self, turn: int) -> Turn:
        return self.plan.turns[turn]

    def _first_evicting_turn(self, full: FullRun) -> int:
        evictor = self.plan.evictor
        for turn, outcome in enumerate(full.outcomes):
            if evictor.fires_within(outcome.slots_start, outcome.slots_peak):
                return turn
        return len(full.outcomes)

    def _ran_out_of_memory(self, error: RuntimeError) -> bool:
        """Whether that is what happened; among other runs it means nothing, see `session.lanes`."""
        if _out_of_memory(error) and self.engine.hub is not None:
            self.engine.hub.out_of_memory()
        return _out_of_memory(error)

    def _replies_in(self, turn: int) -> bool:
        """Whether an own reply is generated in this turn."""
        last = self.spec.own_reply_turns
        if self.spec.replies == "own" or last is None:
            return True
        return turn >= len(self.plan.segments) - last

    def _shares_tails(self) -> bool:
        return self.plan.query_tail > 0

    def _key(self) -> str:
        spec, plan = self.spec, self.plan
        what = [
            [(segment.prompt_ids, segment.reply_ids) for segment in plan.segments],
            spec.replies,
            spec.max_new_tokens,
            spec.own_reply_turns,
            spec.feed_end_of_turn,
            spec.temperature,
            spec.top_p,
            spec.seed,
            plan.scored,
            self._shares_tails(),
        ]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _plan(engine: Engine, dialogue: Dialogue, spec: RunSpec) -> _Plan:
    if not dialogue.turns:
        raise UserError(f"dialogue {dialogue.dialogue_id} has no turn; drop it from the dataset")
    recall = RecallSetting.of(spec.recall)
    if recall.planted_per_depth and spec.max_first_prompt_tokens is not None:
        raise UserError(
            "session.recall.planted_per_depth and session.max_first_prompt_tokens exclude each "
            "other: what is planted could be cut away; set one of them to 0 or null"
        )
    questions = prepare(
        dialogue,
        recall,
        spec.seed,
        max_turns=spec.max_turns,
        max_prompt_tokens=spec.max_prompt_tokens,
    )
    turns = questions.dialogue.turns[: spec.max_turns]
    policy = build(spec.kind, spec.parameters, [Path(file) for file in spec.policy_files])
    if policy.query_tail > SHARED_TAIL:
        raise UserError(
            f"policy {spec.policy}: it looks back {policy.query_tail} queries; at most "
            f"{SHARED_TAIL} are kept"
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
        evictor=Evictor(policy, Regime(Trigger(spec.trigger), *sizes), spec.seed),
        query_tail=policy.query_tail,
        scored=policy.needs_scores or spec.score_every_run,
        recall=recall,
        questions=questions,
    )


def _out_of_memory(error: RuntimeError) -> bool:
    """On a GPU there is a class for it; PyTorch's CPU allocator and CUDA's libraries use words."""
    words = ("not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError) or any(word in said for word in words)


def _mean_nll(engine: Engine, hidden: torch.Tensor, ids: Sequence[int]) -> float | None:
    """Nats per token of `ids`; row j of `hidden` predicts token j, further rows are ignored."""
    if not ids:
        return None
    return float(engine.nll(hidden[: len(ids)], ids).double().mean())
