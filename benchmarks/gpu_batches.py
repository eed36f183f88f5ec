"""SmolLM2 with its real weights: replies decoded in a batch against each decoded alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from statistics import median

import torch
from gpu_real import dialogues, without_end

from kvfidelity.cache.evictor import EvictionSchedule, Evictor, Trigger
from kvfidelity.cache.policies import build_policy
from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.generate import generate
from kvfidelity.decoding.sampling import Sampling
from kvfidelity.decoding.scheduler import run_batch
from kvfidelity.decoding.sequence import Decoder, Reply, SequenceState
from kvfidelity.decoding.steps_eager import EagerSteps
from kvfidelity.dialogues.pool import Dialogue

TOKENS, EAGER_REPLIES = 128, 4
Row = tuple[str, str]


def compare_batch_with_one(model_dir: Path) -> list[Row]:
    """Greedy tokens under eviction: for how many tokens a batch and one sequence alone agree.

    For comparison it also gives the number for which eager steps and a CUDA graph agree, one
    sequence each.
    """
    rows = []
    for dtype in ("float32", "bfloat16"):
        engine = without_end(Engine.load(model_dir, dtype, "cuda"))
        cells = [(talk, turn) for talk in dialogues() for turn in range(4)]
        alone = [reply(engine, *cell) for cell in cells]
        batched = run_batch(
            engine, [lambda at, cell=cell: reply(at, *cell) for cell in cells], len(cells)
        )
        other = dataclasses.replace(engine, scheduler=EagerScheduler(engine))
        eager = [reply(other, *cell) for cell in cells[:EAGER_REPLIES]]  # about 25 ms a token
        rows += [
            (f"SmolLM2 {dtype}, batch of {len(cells)} against one", agreement(alone, batched)),
            (
                f"SmolLM2 {dtype}, eager steps against a CUDA graph",
                agreement(alone[:EAGER_REPLIES], eager),
            ),
        ]
    return rows


class EagerScheduler:
    """A scheduler that decodes one sequence with eager steps, which use other kernels."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def decode(self, sequence: SequenceState) -> Reply:
        decoder = Decoder(EagerSteps(self._engine), 1)
        decoder.add(sequence)
        decoder.decode_until_one_ends()
        assert sequence.reply is not None
        return sequence.reply


def reply(engine: Engine, talk: Dialogue, turn: int) -> Reply:
    """Reply to that turn's prompt; streaming_llm evicts 60 slots each time 20 more are filled."""
    cache = engine.new_cache("rerotated")
    *before, last = engine.segmenter.segments(talk.turns)[: turn + 1]
    ids = [token for segment in before for token in (*segment.prompt_ids, *segment.reply_ids)]
    hidden = engine.feed(cache, [*ids, *last.prompt_ids])[-1:].clone()
    schedule = EvictionSchedule(Trigger.STEP, cache.size + 20, max(cache.size - 40, 8))
    return generate(
        engine,
        cache,
        Evictor(build_policy("streaming_llm", {}), schedule),
        hidden,
        TOKENS,
        Sampling(),
        0,
    )


def agreement(ones: list[Reply], others: list[Reply]) -> str:
    """Tokens until the first that differs, and how far nats differ up to there."""
    lengths, gaps = [], []
    for one, other in zip(ones, others, strict=True):
        pairs = enumerate(zip(one.ids, other.ids, strict=True))
        same = next((index for index, (a, b) in pairs if a != b), len(one.ids))
        lengths.append(same)
        gaps += [abs(a - b) for a, b in zip(one.nll[:same], other.nll[:same], strict=True)]
    return (
        f"equal for {median(lengths):.0f} tokens in the median, {min(lengths)} at least, of "
        f"{TOKENS}; nats differ by {sum(gaps) / len(gaps):.1e} in the mean, {max(gaps):.1e} at most"
    )


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    import sys

    for what, value in compare_batch_with_one(Path(sys.argv[1])):
        print(f"| {what} | {value} |")
