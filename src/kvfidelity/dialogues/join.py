"""Joins short dialogues end to end into long sessions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from kvfidelity.dialogues.pool import Question, Turn
from kvfidelity.dialogues.segments import ChatSegmenter
from kvfidelity.dialogues.selection import Candidate
from kvfidelity.dialogues.templates import MessageError


def join_sessions(
    dialogues: Iterable[Candidate], tokens: int, segmenter: ChatSegmenter, counts: Counter[str]
) -> Iterator[Candidate]:
    """Sessions of at least `tokens` tokens, each made of neighbouring dialogues of the file.

    A session ends with the dialogue that reaches the target. Each dialogue after the first of its
    session is counted as `joined`. Dialogues at the end of the file that are too few for a session
    are counted as `left_over_by_joining`.

    Args:
        tokens: least length of a session, in tokens of the whole chat template.
    """
    parts: list[Candidate] = []
    estimate = 0
    for dialogue in dialogues:
        try:
            estimate += segmenter.count(dialogue.turns)
        except MessageError:
            counts["changed_by_chat_template"] += 1
            continue
        parts.append(dialogue)
        if estimate < tokens:
            continue
        session = _session(parts)
        # What the template puts before the first message was counted once per part.
        estimate = segmenter.count(session.turns)
        if estimate >= tokens:
            counts["joined"] += len(parts) - 1
            parts, estimate = [], 0
            yield session
    counts["left_over_by_joining"] += len(parts)


def _session(parts: list[Candidate]) -> Candidate:
    turns: list[Turn] = []
    questions: list[Question] = []
    for part in parts:
        shift = len(turns)
        turns += part.turns
        questions += [
            replace(item, turns=tuple(shift + turn for turn in item.turns))
            for item in part.questions
        ]
    more = f"+{len(parts) - 1}" if len(parts) > 1 else ""
    return Candidate(
        parts[0].conversation_id + more,
        tuple(turns),
        tuple(questions),
        sum((Counter(part.cleaned) for part in parts), Counter()),
        sum((Counter(part.other_roles) for part in parts), Counter()),
    )
