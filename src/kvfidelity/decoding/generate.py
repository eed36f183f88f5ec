"""Generates one reply: its first token here, the others by decode steps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kvfidelity.cache.evictor import Evictor
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.overflow import overflow_error
from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.sampling import Sampling, sample_tokens, uniform_draws
from kvfidelity.decoding.sequence import Decoder, Reply, SequenceState
from kvfidelity.decoding.steps import StepsKind, steps_of
from kvfidelity.decoding.steps_eager import EagerSteps
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
    """Generate a reply from the prompt's last hidden state.

    Every generated token is fed into the cache, except a stop token. The evictor is asked before
    each token is chosen, also before a stop token (as in the code of arXiv 2511.04686).

    Args:
        hidden: [1, hidden], of the prompt's last token.
        seed: for sampling; greedy decoding does not use it.

    Raises:
        ModelOverflowError: a logit is NaN or infinite. The reply's nats say so when it has ended:
            a check of each token would wait for the device.
    """
    sequence = SequenceState(
        cache, evictor, sampling, max_new_tokens, uniform_draws(max_new_tokens, seed)
    )
    start_s, measuring_s = engine.now(), evictor.measuring_s
    evictor.before_step(cache)
    logits = engine.logits(hidden)
    token = _choose_first_token(logits, sequence)
    sequence.token, sequence.nll = int(token), float(token_nll(logits, token))
    if not math.isfinite(sequence.nll):
        raise overflow_error(engine.model.dtype)
    sequence.first_s = engine.now() - start_s - (evictor.measuring_s - measuring_s)
    if sequence.token in engine.segmenter.stop_ids:
        return Reply((), (), "eos", sequence.first_s, None)
    # A captured graph knows no changed attention: such a reply is decoded alone, step by step.
    alone = cache.changed_attention is not None and engine.device.type == "cuda"
    if engine.scheduler is not None and not alone:
        return engine.scheduler.decode(sequence)
    steps = EagerSteps(engine) if alone else steps_of(engine, 1, StepsKind.of(sequence))
    decoder = Decoder(steps, 1)
    try:
        decoder.add(sequence)
        decoder.decode_until_one_ends()
    except BaseException:
        decoder.release_all()  # the steps are used again for other replies
        raise
    if sequence.error is not None:
        raise sequence.error
    assert sequence.reply is not None
    return sequence.reply


def _choose_first_token(logits: Tensor, sequence: SequenceState) -> Tensor:
    """int64 [1], from logits [1, vocabulary]."""
    if sequence.sampling.greedy:
        return logits.argmax(-1)
    settings = torch.tensor(
        [[sequence.sampling.temperature], [sequence.sampling.top_p], [sequence.uniform[0]]],
        dtype=torch.float64,
        device=logits.device,
    )
    return sample_tokens(logits, *settings)
