"""What eviction changed in a turn: the run's predictions against the baseline's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from kvfidelity.decoding.engine import Engine
from kvfidelity.generation.baseline_run import BaselineRun
from kvfidelity.generation.plan import RunPlan
from kvfidelity.generation.turns import TurnOutcome


class Comparison(NamedTuple):
    """Three columns of the turns table.

    reply_nll_baseline: nats per token of the run's own reply where nothing is evicted of the run's
        own history.
    reply_nll_baseline_history: the same after the baseline's history, which is fair to runs whose
        own history is ruined. Equal with reference replies.
    kl_baseline: mean KL(baseline || run) in nats over the tokens of the reference reply.
    Each is None where it cannot be computed.
    """

    reply_nll_baseline: float | None
    reply_nll_baseline_history: float | None
    kl_baseline: float | None


def compare_shared_turn(plan: RunPlan, outcome: TurnOutcome) -> Comparison:
    """A turn that is the baseline's own: the same predictions."""
    nll = outcome.reply.nll if outcome.reply else ()
    mean = sum(nll) / len(nll) if nll else None
    return Comparison(mean, mean, 0.0 if plan.spec.replies == "reference" else None)


class BaselineComparer:
    """Compares the turns of one run, once it has ended.

    With `replies: own` the conversations differ, so the run's tokens are fed into a copy of the
    baseline's cache: in one forward, after the run, so that it does not hold this copy next to its
    own cache from turn to turn. With reference replies the baseline's outcomes are what is compared
    with.

    Args:
        first: the run's first turn that is not the baseline's.
    """

    def __init__(self, engine: Engine, plan: RunPlan, baseline: BaselineRun, first: int) -> None:
        self._engine, self._plan, self._baseline, self._first = engine, plan, baseline, first
        self._own = plan.spec.replies == "own"

    def predicted(self, turn: int) -> torch.Tensor | None:
        """Hidden states of the baseline that a turn's reference reply is compared with; None with
        own replies, and where memory ran out for the baseline."""
        outcomes = self._baseline.outcomes
        known = not self._own and turn < len(outcomes)
        return outcomes[turn].predicted if known else None

    def compare(self, outcomes: Sequence[TurnOutcome]) -> list[Comparison]:
        """A comparison for each turn from `first` on.

        Args:
            outcomes: of turns that were run with `predicted(turn)`, all from `first` on in order.
        """
        turns = range(self._first, self._first + len(outcomes))
        histories = [
            self._after_baseline_history(turn, outcome)
            for turn, outcome in zip(turns, outcomes, strict=True)
        ]
        if self._own:
            owns = self._after_own_history(outcomes)
            return [Comparison(*pair, None) for pair in zip(owns, histories, strict=True)]
        return [
            self._with_reference(turn, outcome, nll)
            for turn, outcome, nll in zip(turns, outcomes, histories, strict=True)
        ]

    def _with_reference(self, turn: int, outcome: TurnOutcome, nll: float | None) -> Comparison:
        if turn >= len(self._baseline.outcomes) or outcome.kl_baseline is None:
            return Comparison(None, None, None)
        return Comparison(nll, nll, float(outcome.kl_baseline.double().mean()))

    def _after_own_history(self, outcomes: Sequence[TurnOutcome]) -> list[float | None]:
        """Nats per token of each reply where nothing was evicted of what the run saw before."""
        if not outcomes:
            return []
        ids: list[int] = []
        predicting = []  # the row that predicts each reply's first token
        for turn, outcome in enumerate(outcomes, start=self._first):
            segment = self._plan.segments[turn]
            ids += segment.prompt_ids
            predicting.append(len(ids) - 1 + len(segment.opening_ids))
            ids += outcome.fed
        cache = self._baseline.fork_at(self._baseline.starts[self._first].slots)
        hidden = self._engine.feed(cache, ids)
        return [
            _mean_nll(self._engine, hidden[row:], outcome.reply.ids if outcome.reply else ())
            for row, outcome in zip(predicting, outcomes, strict=True)
        ]

    def _after_baseline_history(self, turn: int, outcome: TurnOutcome) -> float | None:
        """Nats per token of a reply in the baseline's cache, after the turn's prompt."""
        baseline, engine, reply = self._baseline, self._engine, outcome.reply
        if reply is None or not reply.ids or turn >= len(baseline.outcomes):
            return None
        opening = self._plan.segments[turn].opening_ids
        after_prompt = baseline.fork_at(baseline.prompts[turn])
        first = baseline.outcomes[turn].predicted[:1]
        hidden = torch.cat([first, engine.feed(after_prompt, (*opening, *reply.ids))])
        return _mean_nll(engine, hidden[len(opening) :], reply.ids)


def _mean_nll(engine: Engine, hidden: torch.Tensor, ids: Sequence[int]) -> float | None:
    """Nats per token of `ids`; row j of `hidden` predicts token j, further rows are ignored."""
    if not ids:
        return None
    return float(engine.nll(hidden[: len(ids)], ids).double().mean())
