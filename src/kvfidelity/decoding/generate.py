"""Generating a reply."""

from __future__ import annotations

import torch
from torch import Tensor

from kvfidelity.cache.evictor import Evictor
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.sampling import Sampling, sample_tokens, uniform_draws
from kvfidelity.decoding.sequence import Decoder, Reply, SequenceState
from kvfidelity.decoding.steps import steps_of
from kvfidelity.metrics.likelihood import token_nll


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
    sequence = SequenceState(
        cache, evictor, sampling, max_new_tokens, uniform_draws(max_new_tokens, seed)
    )
    start_s = engine.now()
    evictor.before_step(cache)
    logits = engine.logits(hidden)
    token = _first_token(logits, sequence)
    sequence.token, sequence.nll = int(token), float(token_nll(logits, token))
    sequence.first_s = engine.now() - start_s
    if sequence.token in engine.segmenter.stop_ids:
        return Reply((), (), "eos", sequence.first_s, None)
    if engine.scheduler is not None:
        return engine.scheduler.decode(sequence)
    decoder = Decoder(steps_of(engine, 1, sampling, max_new_tokens), 1)
    try:
        decoder.add(sequence)
        decoder.run()
    except BaseException:
        decoder.release_all()  # its steps will serve other replies
        raise
    if sequence.error is not None:
        raise sequence.error
    assert sequence.reply is not None
    return sequence.reply


def _first_token(logits: Tensor, sequence: SequenceState) -> Tensor:
    if sequence.sampling.greedy:
        return logits.argmax(-1)
    settings = torch.tensor(
        [[sequence.sampling.temperature], [sequence.sampling.top_p], [sequence.uniform[0]]],
        dtype=torch.float64,
        device=logits.device,
    )
    return sample_tokens(logits, *settings)
