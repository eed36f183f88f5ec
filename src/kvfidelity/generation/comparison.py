"""What eviction changed in a turn: the run's predictions against the baseline's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.sequence import Reply
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
    """Compares the turns of one run, in order.

    With `replies: own` the conversations differ, so the run's tokens are fed into a copy of the
    baseline's cache. With reference replies the baseline's outcomes are what is compared with.

    Args:
        first: the run's first turn that is not the baseline's.
    """

    def __init__(self, engine: Engine, plan: RunPlan, baseline: BaselineRun, first: int) -> None:
        self._engine, self._plan, self._baseline = engine, plan, baseline
        own = plan.spec.replies == "own"
        self._cache = baseline.fork_at(baseline.starts[first].slots) if own else None

    def predicted(self, turn: int) -> torch.Tensor | None:
        """Hidden states of the baseline that a turn's reference reply is compared with; None with
        own replies, and where memory ran out for the baseline."""
        outcomes = self._baseline.outcomes
        known = self._cache is None and turn < len(outcomes)
        return outcomes[turn].predicted if known else None

    def compare(self, turn: int, outcome: TurnOutcome) -> Comparison:
        """Compare a turn; with own replies every turn from `first` on must be given.

        Args:
            outcome: of a turn that was run with `predicted(turn)`.
        """
        engine, reply = self._engine, outcome.reply
        opening = self._plan.segments[turn].opening_ids
        if self._cache is not None:
            prompt = self._plan.segments[turn].prompt_ids
            hidden = engine.feed(self._cache, (*prompt, *outcome.fed))
            hidden = hidden[len(prompt) - 1 + len(opening) :]
            own = _mean_nll(engine, hidden, reply.ids if reply else ())
            return Comparison(own, self._after_baseline_history(turn, opening, reply), None)
        if turn >= len(self._baseline.outcomes) or outcome.kl_baseline is None:
            return Comparison(None, None, None)
        kl = float(outcome.kl_baseline.double().mean())
        nll = self._after_baseline_history(turn, opening, reply)
        return Comparison(nll, nll, kl)

    def _after_baseline_history(
        self, turn: int, opening: Sequence[int], reply: Reply | None
    ) -> float | None:
        """Nats per token of a reply in the baseline's cache, after the turn's prompt."""
        baseline, engine = self._baseline, self._engine
        if reply is None or not reply.ids or turn >= len(baseline.outcomes):
            return None
        after_prompt = baseline.fork_at(baseline.prompts[turn])
        first = baseline.outcomes[turn].predicted[:1]
        hidden = torch.cat([first, engine.feed(after_prompt, (*opening, *reply.ids))])
        return _mean_nll(engine, hidden[len(opening) :], reply.ids)


def _mean_nll(engine: Engine, hidden: torch.Tensor, ids: Sequence[int]) -> float | None:
    """Nats per token of `ids`; row j of `hidden` predicts token j, further rows are ignored."""
    if not ids:
        return None
    return float(engine.nll(hidden[: len(ids)], ids).double().mean())
