"""Likelihoods and divergences of what hidden states predict, of one or several runs at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from kvfidelity.metrics.likelihood import kl_divergence

# Rows of logits computed at once: with a vocabulary of 128k 256 take 130 MB in fp32. A GPU is busy
# only with more.
LOGIT_ROWS = {"cpu": 256, "cuda": 1024}


@dataclass(frozen=True, eq=False)
class Scoring:
    """Hidden states [m, hidden] to be scored.

    ids: the m tokens that follow; `hidden` predicts them. baseline: the baseline's hidden states
    [m, hidden] at the same tokens, to be compared with; None for likelihoods alone.
    """

    hidden: Tensor
    ids: Sequence[int]
    baseline: Tensor | None = None


class Scores(NamedTuple):
    """In nats: NLL of each token, and KL(baseline || run) at each token, None without a baseline;
    fp32 [m] on the CPU."""

    nll: Tensor
    kl: Tensor | None


class Model(Protocol):
    """What scoring needs of `decoding.engine.Engine`."""

    @property
    def device(self) -> torch.device:
        """Where tokens must be."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [m, vocabulary] of hidden states [m, hidden]."""


@torch.inference_mode()
def score_together(model: Model, requests: Sequence[Scoring]) -> list[Scores]:
    """Score several hidden states.

    Each row goes through the output layer and a softmax once. Requests that are compared with the
    same baseline (one tensor object) share its rows too.
    """
    found: dict[int, Tensor] = {}
    for group in _by_baseline(requests).values():
        members = [requests[index] for index in group]
        if members[0].baseline is None:
            found |= zip(group, _likelihoods(model, members), strict=True)
        else:
            found |= zip(group, _comparisons(model, members), strict=True)
    # One transfer: each would wait for the device.
    ordered = [found[index] for index in range(len(requests))]
    values = torch.cat([part.flatten() for part in ordered]).cpu() if ordered else torch.empty(0)
    parts = torch.split(values, [part.numel() for part in ordered])
    return [
        Scores(part, None) if request.baseline is None else Scores(*part.view(2, -1))
        for request, part in zip(requests, parts, strict=True)
    ]


def _by_baseline(requests: Sequence[Scoring]) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(0 if request.baseline is None else id(request.baseline), []).append(index)
    return groups


def _likelihoods(model: Model, requests: Sequence[Scoring]) -> Iterator[Tensor]:
    """NLL of each request's tokens, fp32 [m]; the rows of all requests in blocks."""
    hidden = torch.cat([request.hidden for request in requests])
    ids = torch.tensor([token for request in requests for token in request.ids])
    rows = LOGIT_ROWS[model.device.type]
    blocks = zip(torch.split(hidden, rows), torch.split(ids.to(model.device), rows), strict=True)
    nll = [_nll(_log_probabilities(model, rows), targets) for rows, targets in blocks]
    yield from torch.split(torch.cat(nll), [len(request.ids) for request in requests])


def _comparisons(model: Model, requests: Sequence[Scoring]) -> Iterator[Tensor]:
    """NLL and KL of each request's tokens, fp32 [2, m]; all have the same baseline."""
    baseline = requests[0].baseline
    assert baseline is not None
    stacked = torch.stack([baseline.to(model.device), *(r.hidden for r in requests)])
    targets = torch.tensor([list(request.ids) for request in requests], device=model.device)
    rows = max(1, LOGIT_ROWS[model.device.type] // len(stacked))
    parts = []
    for hidden, ids in zip(
        torch.split(stacked, rows, 1), torch.split(targets, rows, 1), strict=True
    ):
        log = _log_probabilities(model, hidden.flatten(0, 1)).view(*hidden.shape[:2], -1)
        parts.append(torch.stack([_nll(log[1:], ids), kl_divergence(log[:1], log[1:])], 1))
    yield from torch.cat(parts, -1)


def _log_probabilities(model: Model, hidden: Tensor) -> Tensor:
    """fp32 [m, vocabulary]."""
    return model.logits(hidden).float().log_softmax(-1)


def _nll(log_probabilities: Tensor, ids: Tensor) -> Tensor:
    return -log_probabilities.gather(-1, ids[..., None])[..., 0]
