"""Asks a run's questions after the right turns, and records the answers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from kvfidelity.cache.evictor import Evictor
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.decoding.engine import Engine
from kvfidelity.dialogues.needles import Probe
from kvfidelity.dialogues.pool import Turn
from kvfidelity.generation.recall import (
    Questions,
    RecallResult,
    RecallSetting,
    ask,
    reply_has_answer,
    score_without_evicting,
)
from kvfidelity.generation.turns import TurnOutcome


class RecallProber:
    """Asks one run's questions, on copies of its cache and evictor.

    Args:
        turns: the turns that are run.
    """

    def __init__(
        self,
        engine: Engine,
        setting: RecallSetting,
        questions: Questions,
        turns: Sequence[Turn],
    ) -> None:
        self._engine, self._setting, self._turns = engine, setting, turns
        self._probes = questions.probes
        self._message_spans: list[tuple[int, int]] = []
        #: Each with its `turn` and the columns of `records.columns.RECALL_QUESTION`.
        self.rows: list[dict[str, Any]] = []

    def is_due_after(self, turn: int) -> bool:
        """Whether questions are asked after this turn (0-based)."""
        return bool(self._probes) and self._setting.is_due_after(turn, len(self._turns))

    def note_turn(self, outcome: TurnOutcome) -> None:
        """Record the token indices of the message of the turn that has just ended."""
        end_of_prompt = outcome.tokens_seen_end - len(outcome.fed)
        # What a healing fed before the message is not part of it.
        start = outcome.tokens_seen_start + outcome.healing_tokens
        self._message_spans.append((start, end_of_prompt))

    def ask_all(self, cache: ManagedCache, evictor: Evictor) -> None:
        """Ask every question whose evidence has been fed.

        Args:
            cache, evictor: as they are after the latest turn; they do not change.
        """
        turn = len(self._message_spans) - 1
        evicts = evictor.may_evict_in_turn(cache.size, cache.size)
        reads_only = evictor.evicts_between_turns_only and not self._setting.max_new_tokens
        cache_copy = cache if reads_only and not evicts else cache.fork()
        evictor_copy = evictor.copy(turn + 1)
        evicted = evictor_copy.before_turn(cache_copy) is not None
        evictions = cache.slot_table.evictions + len(evictor_copy.log)
        asked = [
            (number, probe)
            for number, (_, probe) in enumerate(self._probes)
            if probe.evidence_turn is None or probe.evidence_turn <= turn
        ]
        for (number, probe), recalled in zip(
            asked,
            self._results(
                [self._asked(probe, evictor, after_gap=evicted) for _, probe in asked],
                cache_copy,
                evictor_copy,
                turn,
            ),
            strict=True,
        ):
            self.rows.append(
                {
                    "turn": turn,
                    "probe": number,
                    "origin": self._probes[number][0],
                    "depth": probe.depth,
                    "subject": probe.kind,
                    "evidence_turn": probe.evidence_turn,
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

    @staticmethod
    def _asked(probe: Probe, evictor: Evictor, *, after_gap: bool) -> Probe:
        """The question as the user's next message, to which a healing may add."""
        if not after_gap:
            return probe
        return replace(probe, question=evictor.healing.message(probe.question))

    def _results(
        self, probes: Sequence[Probe], cache: ManagedCache, evictor: Evictor, turn: int
    ) -> list[RecallResult]:
        """Ask all questions of a turn; `cache` and `evictor` stay as they are."""
        before, tokens = self._turns[turn], self._setting.max_new_tokens
        spans = [
            None if probe.evidence_turn is None else self._message_spans[probe.evidence_turn]
            for probe in probes
        ]
        rolls_back = evictor.evicts_between_turns_only
        if rolls_back and not tokens and probes:
            return score_without_evicting(self._engine, cache, before, probes, spans)
        results = []
        for probe, span in zip(probes, spans, strict=True):
            # If asking evicts nothing, a rollback costs a tenth of a copy.
            with cache.rollback_after() if rolls_back else nullcontext():
                copies = cache if rolls_back else cache.fork(), evictor.copy(turn + 1)
                results.append(ask(self._engine, *copies, before, probe, span, tokens))
        return results
