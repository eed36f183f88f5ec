"""Likelihoods and divergences of several runs at once equal those of each alone."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
from torch import Tensor

from kvfidelity.decoding import scoring
from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.scoring import Scoring, score_together


class Counted:
    """An output layer of random weights that counts its rows."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.weight = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
        self.rows = 0

    def logits(self, hidden: Tensor) -> Tensor:
        self.rows += hidden.shape[0]
        return hidden @ self.weight.T


def hidden(rows: int, seed: int) -> Tensor:
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("block", [1, 5, 256])
def test_scored_together_equals_scored_alone_and_a_baseline_is_read_once(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(scoring.LOGIT_ROWS, "cpu", block)
    baselines = [hidden(7, 1), hidden(4, 2)]
    requests = [
        Scoring(hidden(7, 3), range(7), baselines[0]),
        Scoring(hidden(3, 4), [5, 6, 7]),
        Scoring(hidden(4, 5), range(4), baselines[1]),
        Scoring(hidden(7, 6), range(10, 17), baselines[0]),
        Scoring(hidden(1, 7), [49]),
    ]
    model = Counted()
    found = score_together(model, requests)
    assert model.rows == (7 + 7 + 7) + 3 + (4 + 4) + 1
    for request, scores in zip(requests, found, strict=True):
        log = model.logits(request.hidden).log_softmax(-1)
        nll = -log[range(len(request.ids)), list(request.ids)]
        torch.testing.assert_close(scores.nll, nll)
        assert (scores.kl is None) == (request.baseline is None)
        if request.baseline is not None and scores.kl is not None:
            base = model.logits(request.baseline).log_softmax(-1)
            wanted = torch.nn.functional.kl_div(log, base, reduction="none", log_target=True)
            torch.testing.assert_close(scores.kl, wanted.sum(-1), rtol=1e-4, atol=1e-6)


def test_a_run_does_not_diverge_from_itself(engine: Engine) -> None:
    states = engine.feed(engine.new_cache("original"), range(3, 30))
    kl = engine.score(states, range(4, 31), states.clone()).kl
    assert kl is not None and kl.abs().max() == 0


def test_what_runs_score_at_the_same_time_is_scored_together(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one by one: the output layer is called once for four runs."""
    from kvfidelity.decoding.scheduler import run_batch

    rows: list[int] = []
    real = Engine.logits

    def counted(self: Engine, states: Tensor) -> Tensor:
        rows.append(len(states))
        return real(self, states)

    monkeypatch.setattr(Engine, "logits", counted)

    def score(at: Engine, seed: int) -> Tensor:
        states = at.feed(at.new_cache("original"), range(seed, seed + 9))
        return at.score(states, range(9)).nll

    together = run_batch(engine, [partial(score, seed=seed) for seed in range(4)], 4)
    assert rows == [36]
    alone = dataclasses.replace(engine)
    for seed, found in enumerate(together):
        torch.testing.assert_close(found, score(alone, seed), rtol=1e-4, atol=1e-5)
