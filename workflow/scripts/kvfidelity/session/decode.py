"""Generating a reply."""

from __future__ import annotations

import torch
from torch import Tensor

from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.triggers import Evictor
from kvfidelity.metrics.quality import token_nll
from kvfidelity.session.engine import Engine
from kvfidelity.session.lane import Decoder, Lane, Reply
from kvfidelity.session.sampling import Sampling, choose, draws
from kvfidelity.session.stepping import steps_of


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
    lane = Lane(cache, evictor, sampling, max_new_tokens, draws(max_new_tokens, seed))
    began = engine.now()
    evictor.before_step(cache)
    logits = engine.logits(hidden)
    token = _first(logits, lane)
    lane.token, lane.nll = int(token), float(token_nll(logits, token))
    lane.first_s = engine.now() - began
    if lane.token in engine.segmenter.stop_ids:
        return Reply((), (), "eos", lane.first_s, None)
    if engine.hub is not None:
        return engine.hub.decode(lane)
    decoder = Decoder(steps_of(engine, 1, sampling, max_new_tokens), 1)
    try:
        decoder.join(lane)
        decoder.run()
    except BaseException:
        decoder.dismiss()  # its steps will serve other replies
        raise
    if lane.error is not None:
        raise lane.error
    assert lane.reply is not None
    return lane.reply


def _first(logits: Tensor, lane: Lane) -> Tensor:
    if lane.sampling.greedy:
        return logits.argmax(-1)
    settings = torch.tensor(
        [[lane.sampling.temperature], [lane.sampling.top_p], [lane.uniform[0]]],
        dtype=torch.float64,
        device=logits.device,
    )
    return choose(logits, *settings)
