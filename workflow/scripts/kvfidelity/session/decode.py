"""Generating a reply, token by token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.triggers import Evictor
from kvfidelity.metrics.quality import token_nll
from kvfidelity.session.engine import Engine


@dataclass(frozen=True)
class Sampling:
    """Temperature 0 is greedy; `top_p` keeps the smallest set of tokens with that probability."""

    temperature: float = 0.0
    top_p: float = 1.0


@dataclass(frozen=True)
class Reply:
    """A generated reply.

    ids: its tokens without what ends the turn. nll: nats per token under the cache that generated
    it, before temperature. finish: "eos" or "length". first_s: seconds from the prompt's last
    hidden state to the first token. step_s: seconds per further token, None if there was none.
    """

    ids: tuple[int, ...]
    nll: tuple[float, ...]
    finish: str
    first_s: float
    step_s: float | None


@torch.inference_mode()
def generate(
    engine: Engine,
    cache: ManagedCache,
    evictor: Evictor,
    hidden: Tensor,
    max_new_tokens: int,
    sampling: Sampling,
    seed: int,
) -> Reply:
    """Generate from the hidden state that the prompt left.

    Every generated token is fed into the cache but a stop token; the evictor is asked before each
    is chosen, so also before a stop token (as in the code of arXiv 2511.04686).

    Args:
        hidden: [1, hidden], the prompt's last.
        seed: of the sampling; greedy decoding draws nothing.
    """
    stops = engine.segmenter.stop_ids
    draws = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    nll: list[float] = []
    began = first = engine.now()
    finish = "length"
    for index in range(max_new_tokens):
        evictor.before_step(cache)
        logits = engine.logits(hidden)
        token = _choose(logits[0], sampling, draws)
        if index == 0:
            first = engine.now()
        if token in stops:
            finish = "eos"
            break
        ids.append(token)
        nll.append(float(token_nll(logits, torch.tensor([token], device=engine.device))))
        hidden = engine.feed(cache, [token])
        evictor.step += 1
    done = engine.now()
    step_s = (done - first) / len(ids) if ids else None
    return Reply(tuple(ids), tuple(nll), finish, first - began, step_s)


def _choose(logits: Tensor, sampling: Sampling, draws: torch.Generator) -> int:
    if sampling.temperature == 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.float().cpu() / sampling.temperature, dim=-1)
    ordered, tokens = probabilities.sort(descending=True, stable=True)
    ordered[ordered.cumsum(0) - ordered >= sampling.top_p] = 0
    return int(tokens[torch.multinomial(ordered, 1, generator=draws)])
