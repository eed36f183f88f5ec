"""Asks a run's questions after the right turns, and records the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from kvfidelity.cache.evictor import Evictor
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.decoding.engine import Engine
from kvfidelity.dialogues.pool import Turn
from kvfidelity.generation.recall import Questions, RecallSetting, ask, reply_has_answer
from kvfidelity.generation.turns import TurnOutcome


class RecallProber:
    """Asks one run's questions, on copies of its cache and evictor.

    Args:
        turns: the turns that are run.
        identity: for a turn, the columns that say which run and turn a row belongs to.
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
        self._message_spans: list[tuple[int, int]] = []
        #: Rows of `records.columns.RECALL`.
        self.rows: list[dict[str, Any]] = []

    def is_due_after(self, turn: int) -> bool:
        """Whether questions are asked after this turn (0-based)."""
        return bool(self._probes) and self._setting.is_due_after(turn, len(self._turns))

    def note_turn(self, outcome: TurnOutcome) -> None:
        """Record the token indices of the message of the turn that has just ended."""
        end_of_prompt = outcome.tokens_seen_end - len(outcome.fed)
        self._message_spans.append((outcome.tokens_seen_start, end_of_prompt))

    def ask_all(self, cache: ManagedCache, evictor: Evictor) -> None:
        """Ask every question whose evidence has been fed.

        Args:
            cache, evictor: as they are after the latest turn; both are copied.
        """
        turn = len(self._message_spans) - 1
        cache_copy, evictor_copy = cache.fork(), evictor.copy(turn + 1)
        evictor_copy.before_turn(cache_copy)
        evictions = cache.slot_table.evictions + len(evictor_copy.log)
        for number, (origin, probe) in enumerate(self._probes):
            evidence_turn = probe.evidence_turn
            if evidence_turn is not None and evidence_turn > turn:
                continue
            # If asking evicts nothing, a rollback costs a tenth of a copy.
            rolls_back = evictor_copy.evicts_between_turns_only
            with cache_copy.rollback_after() if rolls_back else nullcontext():
                recalled = ask(
                    self._engine,
                    cache_copy if rolls_back else cache_copy.fork(),
                    evictor_copy.copy(turn + 1),
                    self._turns[turn],
                    probe,
                    None if evidence_turn is None else self._message_spans[evidence_turn],
                    self._setting.max_new_tokens,
                )
            self.rows.append(
                {
                    **self._identity(turn),
                    "probe": number,
                    "origin": origin,
                    "depth": probe.depth,
                    "subject": probe.kind,
                    "evidence_turn": evidence_turn,
                    "evidence_retained_share": recalled.evidence_retained_share,
                    "slots": cache_copy.size,
                    "evictions": evictions,
                    "question": probe.question,
                    "answer": probe.answer,
                    "distractors": list(probe.distractors),
                    "answer_nll": recalled.answer_nll,
                    "distractor_nll": list(recalled.distractor_nll),
                    "margin": recalled.margin,
                    "chosen": recalled.chosen,
                    "reply": recalled.reply,
                    "answered": reply_has_answer(recalled, probe),
                }
            )
