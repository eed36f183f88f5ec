"""Short dialogues put end to end until they make a long session."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from kvfidelity.dialogues.pool import Question, Turn
from kvfidelity.dialogues.segments import ChatSegmenter
from kvfidelity.dialogues.selection import Candidate


def join_sessions(
    dialogues: Iterable[Candidate], tokens: int, segmenter: ChatSegmenter, counts: Counter[str]
) -> Iterator[Candidate]:
    """Sessions of at least so many tokens, each of neighbouring dialogues of the file.

    A session ends with the dialogue that takes it to the target. Dialogues that went into a session
    that another one opened are counted as `joined`, those left over at the end of the file, too few
    to make a session, as `left_over_by_joining`.

    Args:
        tokens: least length of a session, in tokens of the whole chat template.
    """
    parts: list[Candidate] = []
    estimate = 0
    for dialogue in dialogues:
        parts.append(dialogue)
        estimate += segmenter.count(dialogue.turns)
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
            replace(asked, turns=tuple(shift + turn for turn in asked.turns))
            for asked in part.questions
        ]
    more = f"+{len(parts) - 1}" if len(parts) > 1 else ""
    return Candidate(parts[0].conversation_id + more, tuple(turns), tuple(questions))
