"""Asks what was said earlier in a dialogue.

A question is fed as the next user turn on a copy of the cache, after the evictions that the run's
trigger makes before a turn. Then every candidate answer is scored as the reply's continuation, and
the model may answer in its own words. The dialogue itself does not change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import takewhile
from typing import Any

import torch

from kvfidelity.cache.evictor import Evictor
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.generate import generate
from kvfidelity.decoding.sampling import Sampling
from kvfidelity.dialogues.needles import Probe, dataset_probes, insert_needles, matches
from kvfidelity.dialogues.pool import Dialogue, Turn
from kvfidelity.errors import UserError

NEEDLE, DATASET = "needle", "dataset"
GREEDY = Sampling()


@dataclass(frozen=True)
class RecallSetting:
    """Which questions are asked, and when.

    needles_per_depth: needles at each depth. dataset_questions: most questions to ask of those
    that the dataset has. after_turns: turns (counted from 1) after which to ask, by default the
    last one. max_new_tokens: of an answer in the model's own words; 0 generates none.
    """

    needles_per_depth: int = 0
    dataset_questions: int = 0
    after_turns: tuple[int, ...] = ()
    max_new_tokens: int = 0

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> RecallSetting:
        """From a specification's plain values.

        Raises:
            UserError: an unknown key.
        """
        known = {field.name for field in fields(cls)}
        for name in values:
            if name not in known:
                raise UserError(f"session.recall: unknown key {name!r}")
        return replace(cls(**values), after_turns=tuple(values.get("after_turns") or ()))

    def is_due_after(self, turn: int, turns: int) -> bool:
        """Whether to ask after this turn (0-based) of `turns`."""
        return turn + 1 in self.after_turns if self.after_turns else turn + 1 == turns


@dataclass(frozen=True)
class Questions:
    """A dialogue with its needles inserted, and the probes, each with its origin."""

    dialogue: Dialogue
    probes: tuple[tuple[str, Probe], ...] = ()


@dataclass(frozen=True)
class RecallResult:
    """One question's outcome.

    answer_nll, distractor_nll: nats per token of each candidate, after the question and the
    opening words that all candidates share. reply: in the model's own words, opening words
    included; None if none was generated. evidence_retained_share: of the message with the fact, the
    share of tokens that are still cached (mean over layers and heads); None if that message is
    unknown.
    """

    answer_nll: float
    distractor_nll: tuple[float, ...]
    reply: str | None
    evidence_retained_share: float | None

    @property
    def chosen(self) -> bool:
        """Whether the answer is likelier than every distractor."""
        return self.answer_nll < min(self.distractor_nll)

    @property
    def margin(self) -> float:
        """Nats per token by which the answer is likelier than the best distractor."""
        return min(self.distractor_nll) - self.answer_nll


def prepare_questions(
    dialogue: Dialogue,
    setting: RecallSetting,
    seed: int,
    *,
    max_turns: int | None,
    max_prompt_tokens: int | None,
) -> Questions:
    """Insert needles and collect questions.

    Questions about a turn after the last one that is run are left out.

    Raises:
        UserError: the dialogue has no room for that many needles.
    """
    probes: list[tuple[str, Probe]] = []
    if setting.needles_per_depth:
        # A cut removes a message's end, so the needle comes before the message.
        dialogue, needles = insert_needles(
            dialogue,
            seed,
            per_depth=setting.needles_per_depth,
            last_turn=max_turns,
            before_message=max_prompt_tokens is not None,
        )
        probes += [(NEEDLE, probe) for probe in needles]
    if setting.dataset_questions:
        last = len(dialogue.turns) if max_turns is None else max_turns
        dataset_questions = [
            probe
            for probe in dataset_probes(dialogue, seed)
            if probe.evidence_turn is None or probe.evidence_turn < last
        ]
        probes += [(DATASET, probe) for probe in dataset_questions[: setting.dataset_questions]]
    return Questions(dialogue, tuple(probes))


@torch.inference_mode()
def ask(
    engine: Engine,
    cache: ManagedCache,
    evictor: Evictor,
    before: Turn,
    probe: Probe,
    evidence_span: tuple[int, int] | None,
    max_new_tokens: int,
) -> RecallResult:
    """Ask one question; it changes `cache` and `evictor`, so pass copies.

    Args:
        cache: of the dialogue, after the evictions before the question's turn.
        before: the dialogue's latest turn.
        evidence_span: token indices of the message with the fact, half-open; None if unknown.
    """
    retained = _retained_share(cache, evidence_span)
    prompt_ids, candidates = _candidates(engine, before, probe)
    opening = _shared_opening(candidates)
    size = cache.size + len(prompt_ids)
    hidden = engine.feed(cache, [*prompt_ids, *candidates[0][:opening]])[-1:].clone()
    evictor.step += 1
    evictor.after_prompt(cache, (size - len(prompt_ids), size))
    nll = [_nll(engine, cache, hidden, ids[opening:]) for ids in candidates]
    reply = None
    if max_new_tokens:
        generated = generate(engine, cache, evictor, hidden, max_new_tokens, GREEDY, evictor.seed)
        ids = [*candidates[0][:opening], *generated.ids]
        reply = str(engine.tokenizer.decode(ids, skip_special_tokens=True))
    return RecallResult(nll[0], tuple(nll[1:]), reply, retained)


def reply_has_answer(recalled: RecallResult, probe: Probe) -> bool | None:
    """Whether the model's own reply contains the answer; None without a reply."""
    return None if recalled.reply is None else matches(recalled.reply, probe.answer)


def _nll(engine: Engine, cache: ManagedCache, hidden: torch.Tensor, ids: Sequence[int]) -> float:
    """Nats per token of `ids` after the tokens in `cache`, which is not changed."""
    predicting = hidden
    if len(ids) > 1:
        with cache.rollback_after():
            predicting = torch.cat([hidden, engine.feed(cache, ids[:-1])])
    return float(engine.nll(predicting, ids).double().mean())


def _candidates(
    engine: Engine, before: Turn, probe: Probe
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """The question's prompt ids, and the ids of each candidate reply, the answer's first."""
    prompt: tuple[int, ...] = ()
    replies = []
    for candidate in (probe.answer, *probe.distractors):
        reply = f"{probe.stem} {candidate}" if probe.stem else candidate
        segment = engine.segmenter.segments([before, Turn(probe.question, reply)])[-1]
        prompt = segment.prompt_ids
        replies.append(segment.text_ids)
    return prompt, replies


def _shared_opening(candidates: Sequence[Sequence[int]]) -> int:
    """Number of first tokens that all candidates share, leaving at least one of each."""
    positions = zip(*candidates, strict=False)
    shared = sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, positions))
    return min(shared, *(len(ids) - 1 for ids in candidates))


def _retained_share(cache: ManagedCache, evidence_span: tuple[int, int] | None) -> float | None:
    if evidence_span is None:
        return None
    index = cache.slot_table.token_index
    inside = ((index >= evidence_span[0]) & (index < evidence_span[1])).sum(-1).double()
    return float(inside.mean()) / (evidence_span[1] - evidence_span[0])
