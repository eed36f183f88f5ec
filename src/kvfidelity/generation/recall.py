"""Asks about earlier messages of a dialogue.

A question is fed as the next user turn on a copy of the cache, after the evictions that the run's
trigger makes before a turn. Then every candidate answer is scored as the reply's continuation, and
the model may answer in its own words. The dialogue itself does not change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice, takewhile
from typing import Any, NamedTuple

import torch

from kvfidelity.cache.evictor import Evictor
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.tree import TokenTree
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
    asked = _candidates(engine, before, probe)
    size = cache.size + len(asked.prompt_ids)
    if evictor.messages is not None:
        evictor.messages.add_turn(cache.slot_table.tokens_seen, len(asked.prompt_ids))
    hidden = engine.feed(cache, [*asked.prompt_ids, *asked.opening_ids])[-1:].clone()
    evictor.step += 1
    evictor.after_prompt(cache, (size - len(asked.prompt_ids), size))
    tree = TokenTree()
    rows = [[0, *(row + 1 for row in tree.extend(ids[:-1]))] for ids in asked.endings]
    if tree.ids:
        hidden = torch.cat([hidden, engine.feed_tree(cache, tree)])
    (nll,) = _mean_nll(engine, hidden, [rows], [asked.endings])
    reply = None
    if max_new_tokens:
        generated = generate(
            engine, cache, evictor, hidden[:1], max_new_tokens, GREEDY, evictor.seed
        )
        ids = [*asked.opening_ids, *generated.ids]
        reply = str(engine.tokenizer.decode(ids, skip_special_tokens=True))
    return RecallResult(nll[0], tuple(nll[1:]), reply, retained)


@torch.inference_mode()
def score_without_evicting(
    engine: Engine,
    cache: ManagedCache,
    before: Turn,
    probes: Sequence[Probe],
    evidence_spans: Sequence[tuple[int, int] | None],
) -> list[RecallResult]:
    """Ask questions that evict nothing and score their candidates, all in one forward.

    Args:
        cache: as for `ask`; it is not changed.
        evidence_spans: one for each of `probes`, see `ask`.
    """
    tree = TokenTree()
    asked = [_candidates(engine, before, probe) for probe in probes]
    rows = []
    for question in asked:
        last = tree.extend([*question.prompt_ids, *question.opening_ids])[-1]
        rows.append([[last, *tree.extend(ids[:-1], last)] for ids in question.endings])
    nll = _mean_nll(engine, engine.feed_tree(cache, tree), rows, [q.endings for q in asked])
    return [
        RecallResult(values[0], tuple(values[1:]), None, _retained_share(cache, span))
        for values, span in zip(nll, evidence_spans, strict=True)
    ]


def reply_has_answer(recalled: RecallResult, probe: Probe) -> bool | None:
    """Whether the model's own reply contains the answer; None without a reply."""
    return None if recalled.reply is None else matches(recalled.reply, probe.answer)


class _Asked(NamedTuple):
    """A question's prompt ids, the first ids that all candidates share, and the rest of each
    candidate (at least one id), the answer's first."""

    prompt_ids: tuple[int, ...]
    opening_ids: tuple[int, ...]
    endings: list[tuple[int, ...]]


def _candidates(engine: Engine, before: Turn, probe: Probe) -> _Asked:
    prompt: tuple[int, ...] = ()
    replies = []
    for candidate in (probe.answer, *probe.distractors):
        reply = f"{probe.stem} {candidate}" if probe.stem else candidate
        segment = engine.segmenter.segments([before, Turn(probe.question, reply)])[-1]
        prompt = segment.prompt_ids
        replies.append(segment.text_ids)
    opening = _shared_opening(replies)
    return _Asked(prompt, replies[0][:opening], [ids[opening:] for ids in replies])


def _mean_nll(
    engine: Engine,
    hidden: torch.Tensor,
    rows: Sequence[Sequence[Sequence[int]]],
    endings: Sequence[Sequence[Sequence[int]]],
) -> list[list[float]]:
    """Nats per token of each question's candidates.

    Args:
        hidden: [m, hidden].
        rows: for each candidate's tokens the rows of `hidden` that predict them.
        endings: the candidates' tokens.
    """
    flat = [row for question in rows for candidate in question for row in candidate]
    ids = [token for question in endings for candidate in question for token in candidate]
    nll = iter(engine.nll(hidden[flat], ids).double().tolist())
    return [
        [sum(islice(nll, len(candidate))) / len(candidate) for candidate in question]
        for question in endings
    ]


def _shared_opening(candidates: Sequence[Sequence[int]]) -> int:
    """Number of first tokens that all candidates share, leaving at least one of each."""
    positions = zip(*candidates, strict=False)
    shared = sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, positions))
    return min(shared, *(len(ids) - 1 for ids in candidates))


def _retained_share(cache: ManagedCache, evidence_span: tuple[int, int] | None) -> float | None:
    if evidence_span is None:
        return None
    index = cache.slot_table.token_index
    inside = (index >= evidence_span[0]) & (index < evidence_span[1])
    if cache.changed_attention is not None and cache.changed_attention.counts is not None:
        # A ghost stands for many tokens and holds none of them.
        single = cache.changed_attention.counts == 1
        known = single.shape[-1]
        inside = inside.to(single.device).expand(*single.shape[:2], -1).clone()
        inside[..., :known] &= single
    return float(inside.sum(-1).double().mean()) / (evidence_span[1] - evidence_span[0])
