"""When a run is asked its questions, and what is noted of the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.triggers import Evictor
from kvfidelity.dialogues.pool import Turn
from kvfidelity.session.engine import Engine
from kvfidelity.session.recall import Questions, RecallSetting, answered, ask
from kvfidelity.session.turns import TurnOutcome


class Interview:
    """One run's questions; nothing of the run is changed by them.

    Args:
        turns: those that are run.
        identity: the columns that say which run and turn a row is of.
    """

    def __init__(
        self,
        engine: Engine,
        setting: RecallSetting,
        questions: Questions,
        turns: Sequence[Turn],
        identity: Callable[[int], Mapping[str, Any]],
    ) -> None:
        self._engine, self._setting, self._turns = engine, setting, turns
        self._probes, self._identity = questions.probes, identity
        self._told: list[tuple[int, int]] = []
        #: Rows of `session.rows.RECALL`.
        self.rows: list[dict[str, Any]] = []

    def comes_after(self, turn: int) -> bool:
        """Whether there is anything to ask after this turn."""
        return bool(self._probes) and self._setting.asks_after(turn, len(self._turns))

    def listen(self, outcome: TurnOutcome) -> None:
        """Note where the next turn's message stands."""
        end_of_prompt = outcome.tokens_seen_end - len(outcome.fed)
        self._told.append((outcome.tokens_seen_start, end_of_prompt))

    def hold(self, cache: ManagedCache, evictor: Evictor) -> None:
        """Put every question about what was said so far.

        Args:
            cache, evictor: as the latest turn left them; both are copied.
        """
        turn = len(self._told) - 1
        asked, trial = cache.fork(), evictor.copy(turn + 1)
        trial.before_turn(asked)
        evictions = cache.ledger.evictions + len(trial.log)
        for number, (origin, probe) in enumerate(self._probes):
            place = probe.planted_at_turn
            if place is not None and place > turn:
                continue
            # Where nothing is evicted meanwhile, forgetting is a tenth of copying.
            rests = trial.rests_within_turns
            with asked.aside() if rests else nullcontext():
                found = ask(
                    self._engine,
                    asked if rests else asked.fork(),
                    trial.copy(turn + 1),
                    self._turns[turn],
                    probe,
                    None if place is None else self._told[place],
                    self._setting.max_new_tokens,
                )
            self.rows.append(
                {
                    **self._identity(turn),
                    "probe": number,
                    "origin": origin,
                    "depth": probe.depth,
                    "subject": probe.kind,
                    "told_in_turn": place,
                    "told_cached_share": found.told_cached_share,
                    "slots": asked.size,
                    "evictions": evictions,
                    "question": probe.question,
                    "answer": probe.answer,
                    "distractors": list(probe.distractors),
                    "answer_nll": found.answer_nll,
                    "distractor_nll": list(found.distractor_nll),
                    "margin": found.margin,
                    "chosen": found.chosen,
                    "reply": found.reply,
                    "answered": answered(found, probe),
                }
            )
