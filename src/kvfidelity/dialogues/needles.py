"""Questions with known answers about earlier parts of a dialogue.

They come from two sources: needles (facts inserted by seed at a stated depth), and questions of the
data set itself. Replies are scored elsewhere: by `matches`, and by the likelihood of the answer
against the distractors after `stem`.
"""

from __future__ import annotations

import hashlib
import random
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate

from kvfidelity.dialogues.needle_facts import FACT_KINDS, FACT_OPENINGS, QUESTION_OPENINGS, FactKind
from kvfidelity.dialogues.pool import Dialogue, Turn
from kvfidelity.errors import UserError

#: Depth: share of the text before the needle. Needles are inserted as near as can be to the
#: middle of the range; early ones to its beginning, recent ones to its end.
DEPTHS = {"early": (0.0, 0.2), "middle": (0.2, 0.8), "recent": (0.8, 1.0)}
DISTRACTORS = 3


@dataclass(frozen=True)
class Probe:
    """One question, to ask after the dialogue's last turn or any turn after `evidence_turn`.

    stem: how the answer begins, "" if unknown; answer and distractors continue it after a space.
    depth: early, middle or recent, "unknown" if the data set does not say. evidence_turn: the
    first turn (0-based) that holds the answer, None if unknown. kind: of the fact or the
    question.
    """

    question: str
    answer: str
    distractors: tuple[str, ...]
    depth: str
    evidence_turn: int | None
    stem: str = ""
    kind: str = ""


def insert_needles(
    dialogue: Dialogue,
    seed: int,
    *,
    per_depth: int = 1,
    last_turn: int | None = None,
    before_message: bool = False,
) -> tuple[Dialogue, list[Probe]]:
    """A dialogue with facts in its user messages, and the questions about them.

    Replies stay as they are. The same dialogue, seed and arguments give the same facts. Neither
    answer nor distractors occur in the dialogue itself: only the needle tells them apart.

    Args:
        per_depth: facts at each depth.
        last_turn: turns from this one on (0-based) are not part of a run, so depths are shares of
            the text before it; None takes the whole dialogue.
        before_message: put each fact before its message, never after it.

    Raises:
        UserError: too few kinds of facts whose values the dialogue does not mention.
    """
    rng = random.Random(_seed_number(seed, dialogue.dialogue_id))
    considered = list(dialogue.turns[:last_turn])
    text = " ".join(f"{turn.user} {turn.assistant}" for turn in considered).casefold()
    unmentioned = _unmentioned(text)
    kinds = [kind for kind in FACT_KINDS if len(unmentioned[kind]) > DISTRACTORS]
    if len(kinds) < per_depth * len(DEPTHS):
        raise UserError(
            f"dialogue {dialogue.dialogue_id} leaves {len(kinds)} kinds of facts for needles, "
            f"{per_depth} at each of {len(DEPTHS)} depths need more: lower the number"
        )
    chosen = iter(rng.sample(kinds, per_depth * len(DEPTHS)))
    turns, probes = list(dialogue.turns), []
    for depth in DEPTHS:
        needle_turns = _turns_at_depth(considered, depth, per_depth)
        for needle_turn in needle_turns:
            kind = next(chosen)
            values = rng.sample(unmentioned[kind], 1 + DISTRACTORS)
            turns[needle_turn] = _with_fact(
                turns[needle_turn], kind, values[0], rng, before_message
            )
            question, stem = rng.choice(kind.questions)
            probes.append(
                Probe(
                    rng.choice(QUESTION_OPENINGS) + question,
                    values[0],
                    tuple(values[1:]),
                    depth,
                    needle_turn,
                    stem,
                    kind.name,
                )
            )
    return replace(dialogue, turns=tuple(turns)), probes


def dataset_probes(dialogue: Dialogue, seed: int = 0) -> list[Probe]:
    """The data set's questions whose answers the dialogue holds.

    Distractors are what the data set calls wrong, then answers to other questions of the same
    category, drawn by seed; a question without any distractor is left out.
    """
    rng = random.Random(_seed_number(seed, dialogue.dialogue_id))
    starts = _shares(dialogue.turns)
    probes = []
    for item in dialogue.questions:
        if not item.answer:
            continue
        others = {
            other.answer
            for other in dialogue.questions
            if other.category == item.category
            and other.answer
            and normalised(other.answer) != normalised(item.answer)
        }
        needed = max(0, DISTRACTORS - len(item.wrong))
        sampled = rng.sample(sorted(others), min(needed, len(others)))
        distractors = (*item.wrong, *sampled)
        if not distractors:
            continue
        evidence_turn = item.turns[0] if item.turns else None
        depth = "unknown" if evidence_turn is None else depth_of(starts[evidence_turn])
        probes.append(
            Probe(item.question, item.answer, distractors, depth, evidence_turn, kind=item.category)
        )
    return probes


def depth_of(share: float) -> str:
    """Name of the depth that has this share of the text before it.

    >>> depth_of(0.0), depth_of(0.5), depth_of(1.0)
    ('early', 'middle', 'recent')
    """
    return next(
        (name for name, (low, high) in DEPTHS.items() if low <= share < high), list(DEPTHS)[-1]
    )


def normalised(text: str) -> str:
    """Lower case without punctuation, articles and extra spaces, as in SQuAD's scorer.

    >>> normalised(" The  Green-tea!")
    'green tea'
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    words = re.sub(r"[^\w]+|_", " ", plain).split()
    return " ".join(word for word in words if word not in {"a", "an", "the"})


def matches(reply: str, answer: str) -> bool:
    """Whether a reply contains the answer as whole words, both normalised.

    >>> matches("It is Biscuit, of course.", "biscuit"), matches("A kiwifruit", "kiwi")
    (True, False)
    """
    normalised_answer = normalised(answer)
    return bool(normalised_answer) and f" {normalised_answer} " in f" {normalised(reply)} "


def _with_fact(
    turn: Turn, kind: FactKind, value: str, rng: random.Random, before_message: bool
) -> Turn:
    fact_opening = rng.choice(FACT_OPENINGS)
    fact = rng.choice(kind.statements).format(value)
    fact = fact_opening + fact if fact_opening else fact[0].upper() + fact[1:]
    fact_first = rng.random() < 0.5 or before_message
    parts = [fact, turn.user] if fact_first else [turn.user, fact]
    return Turn("\n\n".join(parts), turn.assistant)


def _turns_at_depth(turns: Sequence[Turn], depth: str, count: int) -> list[int]:
    """Turns for the facts of one depth, best fitting first; repeats turns if there are too few."""
    low, high = DEPTHS[depth]
    target = {"early": 0.0, "recent": 1.0}.get(depth, (low + high) / 2)
    starts = _shares(turns)
    ranked = sorted(range(len(turns)), key=lambda turn: (abs(starts[turn] - target), turn))
    fitting = [turn for turn in ranked if depth_of(starts[turn]) == depth] or ranked[:1]
    return [fitting[number % len(fitting)] for number in range(count)]


def _shares(turns: Sequence[Turn]) -> list[float]:
    """Share of the text that stands before each turn."""
    sizes = [len(turn.user) + len(turn.assistant) for turn in turns]
    return [preceding / max(1, sum(sizes)) for preceding in accumulate(sizes[:-1], initial=0)]


@lru_cache(maxsize=16)
def _unmentioned(text: str) -> Mapping[FactKind, tuple[str, ...]]:
    """The values of each kind that a text does not mention. All runs of a dialogue ask the same."""
    return {
        kind: tuple(value for value in kind.values if not _mentioned(value, text))
        for kind in FACT_KINDS
    }


def _mentioned(value: str, text: str) -> bool:
    word = value.casefold()
    # A plain search first: most values are nowhere, and it is much faster.
    return word in text and re.search(rf"\b{re.escape(word)}s?\b", text) is not None


def _seed_number(seed: int, dialogue_id: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}\0{dialogue_id}".encode()).digest()[:8], "big")
